"""Tables of contents at the ends of blobs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg_formats.errors import FormatError
from lazyimg_formats.nydus.bootstrap import parse_bootstrap
from lazyimg_formats.nydus.context import parse_context
from lazyimg_formats.nydus.layout import Compressor
from lazyimg_formats.nydus.toc import BOOTSTRAP, TAIL, TocEntry, parse_toc
from tests.fakes.nydus import patch, sample

BLOB = sample("toc.blob")
FIRST = len(BLOB) - 512 - 5 * 128
"""Where the table begins."""


def parse(data: bytes) -> dict[str, TocEntry]:
    return parse_toc(data[-TAIL:], len(data))


def part(data: bytes, entry: TocEntry) -> bytes:
    return entry.decode(data[entry.offset : entry.offset + entry.stored])


def test_parts_of_a_blob() -> None:
    found = parse(BLOB)
    assert list(found) == [
        "image.blob", "blob.meta", "blob.meta.header", "blob.digest", BOOTSTRAP
    ]  # fmt: skip
    assert found[BOOTSTRAP].compressor is Compressor.ZSTD
    assert found["blob.digest"].compressor is Compressor.NONE


@pytest.mark.parametrize("name", ["toc", "toc-upper", "batch-toc", "zran"])
def test_bootstrap_and_context_inside_a_blob(name: str) -> None:
    data = sample(f"{name}.blob")
    found = parse(data)
    bootstrap = parse_bootstrap(part(data, found[BOOTSTRAP]))
    table, header = part(data, found["blob.meta"]), part(data, found["blob.meta.header"])
    context = parse_context(bootstrap.blobs[0], table, header)
    assert context.count == len(list(bootstrap.chunks()))


def test_part_without_a_digest() -> None:
    entry = replace(parse(BLOB)["blob.digest"], digest=bytes(32))
    assert len(part(BLOB, entry)) == entry.length


def test_part_that_is_not_what_its_entry_says() -> None:
    entry = parse(BLOB)["blob.digest"]
    wrong = "TocEntry: blob.digest is not what its entry says"
    with pytest.raises(FormatError, match=wrong):
        entry.decode(bytes(entry.stored))
    with pytest.raises(FormatError, match=wrong):
        part(BLOB, replace(entry, length=entry.length - 1))
    with pytest.raises(FormatError, match=r"blob.digest: 3 bytes for"):
        entry.decode(b"abc")
    with pytest.raises(FormatError, match="bytes for 1099511627776"):
        part(BLOB, replace(entry, length=1 << 40))


@pytest.mark.parametrize(
    ("offset", "layout", "value", "message"),
    [
        (len(BLOB) - 512, "B", ord("R"), "the blob has no table of contents at its end"),
        (len(BLOB) - 512 + 156, "B", ord("5"), "the blob has no table of contents at its end"),
        (len(BLOB) - 512 + 124, "B", ord("x"), "the table's size is b'x"),
        (len(BLOB) - 512 + 124, "11s", b"00000000000", "a table of 0 bytes"),
        (len(BLOB) - 512 + 124, "11s", b"00000000001", "a table of 1 bytes"),
        (len(BLOB) - 512 + 124, "11s", b"00000010000", "a table of 4096 bytes"),
        (FIRST, "I", 4, "entry b'image.blob"),
        (FIRST + 8, "B", 0xFF, "entry b'.xffmage.blob"),
        (FIRST + 8, "16s", b"blob.meta", "blob.meta is there twice"),
        (FIRST + 56, "Q", 1 << 40, "image.blob ends behind the blob"),
    ],
)
def test_damaged_table(offset: int, layout: str, value: int | bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        parse(patch(BLOB, offset, layout, value))


def test_too_short() -> None:
    for end in (0, 1, 511):
        with pytest.raises(FormatError, match=f"{end} bytes are less than a tar header"):
            parse_toc(BLOB[len(BLOB) - end :], len(BLOB))
    with pytest.raises(FormatError, match="a table of 640 bytes"):
        parse_toc(BLOB[-1151:], len(BLOB))
    assert parse_toc(BLOB[-1152:], len(BLOB)) == parse(BLOB)


@given(st.binary(max_size=1200))
def test_any_bytes(data: bytes) -> None:
    tail = data + BLOB[len(BLOB) - 512 :]
    try:
        found = parse_toc(tail, 1 << 20)
    except FormatError:
        return
    for entry in found.values():
        with pytest.raises(FormatError):
            entry.decode(bytes(entry.stored + 1))
