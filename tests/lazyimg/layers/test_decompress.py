"""Decompressors, in every way that layers are compressed."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zstandard import ZstdCompressor

from lazyimg.layers.decompress import (
    PIECE,
    Decompressor,
    GzipDecompressor,
    PlainDecompressor,
    ZstdStreamDecompressor,
    choose_decompressor,
)
from lazyimg_formats.errors import FormatError
from lazyimg_formats.zstd_frames import serialize_skippable

TEXT = b"".join(b"line %d\n" % number for number in range(200_000))
ZEROS = bytes(5 * PIECE)
SKIPPABLE = serialize_skippable(b"x")


def zstd(data: bytes) -> bytes:
    return ZstdCompressor(level=3).compress(data)


def zstd_stream(data: bytes) -> bytes:
    compressor = ZstdCompressor(level=3).compressobj()
    return compressor.compress(data) + compressor.flush()


SAMPLES = {
    "plain": (TEXT, TEXT),
    "short": (b"x", b"x"),
    "gzip": (gzip.compress(TEXT), TEXT),
    "gzip of zeros": (gzip.compress(ZEROS), ZEROS),
    "gzip of nothing": (gzip.compress(b""), b""),
    "gzip members": (
        gzip.compress(TEXT[:99]) + gzip.compress(b"") + gzip.compress(TEXT),
        TEXT[:99] + TEXT,
    ),
    "zstd": (zstd(TEXT), TEXT),
    "zstd of zeros": (zstd(ZEROS), ZEROS),
    "zstd stream": (zstd_stream(TEXT), TEXT),
    "zstd frames": (
        SKIPPABLE + zstd(TEXT[:99]) + SKIPPABLE + zstd(b"") + zstd(TEXT),
        TEXT[:99] + TEXT,
    ),
}  # fmt: skip


def decompress(data: bytes, step: int) -> bytes:
    decompressor = choose_decompressor(data[:6])
    pieces = []
    for at in range(0, len(data), step):
        for piece in decompressor.feed(data[at : at + step]):
            assert 0 < len(piece) <= PIECE
            pieces.append(piece)
    decompressor.finish()
    return b"".join(pieces)


@pytest.mark.parametrize("step", [1000, 1 << 20, 1 << 26])
@pytest.mark.parametrize("name", SAMPLES)
def test_samples(name: str, step: int) -> None:
    data, expected = SAMPLES[name]
    assert decompress(data, step) == expected


@pytest.mark.parametrize("name", [name for name in SAMPLES if name.startswith("gzip")])
def test_gzip_where_there_is_only_zlib(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazyimg.layers.decompress._inflate", zlib)
    data, expected = SAMPLES[name]
    assert decompress(data, 1000) == expected
    with pytest.raises(FormatError, match=r"^gzip: "):
        decompress(data[:-8] + bytes(7) + b"x", 1 << 20)


@pytest.mark.parametrize("step", [1, 2, 3, 7])
@pytest.mark.parametrize("make", [gzip.compress, zstd, zstd_stream, bytes])
def test_small_steps(make: type, step: int) -> None:
    data = make(TEXT[:500])
    assert decompress(data + (data if make is not bytes else b""), step) == TEXT[:500] * (
        1 if make is bytes else 2
    )


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (gzip.compress(TEXT[:10]), GzipDecompressor),
        (zstd(TEXT[:10]), ZstdStreamDecompressor),
        (serialize_skippable(b""), ZstdStreamDecompressor),
        (TEXT[:10], PlainDecompressor),
        (b"\x1f", PlainDecompressor),
    ],
    ids=["gzip", "zstd", "skippable", "plain", "short"],
)
def test_choice(data: bytes, kind: type[Decompressor]) -> None:
    assert isinstance(choose_decompressor(data[:6]), kind)


@pytest.mark.parametrize(
    ("data", "name"), [(bz2.compress(b"x"), "bzip2"), (lzma.compress(b"x"), "xz")]
)
def test_compressions_that_are_not_known(data: bytes, name: str) -> None:
    with pytest.raises(FormatError, match=f"^layer: compressed with {name}; gzip, zstd and none"):
        choose_decompressor(data[:6])


def test_no_bytes() -> None:
    with pytest.raises(FormatError, match=r"^layer: it has no bytes$"):
        choose_decompressor(b"")


@pytest.mark.parametrize("name", ["gzip", "gzip members", "zstd", "zstd frames", "zstd stream"])
def test_cut_short(name: str) -> None:
    data = SAMPLES[name][0]
    for end in (6, 20, len(data) // 2, len(data) - 1):
        with pytest.raises(FormatError, match=r": cut short$"):
            decompress(data[:end], 1 << 20)


@pytest.mark.parametrize("tail", [b"garbage", bytes(100)])
@pytest.mark.parametrize("make", [gzip.compress, zstd])
def test_garbage_behind_it(make: type, tail: bytes) -> None:
    with pytest.raises(FormatError, match=r"^(gzip|zstd): "):
        decompress(make(TEXT[:100]) + tail, 1 << 20)


@pytest.mark.parametrize("at", [-8, -4])
def test_gzip_with_a_wrong_checksum_or_length(at: int) -> None:
    damaged = bytearray(gzip.compress(TEXT))
    damaged[at] ^= 1
    with pytest.raises(FormatError, match=r"^gzip: "):
        decompress(bytes(damaged), 1 << 20)


@given(st.data())
def test_damaged(data: st.DataObject) -> None:
    for make in (gzip.compress, zstd_stream):
        damaged = bytearray(make(TEXT[:3000]))
        at = data.draw(st.integers(6, len(damaged) - 1))
        damaged[at] ^= data.draw(st.integers(1, 255))
        try:
            decompress(bytes(damaged), 100)
        except FormatError:
            continue


def test_zstd_bomb_is_handed_out_in_bounded_pieces() -> None:
    bomb = zstd(bytes(200 << 20))
    sizes = [len(piece) for piece in ZstdStreamDecompressor().feed(bomb)]
    assert sum(sizes) == 200 << 20
    assert max(sizes) <= PIECE
