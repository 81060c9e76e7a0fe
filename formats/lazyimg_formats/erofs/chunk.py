"""Chunk-based files: the format in i_u, and the array behind the inode.

The array has one element for each chunk, either 8-byte indexes with a device number, or 4-byte
blocks in the unified space. It begins at a multiple of its element's size.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lazyimg_formats.erofs.layout import (
    CHUNK_FORMAT_ALL,
    CHUNK_FORMAT_BLKBITS_MASK,
    CHUNK_FORMAT_INDEXES,
    EROFS_NULL_ADDR,
    MAX_CHUNKS,
    block_map_entry,
    erofs_inode_chunk_index,
)
from lazyimg_formats.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Chunk(NamedTuple):
    """Where a chunk lies.

    Attributes:
        device: 0: the unified space, N: slot N - 1.
        block: in blocks of the image's size; None: a hole.
    """

    device: int
    block: int | None


@dataclass(frozen=True, slots=True)
class ChunkFormat:
    """erofs_inode_chunk_info.

    Attributes:
        bits: a chunk has 2**bits bytes.
        indexes: the array has 8-byte indexes, not 4-byte blocks.
    """

    bits: int
    indexes: bool

    @property
    def element_size(self) -> int:
        """Bytes of one element of the array, and its alignment."""
        return erofs_inode_chunk_index.size if self.indexes else block_map_entry.size

    def count(self, size: int) -> int:
        """Give how many chunks a file of `size` bytes has.

        Raises:
            FormatError: more than `MAX_CHUNKS`.
        """
        count = -(-size >> self.bits)
        if count > MAX_CHUNKS:
            raise FormatError("erofs_inode_chunk_info", f"{count} chunks, at most {MAX_CHUNKS}")
        return count


def parse_chunk_format(value: int, block_bits: int) -> ChunkFormat:
    """Give the meaning of a chunk-based inode's i_u.

    Raises:
        FormatError: bits that this module does not know.
    """
    if value & 0xFFFF & ~CHUNK_FORMAT_ALL:
        raise FormatError("erofs_inode_chunk_info", f"unknown format {value & 0xFFFF:#x}")
    bits = block_bits + (value & CHUNK_FORMAT_BLKBITS_MASK)
    return ChunkFormat(bits, bool(value & CHUNK_FORMAT_INDEXES))


def serialize_chunk_format(chunks: ChunkFormat, block_bits: int) -> int:
    """Give a chunk-based inode's i_u.

    Raises:
        FormatError: chunks of this size cannot be.
    """
    over = chunks.bits - block_bits
    if not 0 <= over <= CHUNK_FORMAT_BLKBITS_MASK:
        raise FormatError("erofs_inode_chunk_info", f"chunks of 2**{chunks.bits} bytes")
    return over | (CHUNK_FORMAT_INDEXES if chunks.indexes else 0)


def parse_chunks(data: bytes | memoryview, chunks: ChunkFormat) -> list[Chunk]:
    """Give the chunks in the bytes of an array.

    Raises:
        FormatError: part of an element is left over, or a block needs 48 bits.
    """
    if len(data) % chunks.element_size:
        raise FormatError("erofs_inode_chunk_index", f"an array of {len(data)} bytes")
    if not chunks.indexes:
        return [Chunk(0, _block(block)) for (block,) in block_map_entry.iter_unpack(data)]
    found = []
    for high, device, block in erofs_inode_chunk_index.iter_unpack(data):
        if high not in ({0, 0xFFFF} if block == EROFS_NULL_ADDR else {0}):
            raise FormatError("erofs_inode_chunk_index", f"startblk_hi is {high}")
        found.append(Chunk(device, _block(block)))
    return found


def _block(block: int) -> int | None:
    return None if block == EROFS_NULL_ADDR else block


def serialize_chunks(array: Sequence[Chunk], chunks: ChunkFormat) -> bytes:
    """Give an array's bytes.

    Raises:
        FormatError: a device or block that does not fit, or a device where there is no place.
    """
    blocks = [EROFS_NULL_ADDR if chunk.block is None else chunk.block for chunk in array]
    try:
        if chunks.indexes:
            return b"".join(
                erofs_inode_chunk_index.pack(0, chunk.device, block)
                for chunk, block in zip(array, blocks, strict=True)
            )
        if any(chunk.device for chunk in array):
            raise FormatError("erofs_inode_chunk_index", "a block map cannot name a device")
        return struct.pack(f"<{len(blocks)}I", *blocks)
    except struct.error as error:
        raise FormatError("erofs_inode_chunk_index", str(error)) from error
