"""Footers, and the JSON out of a TOC's member. The footers are those of the specification."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg_formats.errors import FormatError
from lazyimg_formats.estargz import location
from lazyimg_formats.estargz.location import (
    FOOTER_SIZE,
    TOC_NAME,
    check_toc,
    decode_toc,
    parse_footer,
)
from lazyimg_formats.oci.digest import Digest

JSON = b'{"version": 1, "entries": []}' * 20
SIZE = 1 << 20


def footer(extra: bytes) -> bytes:
    """Give an empty member with an extra field, as Go's gzip writes it without compression."""
    head = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + struct.pack("<H", len(extra)) + extra
    return head + b"\1\0\0\xff\xff" + bytes(8)


def field(text: bytes) -> bytes:
    return b"SG" + struct.pack("<H", len(text)) + text


ESTARGZ = footer(field(b"00000000000052dfSTARGZ"))
STARGZ = footer(b"00000000000052DFSTARGZ")
EXTERNAL = footer(field(b"STARGZEXTERNALTOC"))


def tar_of(data: bytes, name: str = TOC_NAME.decode(), kind: bytes = tarfile.REGTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size, member.type = len(data), kind
        archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


MEMBER = gzip.compress(tar_of(JSON))


def refuse(data: bytes, digest: Digest | None = None) -> str:
    with pytest.raises(FormatError) as raised:
        decode_toc(data, digest)
    with pytest.raises(FormatError) as checked:
        check_toc(data, digest or Digest.of(b""))
    if digest is not None:
        assert str(checked.value) == str(raised.value)
    return str(raised.value)


def test_lengths_are_those_of_the_specification() -> None:
    assert [len(each) for each in (ESTARGZ, STARGZ, EXTERNAL)] == [51, 47, 46]
    assert [gzip.decompress(each) for each in (ESTARGZ, STARGZ, EXTERNAL)] == [b""] * 3


@pytest.mark.parametrize("data", [ESTARGZ, STARGZ])
def test_footer(data: bytes) -> None:
    assert parse_footer((b"the blob" + data)[-FOOTER_SIZE:], SIZE) == 0x52DF
    assert parse_footer(data, 0x52DF + len(data) + 1) == 0x52DF


def test_footer_of_a_blob_whose_toc_is_elsewhere() -> None:
    assert parse_footer((b"the blob" + EXTERNAL)[-FOOTER_SIZE:], SIZE) is None


def test_time_and_system_in_a_footer_s_header_mean_nothing() -> None:
    assert parse_footer(ESTARGZ[:4] + b"\n\n\n\n\2\3" + ESTARGZ[10:], SIZE) == 0x52DF


@pytest.mark.parametrize("data", [ESTARGZ, STARGZ, EXTERNAL])
def test_footer_cut_damaged_or_followed(data: bytes) -> None:
    for start in range(1, len(data)):
        with pytest.raises(FormatError, match=r"^eStargz footer: a blob's last bytes are b"):
            parse_footer(data[start:], SIZE)
    for position in {*range(len(data))} - {*range(4, 10)}:
        damaged = bytearray(data)
        damaged[position] ^= 0x80
        with pytest.raises(FormatError):
            parse_footer(bytes(damaged), SIZE)
    with pytest.raises(FormatError):
        parse_footer(data + b"\0", SIZE)


@pytest.mark.parametrize("size", [51, 0x52DF, 0x52DF + 51])
def test_footer_that_points_behind_the_files(size: int) -> None:
    with pytest.raises(
        FormatError, match=f"^eStargz footer: TOC at byte 21215 of a blob of {size}"
    ):
        parse_footer(ESTARGZ, size)


def test_footer_that_points_to_the_first_byte() -> None:
    with pytest.raises(FormatError, match="TOC at byte 0 of a blob of 1000"):
        parse_footer(footer(field(b"0" * 16 + b"STARGZ")), 1000)


@given(st.binary(max_size=60))
def test_any_bytes_are_no_footer(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_footer(data, SIZE)


@pytest.mark.parametrize("behind", [b"", ESTARGZ])
def test_toc(behind: bytes) -> None:
    assert decode_toc(MEMBER + behind, None) == JSON
    assert decode_toc(memoryview(MEMBER + behind), Digest.of(JSON)) == JSON
    check_toc(MEMBER + behind, Digest.of(JSON, "sha512"))


def test_large_toc() -> None:
    large = JSON * 4000
    member = gzip.compress(tar_of(large))
    assert decode_toc(member, Digest.of(large)) == large
    check_toc(member, Digest.of(large))


def test_toc_of_random_bytes() -> None:
    """Its member is longer than what is decoded at a time."""
    noise = b"".join(Digest.of(b"%d" % number).hex.encode() for number in range(20_000))
    member = gzip.compress(tar_of(noise), compresslevel=0)
    assert decode_toc(member, Digest.of(noise)) == noise


def test_digest_is_checked_in_little_memory() -> None:
    """By a daemon, before anything is known of the bytes."""
    large = bytes(16 << 20)
    member = gzip.compress(tar_of(large))
    digest = Digest.of(large)
    tracemalloc.start()
    try:
        check_toc(member, digest)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2 << 20


def test_toc_with_another_digest() -> None:
    other = Digest.of(b"other")
    assert refuse(MEMBER, other) == f"eStargz TOC: expected {other}, got {Digest.of(JSON)}"


def test_toc_cut_short() -> None:
    for end in range(len(MEMBER)):
        assert refuse(MEMBER[:end], Digest.of(JSON)).startswith("eStargz TOC: ")
    assert refuse(gzip.compress(b"")) == "eStargz TOC: its tar is cut short"
    assert refuse(gzip.compress(tar_of(JSON)[:511])) == "eStargz TOC: its tar is cut short"
    assert refuse(gzip.compress(tar_of(JSON)[:600])) == "eStargz TOC: its tar is cut short"
    assert refuse(MEMBER[:-1]) == "eStargz TOC: its gzip member is cut short"


def test_toc_damaged() -> None:
    assert "does not decode as gzip" in refuse(b"no gzip")
    assert "does not decode as gzip" in refuse(MEMBER[:-8] + bytes(8), Digest.of(JSON))


@pytest.mark.parametrize(
    ("tar", "problem"),
    [
        (tar_of(JSON, "other"), "its tar does not begin with the file stargz.index.json"),
        (tar_of(b"", kind=tarfile.DIRTYPE), "its tar does not begin with the file"),
        (tar_of(b""), "0 bytes, the limit is 157286400"),
    ],
)
def test_toc_in_another_tar(tar: bytes, problem: str) -> None:
    assert problem in refuse(gzip.compress(tar))


def test_toc_with_a_damaged_header() -> None:
    tar = bytearray(tar_of(JSON))
    tar[300] ^= 1
    assert refuse(gzip.compress(tar)).startswith("tar header: checksum is ")


def test_toc_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location, "MAX_TOC", len(JSON))
    assert decode_toc(MEMBER, None) == JSON
    monkeypatch.setattr(location, "MAX_TOC", len(JSON) - 1)
    assert refuse(MEMBER) == f"eStargz TOC: {len(JSON)} bytes, the limit is {len(JSON) - 1}"


def test_bomb_behind_the_toc(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows the JSON in its member is decoded, to check it; but not for ever."""
    monkeypatch.setattr(location, "MAX_TOC", 1 << 20)
    compressor = zlib.compressobj(wbits=31)
    bomb = compressor.compress(tar_of(JSON) + bytes(4 << 20)) + compressor.flush()
    assert refuse(bomb) == f"eStargz TOC: its tar is over {(1 << 20) + (64 << 10)} bytes"


@given(st.binary(max_size=600))
def test_any_bytes_are_no_toc(data: bytes) -> None:
    refuse(data)
    with pytest.raises(FormatError):
        decode_toc(gzip.compress(data), None)
