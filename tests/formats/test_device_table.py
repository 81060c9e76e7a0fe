"""Device tables: rules, queries, names and hostile bytes."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyimg_formats import device_table
from lazyimg_formats.device_table import (
    BLOCK_SIZE,
    HEADER_SIZE,
    MAX_BLOB_SIZE,
    MAX_DEVICE_SIZE,
    MAX_SKIP,
    MAX_SPAN_SIZE,
    MAX_STORED_SPAN_SIZE,
    MAX_WINDOW,
    Codec,
    DeviceColumns,
    DeviceTable,
    Extent,
    Hash,
    Span,
    find_windows,
    serialize_device_table,
)
from lazyimg_formats.errors import FormatError
from tests.fakes.devices import devices

if TYPE_CHECKING:
    from tests.fakes.devices import Device

DIGEST = bytes(range(32))
EXTENTS = [Extent(0, 100, 0, 0), Extent(4096, 8192, 0, 100), Extent(16384, 5, 1, 3)]
SPANS = [Span(7, 50, 8292, DIGEST, Codec.ZSTD), Span(57, 8, 8, DIGEST[::-1], Codec.RAW)]
SIZE = 5 * BLOCK_SIZE
DATA = serialize_device_table(SIZE, EXTENTS, SPANS)

OFFSET, LENGTH, SPAN, INNER = 64, 64 + 24, 64 + 24 + 16, 64 + 24 + 32
SPAN_LENGTH, SPAN_DIGEST = 64 + 24 + 48, 64 + 24 + 48 + 8
BLOB_OFFSET, BLOB_LENGTH, CODEC = SPAN_DIGEST + 64, SPAN_DIGEST + 80, SPAN_DIGEST + 88


def patched(position: int, layout: str, *values: int, data: bytes = DATA) -> bytes:
    raw = bytearray(data)
    struct.pack_into(layout, raw, position, *values)
    return bytes(raw)


PART_SPANS = [SPANS[0], Span(7, 50, 8, DIGEST[::-1], Codec.GZIP, 8292)]
PARTS = serialize_device_table(SIZE, EXTENTS, PART_SPANS)
SKIP = CODEC + 8

TINY = patched(LENGTH, "<3I", 1, 1, 1, data=patched(INNER, "<3I", 0, 0, 0))


def test_values_come_back() -> None:
    table = DeviceTable(DATA)
    assert table.size == SIZE
    assert [table.extent(i) for i in range(table.extent_count)] == EXTENTS
    assert [table.span(i) for i in range(table.span_count)] == SPANS
    assert [table.blob_range(i) for i in range(2)] == [(7, 50), (57, 8)]
    assert [table.span_length(i) for i in range(2)] == [8292, 8]
    assert table.data_size() == 100 + 8192 + 5
    assert table.blob_bytes() == 58
    assert table.blob_end() == 65
    assert table.data == DATA
    assert table.data.readonly


def test_parts_of_one_range_of_the_blob() -> None:
    table = DeviceTable(PARTS)
    columns = patched(BLOB_OFFSET + 8, "<Q", 7)
    columns = patched(BLOB_LENGTH + 4, "<I", 50, data=columns)
    columns = patched(CODEC + 1, "<B", 2, data=columns)
    assert columns + bytes(6) + struct.pack("<2I", 0, 8292) == PARTS
    assert [table.span(i) for i in range(2)] == PART_SPANS
    assert (table.has_parts, DeviceTable(DATA).has_parts) == (True, False)
    assert (table.blob_bytes(), table.blob_end()) == (50, 57)
    assert table.name == DeviceTable(DATA).name


@given(devices())
def test_any_table_comes_back(device: Device) -> None:
    table = device.table
    extents = [table.extent(i) for i in range(table.extent_count)]
    spans = [table.span(i) for i in range(table.span_count)]
    again = DeviceTable(serialize_device_table(table.size, extents, spans))
    assert again.data == table.data
    assert again.name == table.name


def test_bytes_are_laid_out_as_documented() -> None:
    columns = b"".join(
        [
            struct.pack("<8sQQQ32x", b"lazydev1", SIZE, 3, 2),
            struct.pack("<3Q", 0, 4096, 16384),
            struct.pack("<3I4x", 100, 8192, 5),
            struct.pack("<3I4x", 0, 0, 1),
            struct.pack("<3I4x", 0, 100, 3),
            struct.pack("<2I", 8292, 8),
            DIGEST + DIGEST[::-1],
            struct.pack("<2Q", 7, 57),
            struct.pack("<2I", 50, 8),
            b"\1\0",
        ]
    )
    assert columns == DATA


def test_device_without_extents() -> None:
    table = DeviceTable(serialize_device_table(BLOCK_SIZE, [], []))
    assert (table.extent_count, table.span_count, table.data_size()) == (0, 0, 0)
    assert (table.blob_bytes(), table.blob_end()) == (0, 0)
    assert not table.extents_in(0, BLOCK_SIZE)
    assert not table.spans_in(0, BLOCK_SIZE)


def test_name_commits_to_layout_and_digests_but_not_to_the_blob() -> None:
    name = DeviceTable(DATA).name
    assert name == hashlib.sha256(DATA[:BLOB_OFFSET]).hexdigest()
    moved = [Span(1 << 40, 9, 8292, DIGEST, Codec.GZIP), SPANS[1]]
    assert DeviceTable(serialize_device_table(SIZE, EXTENTS, moved)).name == name
    other = [Span(7, 50, 8292, DIGEST[::-1], Codec.ZSTD), SPANS[1]]
    assert DeviceTable(serialize_device_table(SIZE, EXTENTS, other)).name != name
    assert DeviceTable(serialize_device_table(SIZE + BLOCK_SIZE, EXTENTS, SPANS)).name != name
    shifted = [*EXTENTS[:2], Extent(16385, 5, 1, 3)]
    assert DeviceTable(serialize_device_table(SIZE, shifted, SPANS)).name != name


def test_expected_name() -> None:
    table = DeviceTable(DATA)
    assert DeviceTable(memoryview(DATA), expected_name=table.name).extent(2) == EXTENTS[2]
    with pytest.raises(FormatError, match=f"its name is {table.name}, expected 00"):
        DeviceTable(DATA, expected_name="00")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "0 bytes are less than a header"),
        (b"x" + DATA[1:], "magic is b'xazydev1', expected b'lazydev1'"),
        (patched(8, "<Q", 4095), "impossible device size 4095"),
        (patched(8, "<Q", MAX_DEVICE_SIZE + 4096), "impossible device size 17592186048512"),
        (patched(16, "<Q", 1 << 40), "1099511627776 extents, 2 spans are over the limit"),
        (patched(24, "<Q", 1 << 40), "3 extents, 1099511627776 spans are over the limit"),
        (patched(24, "<Q", 3), f"expected {len(DATA) + 57} bytes, got {len(DATA)}"),
        (patched(63, "<B", 1), "padding is not zero"),
        (patched(LENGTH + 12, "<I", 1), "padding is not zero"),
        (patched(OFFSET + 8, "<Q", 99), "extent 1 is empty or overlaps the one before"),
        (patched(LENGTH, "<I", 0), "extent 0 is empty or overlaps the one before"),
        (patched(SPAN, "<I", 1), "extent 0 uses span 1 out of order"),
        (patched(SPAN + 8, "<I", 2), "extent 2 uses span 2 out of order"),
        (patched(SPAN, "<3I", 0, 1, 0, data=TINY), "extent 2 uses span 0 out of order"),
        (patched(SPAN + 8, "<I", 0, data=patched(INNER + 8, "<I", 0)), "2 spans, 1 used"),
        (patched(INNER + 4, "<I", 101), "extent 1 reaches past its span 0"),
        (patched(OFFSET + 16, "<Q", SIZE - 4), "extents end at 20481, the device at 20480"),
        (patched(SPAN_LENGTH, "<I", MAX_SPAN_SIZE + 1), "a span of 67108865 bytes is too large"),
        (patched(BLOB_OFFSET, "<Q", MAX_BLOB_SIZE + 1), "a span lies where no blob can have it"),
        (patched(BLOB_LENGTH, "<I", 0), "a span lies where no blob can have it"),
        (
            patched(BLOB_LENGTH, "<I", MAX_STORED_SPAN_SIZE + 1),
            "a span lies where no blob can have it",
        ),
        (patched(CODEC, "<B", 9), "unknown codec 9"),
        (patched(SKIP - 1, "<B", 1, data=PARTS), "padding is not zero"),
        (patched(SKIP, "<I", 9, data=PARTS), "bytes before a whole span of codec 1"),
        (patched(SKIP + 4, "<I", 0, data=PARTS), "0 bytes before a span, at most 67108864"),
        (
            patched(SKIP + 4, "<I", MAX_SKIP + 1, data=PARTS),
            "67108865 bytes before a span, at most 67108864",
        ),
        (PARTS[:-1], "expected 234 bytes, got 247"),
        (patched(CODEC, "<B", 0x11), "a span of codec 1 at bit 1"),
        (patched(CODEC, "<B", 0x84), "a span of codec 4 at bit 8"),
        (patched(32, "<Q", 1 << 40), "1099511627776 bytes of windows of 2 spans"),
    ],
)
def test_broken_rule(data: bytes, problem: str) -> None:
    with pytest.raises(FormatError) as caught:
        DeviceTable(data)
    assert str(caught.value) == f"device table: {problem}"


def test_extent_beyond_the_last_span() -> None:
    with pytest.raises(FormatError, match="extent 0 uses span 0 out of order"):
        DeviceTable(serialize_device_table(BLOCK_SIZE, [Extent(0, 1, 0, 0)], []))


def test_truncated_at_every_byte_and_with_a_trailing_one() -> None:
    name = DeviceTable(DATA).name
    for end in range(len(DATA)):
        with pytest.raises(FormatError):
            DeviceTable(DATA[:end])
        with pytest.raises(FormatError):
            DeviceTable(DATA[:end], expected_name=name)
    with pytest.raises(FormatError, match=f"got {len(DATA) + 1}"):
        DeviceTable(DATA + b"\0")


@given(st.integers(0, len(DATA) * 8 - 1))
def test_flipped_bit_is_refused_or_changes_only_where_the_blob_has_it(bit: int) -> None:
    raw = bytearray(DATA)
    raw[bit // 8] ^= 1 << bit % 8
    name = DeviceTable(DATA).name
    try:
        table = DeviceTable(bytes(raw), expected_name=name)
    except FormatError:
        return
    assert bit // 8 >= BLOB_OFFSET
    assert [table.extent(i) for i in range(3)] == EXTENTS
    assert [table.span(i).digest for i in range(2)] == [DIGEST, DIGEST[::-1]]


@given(st.binary(max_size=300) | st.binary(max_size=200).map(lambda tail: DATA[:88] + tail))
def test_any_bytes_give_a_table_or_format_error(data: bytes) -> None:
    try:
        table = DeviceTable(data)
    except FormatError:
        return
    assert len(table.name) == 64


@given(devices(), st.integers(0, 40), st.integers(1, 20))
@settings(deadline=None)
def test_queries_agree_with_a_search(device: Device, block: int, blocks: int) -> None:
    table = device.table
    offset, length = block * 2048, blocks * 2048
    extents = [table.extent(i) for i in range(table.extent_count)]
    touched = [
        i
        for i, extent in enumerate(extents)
        if extent.device_offset < offset + length and extent.device_offset + extent.length > offset
    ]
    assert list(table.extents_in(offset, length)) == touched
    assert list(table.spans_in(offset, length)) == sorted({extents[i].span for i in touched})
    spans = range(min(1, table.span_count), table.span_count)
    used = [i for i, extent in enumerate(extents) if extent.span in spans]
    assert list(table.extents_of(spans)) == used


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ((0, 1, 1, b"short"), "digest of 5 bytes, expected 32"),
        ((-1, 1, 1, DIGEST), r"impossible position -1\+1 or length 1"),
        ((MAX_BLOB_SIZE + 1, 1, 1, DIGEST), "impossible position"),
        ((0, 0, 1, DIGEST), r"impossible position 0\+0 or length 1"),
        ((0, MAX_STORED_SPAN_SIZE + 1, 1, DIGEST), "impossible position"),
        ((0, 1, 0, DIGEST), r"impossible position 0\+1 or length 0"),
        ((0, 1, MAX_SPAN_SIZE + 1, DIGEST), "or length 67108865"),
    ],
)
def test_impossible_span(values: tuple[int, int, int, bytes], problem: str) -> None:
    columns = DeviceColumns()
    with pytest.raises(FormatError, match=problem):
        columns.add_span(*values, Codec.RAW)
    assert columns.span_count == 0
    assert DeviceTable(columns.serialize(0)).size == 0


@pytest.mark.parametrize(
    ("codec", "skip"),
    [(Codec.RAW, 1), (Codec.ZSTD, 1), (Codec.GZIP, -1), (Codec.GZIP, MAX_SKIP + 1)],
)
def test_impossible_skip(codec: Codec, skip: int) -> None:
    columns = DeviceColumns()
    with pytest.raises(FormatError, match=f"^span: {skip} decoded bytes before it, at most"):
        columns.add_span(0, 1, 1, DIGEST, codec, skip)
    assert columns.span_count == 0
    columns.add_span(0, 1, 1, DIGEST, Codec.ZSTD_PART, MAX_SKIP)


@pytest.mark.parametrize(
    "values",
    [
        (-1, 1, 0, 0),
        (MAX_DEVICE_SIZE + 1, 1, 0, 0),
        (0, 0, 0, 0),
        (0, MAX_SPAN_SIZE + 1, 0, 0),
        (0, 1, -1, 0),
        (0, 1, 1 << 24, 0),
        (0, 1, 0, -1),
        (0, 1, 0, MAX_SPAN_SIZE + 1),
    ],
)
def test_impossible_extent(values: tuple[int, int, int, int]) -> None:
    columns = DeviceColumns()
    with pytest.raises(FormatError, match=r"^extent: impossible range "):
        columns.add_extent(*values)
    assert DeviceTable(columns.serialize(0)).extent_count == 0


def test_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_table, "MAX_SPANS", 1)
    monkeypatch.setattr(device_table, "MAX_EXTENTS", 1)
    columns = DeviceColumns()
    assert columns.add_span(0, 1, 1, DIGEST, Codec.RAW) == 0
    columns.add_extent(0, 1, 0, 0)
    with pytest.raises(FormatError, match="span: more than 1 spans"):
        columns.add_span(0, 1, 1, DIGEST, Codec.RAW)
    with pytest.raises(FormatError, match="extent: more than 1 extents"):
        columns.add_extent(1, 1, 0, 0)
    with pytest.raises(FormatError, match="3 extents, 2 spans are over the limit"):
        DeviceTable(DATA)


@pytest.mark.parametrize("size", [-4096, 1, MAX_DEVICE_SIZE + BLOCK_SIZE])
def test_impossible_size(size: int) -> None:
    with pytest.raises(FormatError, match=f"impossible device size {size}"):
        serialize_device_table(size, [], [])


WINDOWS = [b"", zstandard.compress(b"before " * 100), zstandard.compress(bytes(MAX_WINDOW))]
WINDOW_LENGTH = HEADER_SIZE + 24 + 16 + 16 + 16 + 16 + 96 + 24 + 16 + 8
HEAD_END = WINDOW_LENGTH + 12


def windowed() -> bytes:
    columns = DeviceColumns()
    for number, window in enumerate(WINDOWS):
        columns.add_span(number, 2, 10, DIGEST, Codec.DEFLATE, bit=7 * bool(window), window=window)
        columns.add_extent(number * BLOCK_SIZE, 10, number, 0)
    return columns.serialize(3 * BLOCK_SIZE)


def test_windows_come_back() -> None:
    data = windowed()
    table = DeviceTable(data)
    assert [table.window(number) for number in range(3)] == [
        b"", b"before " * 100, bytes(MAX_WINDOW),
    ]  # fmt: skip
    assert table.span(1) == Span(1, 2, 10, DIGEST, Codec.DEFLATE, bit=7)
    assert table.span(0).bit == 0
    assert DeviceTable(data, expected_name=table.name).data == data
    assert DeviceTable(DATA).window(1) == b""


def test_windows_are_read_when_they_are_wanted() -> None:
    data = windowed()
    wanted: list[tuple[int, int]] = []

    def read(offset: int, length: int) -> bytes:
        wanted.append((offset, length))
        return data[offset : offset + length]

    head = data[: find_windows(data[:HEADER_SIZE])]
    table = DeviceTable(head, read=read)
    assert table.name == DeviceTable(data).name
    assert wanted == []
    assert table.window(2) == bytes(MAX_WINDOW)
    assert wanted == [(len(data) - len(WINDOWS[2]), len(WINDOWS[2]))]
    with pytest.raises(FormatError, match=f"expected {len(data)} bytes, got {len(head)}"):
        DeviceTable(head)
    with pytest.raises(FormatError, match=f"expected {len(head)} bytes, got {len(data)}"):
        DeviceTable(data, read=read)
    assert find_windows(DATA[:HEADER_SIZE]) is None


def test_window_that_is_damaged() -> None:
    data = windowed()
    table = DeviceTable(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(FormatError, match="zstd frame"):
        table.window(2)
    assert DeviceTable(data).name == table.name


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (
            patched(WINDOW_LENGTH, "<I", 1, data=windowed()),
            "its windows are not as long as it says",
        ),
        (
            patched(
                WINDOW_LENGTH, "<3I", 0, 0, 40_000,
                data=patched(32, "<Q", 40_000, data=windowed().ljust(HEAD_END + 40_000, b"\0")),
            )[: HEAD_END + 40_000],
            "a window of 40000 bytes is too large",
        ),
    ],
)  # fmt: skip
def test_windows_that_break_a_rule(data: bytes, problem: str) -> None:
    with pytest.raises(FormatError) as caught:
        DeviceTable(data)
    assert str(caught.value) == f"device table: {problem}"


@pytest.mark.parametrize(("bit", "window"), [(8, b""), (-1, b""), (0, bytes(MAX_WINDOW + 1025))])
def test_impossible_entry(bit: int, window: bytes) -> None:
    columns = DeviceColumns()
    with pytest.raises(FormatError, match=f"at bit {bit}, with a window of {len(window)} by"):
        columns.add_span(0, 1, 1, DIGEST, Codec.DEFLATE, bit=bit, window=window)


def test_name_covers_everything_where_digests_are_of_what_is_decoded() -> None:
    """Else the same compressed bytes, entered elsewhere, would have the same name."""
    spans = [replace(span, codec=Codec.GZIP_STRETCH, bit=3) for span in SPANS]
    changes: list[dict[str, object]] = [
        {}, {"bit": 4}, {"bit": 0}, {"blob_offset": 8}, {"blob_length": 51}, {"digest": bytes(32)},
        {"codec": Codec.DEFLATE},
    ]  # fmt: skip
    names = {
        DeviceTable(
            serialize_device_table(
                SIZE,
                EXTENTS,
                [replace(spans[0], **change), spans[1]],  # type: ignore[arg-type]
            )
        ).name
        for change in changes
    }
    assert len(names) == len(changes)
    plain = [replace(span, codec=Codec.DEFLATE, bit=3) for span in SPANS]
    table = DeviceTable(serialize_device_table(SIZE, EXTENTS, plain))
    assert table.name == DeviceTable(DATA).name
    assert table.name not in names


def test_name_of_inputs_is_expected_when_it_is_read_again() -> None:
    spans = [replace(span, codec=Codec.GZIP_STRETCH, bit=3) for span in SPANS]
    data = serialize_device_table(SIZE, EXTENTS, spans)
    name = DeviceTable(data).name
    assert DeviceTable(data, expected_name=name).name == name
    with pytest.raises(FormatError, match="its name is "):
        DeviceTable(DATA, expected_name=name)


def stretches(parts: int = 3) -> bytes:
    """Give a table of parts of two stretches."""
    columns = DeviceColumns(Hash.BLAKE3)
    for number in range(2 * parts):
        first = number % parts == 0
        columns.add_span(
            7 + number // parts, 9, 10, DIGEST, Codec.DEFLATE_PART, 20 * (number % parts), bit=3,
            window=WINDOWS[1 + number // parts] if first else b"",
        )  # fmt: skip
        columns.add_extent(number * BLOCK_SIZE, 10, number, 0)
    return columns.serialize(2 * parts * BLOCK_SIZE)


def test_parts_of_stretches() -> None:
    data = stretches()
    table = DeviceTable(data)
    assert table.has_parts
    assert table.span(4) == Span(
        8, 9, 10, DIGEST, Codec.DEFLATE_PART, skip=20, bit=3, hash=Hash.BLAKE3
    )
    before = b"before " * 100
    assert [table.window(number) for number in range(6)] == [before] * 3 + [bytes(MAX_WINDOW)] * 3
    head = data[: find_windows(data[:HEADER_SIZE])]
    later = DeviceTable(head, read=lambda offset, length: data[offset : offset + length])
    assert later.name == table.name
    assert later.window(5) == bytes(MAX_WINDOW)
    assert later.span(5).skip == 40
    for end in (len(head), len(data) - 1):
        with pytest.raises(FormatError, match=f"expected {len(data)} bytes, got {end}"):
            DeviceTable(data[:end])


def test_parts_that_are_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_table, "MAX_STRETCH_PARTS", 1)
    table = DeviceTable(stretches())
    assert [bool(table.window(number)) for number in range(3)] == [True, True, False]


def test_name_commits_to_the_hash() -> None:
    data = patched(40, "<I", 1)
    assert DeviceTable(data).hash is Hash.BLAKE3
    assert DeviceTable(data).name != DeviceTable(DATA).name


@pytest.mark.parametrize(("hashing", "flags"), [(2, 0), (0, 1), (0, 2)])
def test_unknown_hash_or_flags(hashing: int, flags: int) -> None:
    with pytest.raises(FormatError, match=f"unknown hash {hashing} or flags {flags:#x}"):
        DeviceTable(patched(40, "<II", hashing, flags))
    with pytest.raises(FormatError, match="unknown hash 1 or flags 0x2"):
        DeviceTable(patched(44, "<I", 2, data=stretches()))


def test_digests() -> None:
    assert Hash.SHA256.digest(b"x") == hashlib.sha256(b"x").digest()
    assert Hash.BLAKE3.digest(b"").hex().startswith("af1349b9f5f9a1a6a0404dea36dcc949")
