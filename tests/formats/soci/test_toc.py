"""zTOCs to layers: what they hold, and what they must not say."""

from __future__ import annotations

import hashlib
import struct
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyimg_formats.device_table import MAX_WINDOW, Codec, DeviceTable
from lazyimg_formats.errors import FormatError
from lazyimg_formats.gzip_spans import digest_input
from lazyimg_formats.layer import Entry, Kind
from lazyimg_formats.soci.toc import ZtocLayer, parse_ztoc
from lazyimg_formats.soci.writer import make_ztoc
from lazyimg_formats.soci.ztoc import PLAIN
from lazyimg_formats.stream_index import parse_stream_index
from tests.fakes.gzip_layer import make_tar
from tests.fakes.soci_layer import FILES, SociLayer, make_index
from tests.fakes.stream_layers import make_stream_index
from tests.formats.soci.test_ztoc import make, plain_points

TAR = 5120


@cache
def layer() -> SociLayer:
    return SociLayer()


def problem(data: bytes) -> str:
    with pytest.raises(FormatError) as caught:
        parse_ztoc(data)
    return str(caught.value)


def regular(name: bytes, size: int) -> Entry:
    return Entry(name, Kind.REGULAR, size=size)


def device_of(ztoc: ZtocLayer, tar: bytes) -> bytes:
    """Give the device's bytes, where each span is what the tar has at its start."""
    table = ztoc.layer.table
    device = bytearray(table.size)
    for number in range(table.extent_count):
        extent = table.extent(number)
        at = ztoc.starts[extent.span] + extent.inner_offset
        start = extent.device_offset
        device[start : start + extent.length] = tar[at : at + extent.length]
    return bytes(device)


def test_same_tree_as_the_index_that_a_node_makes() -> None:
    made = layer()
    ztoc = parse_ztoc(made.ztoc)
    index = parse_stream_index(make_index(made.blob, made.tar, made.spacing))
    assert ztoc.layer.entries == index.entries
    assert ztoc.layer.table.span_count == index.table.span_count > 5
    for entry in ztoc.layer.entries:
        assert isinstance(entry.data, int)
        content = device_of(ztoc, made.tar)[entry.data : entry.data + entry.size]
        assert content == FILES[entry.path.decode()]


def test_spans_and_what_their_digests_are_of() -> None:
    made = layer()
    ztoc = parse_ztoc(made.ztoc)
    table = ztoc.layer.table
    bits = set()
    for number, start in enumerate(ztoc.starts):
        span = table.span(number)
        bits.add(span.bit)
        stored = made.blob[span.blob_offset : span.blob_offset + span.blob_length]
        window = made.tar[max(0, start - MAX_WINDOW) : start].rjust(MAX_WINDOW, b"\0")
        assert table.window(number) == window
        assert span.codec is Codec.GZIP_STRETCH
        assert span.digest == digest_input(
            hashlib.sha256(stored).digest(), hashlib.sha256(window).digest()
        )
    assert len(bits) > 3


def test_another_window_or_bit_is_another_device() -> None:
    """The same compressed bytes would decode to others: a kernel's cache must not mix them up."""
    made = layer()
    name = parse_ztoc(made.ztoc).layer.table.name
    second = made.point(1)
    names = {name}
    for at in (second + 16, second + 17 + MAX_WINDOW - 1, second + 17):
        lie = bytearray(made.ztoc)
        lie[at] = lie[at] % 7 + 1 if at == second + 16 else lie[at] ^ 1
        names.add(parse_ztoc(bytes(lie)).layer.table.name)
    assert len(names) == 4


def test_other_bytes_of_the_blob_are_another_device() -> None:
    """Though lengths and digests are the same."""
    made = layer()
    table = parse_ztoc(made.ztoc).layer.table
    moved = bytearray(table.data)
    at = bytes(moved).index(
        struct.pack("<2Q", table.span(0).blob_offset, table.span(1).blob_offset)
    )
    moved[at] += 1
    assert DeviceTable(bytes(moved)).name != table.name


def test_spans_that_no_file_needs_are_left_out() -> None:
    entries = [(regular(b"late", 10), 4096)]
    ztoc = parse_ztoc(make(entries))
    assert ztoc.starts == [2000]
    assert ztoc.layer.table.span(0).blob_length == 400


def test_file_in_two_spans_and_one_in_the_second() -> None:
    entries = [
        (regular(b"long", 1900), 512),
        (regular(b"next", 1), 3072),
        (regular(b"no", 0), 4608),
    ]
    ztoc = parse_ztoc(make(entries))
    table = ztoc.layer.table
    extents = [table.extent(number) for number in range(table.extent_count)]
    assert [(e.device_offset, e.length, e.span, e.inner_offset) for e in extents] == [
        (0, 1488, 0, 512), (1488, 412, 1, 0), (4096, 1, 1, 1072),
    ]  # fmt: skip


def test_whiteout_with_bytes() -> None:
    ztoc = parse_ztoc(make([(regular(b"dir/.wh.old", 10), 512)]))
    assert ztoc.layer.entries == [Entry(b"dir/old", Kind.WHITEOUT)]
    assert ztoc.layer.table.size == 0


def test_layer_that_is_not_compressed() -> None:
    tar = make_tar(FILES)
    ztoc = parse_ztoc(make_ztoc(make_stream_index(tar, 4096), [], 4096))
    table = ztoc.layer.table
    assert {table.span(number).codec for number in range(table.span_count)} == {Codec.RAW}
    name = parse_stream_index(make_stream_index(tar, 4096)).table.name
    assert table.name == name


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (
            [(regular(b"a", 1), 0)],
            "zTOC: b'a' has bytes 0 to 1 of the tar's 5120, behind 0 and a header",
        ),
        (
            [(regular(b"a", 1), 513)],
            "zTOC: b'a' has bytes 513 to 514 of the tar's 5120, behind 0 and a header",
        ),
        (
            [(regular(b"a", 513), 512), (regular(b"b", 1), 1536)],
            "zTOC: b'b' has bytes 1536 to 1537 of the tar's 5120, behind 1536 and a header",
        ),
        (
            [(regular(b"b", 1), 2048), (regular(b"a", 1), 512)],
            "zTOC: b'a' has bytes 512 to 513 of the tar's 5120, behind 2560 and a header",
        ),
        (
            [(regular(b"a", TAR), 512)],
            "zTOC: b'a' has bytes 512 to 5632 of the tar's 5120, behind 0 and a header",
        ),
        (
            [(regular(b"a", -1), 512)],
            "zTOC: b'a' has bytes 512 to 511 of the tar's 5120, behind 0 and a header",
        ),
        (
            [(Entry(b"a", Kind.DIRECTORY), -512)],
            "zTOC: b'a' has bytes -512 to -512 of the tar's 5120, behind 0 and a header",
        ),
        ([(regular(b"../a", 1), 512)], "layer entry: path b'../a' contains '..'"),
        ([(regular(b"a/../b", 1), 512)], "layer entry: path b'a/../b' contains '..'"),
        ([(regular(b"", 1), 512)], "layer entry: the root is a regular"),
    ],
)
def test_members_that_lie(entries: list[tuple[Entry, int]], expected: str) -> None:
    assert problem(make(entries)) == expected


def test_bytes_that_no_span_has() -> None:
    """Of a tar that is not compressed, it is not the tar's size that counts but the blob's."""
    for entry, at in ((regular(b"a", 600), 512), (regular(b"a", 10), 1024)):
        data = make([(entry, at)], points=plain_points(256, 900), algorithm=PLAIN, digests=4)
        missing = max(at, 900)
        assert problem(data) == f"zTOC: no span has byte {missing} of the tar"


def test_span_of_an_impossible_size() -> None:
    entries = [(regular(b"a", 10), 4096)]
    for data in (make(entries, tar_size=1 << 40), make(entries, blob_size=1 << 40)):
        assert problem(data).startswith("span: impossible position 500+")


@given(st.data())
@settings(max_examples=300)
def test_damaged_anywhere(data: st.DataObject) -> None:
    good = make([(regular(b"long", 1900), 512), (regular(b"next", 1), 3072)])
    at = data.draw(st.integers(0, len(good) - 1))
    if data.draw(st.booleans()):
        at %= 400  # not only in windows
    damaged = bytearray(good)
    damaged[at] ^= data.draw(st.integers(1, 255))
    for one in (bytes(damaged), good[:at]):
        try:
            assert parse_ztoc(one).layer.table.size % 4096 == 0
        except FormatError:
            continue


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    try:
        assert parse_ztoc(data).starts == []
    except FormatError:
        assert True
