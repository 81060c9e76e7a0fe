"""Chunk formats and arrays, both ways."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyimg_formats.erofs.chunk import (
    Chunk,
    ChunkFormat,
    parse_chunk_format,
    parse_chunks,
    serialize_chunk_format,
    serialize_chunks,
)
from lazyimg_formats.errors import FormatError

INDEXES = ChunkFormat(16, indexes=True)
BLOCK_MAP = ChunkFormat(12, indexes=False)
blocks = st.none() | st.integers(0, 2**32 - 2)


@pytest.mark.parametrize(
    ("value", "block_bits", "expected"),
    [
        (0x00, 12, ChunkFormat(12, indexes=False)),
        (0x24, 12, ChunkFormat(16, indexes=True)),
        (0x3F, 16, ChunkFormat(47, indexes=True)),
        (0x1F, 9, ChunkFormat(40, indexes=False)),
    ],
)
def test_format(value: int, block_bits: int, expected: ChunkFormat) -> None:
    assert parse_chunk_format(value, block_bits) == expected
    assert serialize_chunk_format(expected, block_bits) == value


def test_format_is_in_the_lower_half() -> None:
    assert parse_chunk_format(0xABCD0024, 12) == INDEXES


@pytest.mark.parametrize("value", [0x40, 0x8000, 0xFFFF])
def test_unknown_format(value: int) -> None:
    with pytest.raises(FormatError, match=f"^erofs_inode_chunk_info: unknown format {value:#x}$"):
        parse_chunk_format(value, 12)


@pytest.mark.parametrize("bits", [-5, 11, 44])
def test_chunks_of_an_impossible_size(bits: int) -> None:
    with pytest.raises(FormatError) as caught:
        serialize_chunk_format(ChunkFormat(bits, indexes=True), 12)
    assert str(caught.value) == f"erofs_inode_chunk_info: chunks of 2**{bits} bytes"


@pytest.mark.parametrize(("size", "count"), [(0, 0), (1, 1), (65536, 1), (65537, 2)])
def test_count(size: int, count: int) -> None:
    assert INDEXES.count(size) == count


def test_too_many_chunks() -> None:
    assert BLOCK_MAP.count(4096 << 24) == 1 << 24
    with pytest.raises(
        FormatError, match=r"^erofs_inode_chunk_info: 16777217 chunks, at most 16777216$"
    ):
        BLOCK_MAP.count((4096 << 24) + 1)


def test_indexes_as_bytes() -> None:
    array = [Chunk(1, 0x11223344), Chunk(0x0203, 0), Chunk(0, None)]
    data = bytes.fromhex("0000 0100 44332211  0000 0302 00000000  0000 0000 ffffffff")
    assert serialize_chunks(array, INDEXES) == data
    assert parse_chunks(data, INDEXES) == array
    assert INDEXES.element_size == 8


def test_block_map_as_bytes() -> None:
    array = [Chunk(0, 0x11223344), Chunk(0, None)]
    data = bytes.fromhex("44332211 ffffffff")
    assert serialize_chunks(array, BLOCK_MAP) == data
    assert parse_chunks(data, BLOCK_MAP) == array
    assert BLOCK_MAP.element_size == 4


def test_hole_in_all_bits() -> None:
    assert parse_chunks(b"\xff" * 8, INDEXES) == [Chunk(0xFFFF, None)]


@pytest.mark.parametrize("data", [bytes.fromhex("0100 0000 00000000"), b"\xff\xff" + bytes(6)])
def test_block_of_48_bits(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"^erofs_inode_chunk_index: startblk_hi is "):
        parse_chunks(data, INDEXES)


@pytest.mark.parametrize("chunks", [INDEXES, BLOCK_MAP])
def test_truncated_array(chunks: ChunkFormat) -> None:
    for size in range(2 * chunks.element_size):
        if size % chunks.element_size:
            with pytest.raises(
                FormatError, match=f"^erofs_inode_chunk_index: an array of {size} bytes$"
            ):
                parse_chunks(bytes(size), chunks)
        else:
            assert len(parse_chunks(bytes(size), chunks)) == size // chunks.element_size


@pytest.mark.parametrize("chunk", [Chunk(0, 2**32), Chunk(65536, 1), Chunk(-1, 1), Chunk(0, -1)])
def test_index_that_does_not_fit(chunk: Chunk) -> None:
    with pytest.raises(FormatError, match=r"^erofs_inode_chunk_index: "):
        serialize_chunks([chunk], INDEXES)


def test_block_that_does_not_fit() -> None:
    with pytest.raises(FormatError, match=r"^erofs_inode_chunk_index: "):
        serialize_chunks([Chunk(0, 2**32)], BLOCK_MAP)


def test_device_in_a_block_map() -> None:
    with pytest.raises(FormatError, match=r"a block map cannot name a device$"):
        serialize_chunks([Chunk(1, 1)], BLOCK_MAP)


@settings(max_examples=50)
@given(st.lists(st.builds(Chunk, st.integers(0, 65535), blocks)))
def test_round_trip_of_indexes(array: list[Chunk]) -> None:
    assert parse_chunks(serialize_chunks(array, INDEXES), INDEXES) == array


@settings(max_examples=50)
@given(st.lists(st.builds(Chunk, st.just(0), blocks)))
def test_round_trip_of_a_block_map(array: list[Chunk]) -> None:
    assert parse_chunks(serialize_chunks(array, BLOCK_MAP), BLOCK_MAP) == array


@given(st.binary(max_size=100), st.booleans(), st.integers(0, 2**32 - 1), st.integers(9, 16))
def test_any_bytes(data: bytes, indexes: bool, value: int, bits: int) -> None:  # noqa: FBT001
    try:
        chunks = parse_chunk_format(value, bits)
        assert parse_chunk_format(serialize_chunk_format(chunks, bits), bits) == chunks
    except FormatError:
        pass
    try:
        array = parse_chunks(data, ChunkFormat(12, indexes=indexes))
    except FormatError:
        return
    assert len(array) * (8 if indexes else 4) == len(data)
