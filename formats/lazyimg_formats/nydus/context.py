"""A blob's compression context: where each chunk is in the blob, and how it is decoded.

It is a table with an entry for each chunk, of version 1 (16 bytes) or 2 (24 bytes). Behind a table
of version 2 there may be *units*: what is decoded as a whole and holds several chunks. Either
batches, each compressed by itself, or stretches of a gzip member (zran), each with the 32 KiB
before it that it may refer to.

In a blob the table is compressed and a header of 4,096 bytes follows it (`decode_context`). A
bootstrap layer may have it as a file: decoded, padded to 4,096 bytes, and the header
(`split_context`).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import lz4.block

from lazyimg_formats.errors import FormatError
from lazyimg_formats.nydus.layout import (
    CONTEXT_HEADER,
    CONTEXT_MAGIC,
    MAX_CHUNK_SIZE,
    MAX_CHUNKS,
    MAX_CONTEXT,
    BlobFeatures,
    Compressor,
    ContextFlags,
    batch_context,
    blob_compression_context_header,
    chunk_info_v1,
    chunk_info_v2,
    zran_context,
)
from lazyimg_formats.zstd_frames import decode_frame

if TYPE_CHECKING:
    from lazyimg_formats.nydus.bootstrap import Blob

_OFFSET: Final = (1 << 40) - 1
_SIZE: Final = (1 << 24) - 1
_ADDRESS: Final = 0xFFF_FFFF_F000
_FLAGS_AT: Final = 56
_WINDOW: Final = 1 << 15


class Entry(NamedTuple):
    """A chunk.

    Attributes:
        offset: of its first byte in the blob; of a chunk in a batch: of the batch.
        stored: bytes in the blob; of a chunk in a batch, 0.
        address: where it is among the decoded chunks.
        length: bytes when decoded.
        flags: how it is stored.
        unit: number of the unit that it is in, if the flags say so.
        inner: decoded bytes of the unit before it.
    """

    offset: int
    stored: int
    address: int
    length: int
    flags: ContextFlags
    unit: int = 0
    inner: int = 0


class Batch(NamedTuple):
    """Chunks that were compressed together.

    Attributes:
        stored: bytes in the blob; if it is `length`, they are not compressed.
        length: bytes when decoded.
    """

    stored: int
    length: int


class Stretch(NamedTuple):
    """A stretch of a gzip blob.

    Attributes:
        offset: of its first byte in the blob.
        stored: bytes from there on.
        length: bytes when decoded.
        bits: of the byte before `offset`, as many of its highest as belong to the stretch.
        window: decoded bytes before it.
    """

    offset: int
    stored: int
    length: int
    bits: int
    window: memoryview


@dataclass(frozen=True, slots=True)
class Context:
    """A blob's context. Entries are checked when they are asked for.

    Attributes:
        blob: what it is of.
        count: entries.
        batches: of a blob with batches.
        stretches: of a blob that is a gzip layer.
    """

    blob: Blob
    count: int
    batches: tuple[Batch, ...]
    stretches: tuple[Stretch, ...]
    _table: memoryview

    def entry(self, index: int) -> Entry:
        """Give the entry of a chunk.

        Raises:
            FormatError: there is none, or it is impossible.
        """
        if index >= self.count:
            raise FormatError("context", f"chunk {index} of {self.count}")
        if BlobFeatures.CHUNK_INFO_V2 in self.blob.features:
            entry = self._parse_v2(index)
        else:
            entry = self._parse_v1(index)
        if entry.offset + entry.stored > self.blob.data_size:
            raise FormatError("context", f"chunk {index} ends behind its blob's chunks")
        return entry

    def _parse_v1(self, index: int) -> Entry:
        decoded, stored = chunk_info_v1.unpack_from(self._table, index * chunk_info_v1.size)
        length = (decoded >> 44 | (decoded & 0xF00) << 12) + 1
        size = (stored >> 44 | (stored >> 40 & 0xF) << 20) + 1
        flags = ContextFlags.COMPRESSED if size != length else ContextFlags(0)
        return Entry(stored & _OFFSET, size, decoded & _ADDRESS, length, flags)

    def _parse_v2(self, index: int) -> Entry:
        decoded, stored, data = chunk_info_v2.unpack_from(self._table, index * chunk_info_v2.size)
        flags = ContextFlags(decoded >> _FLAGS_AT)
        length = (decoded >> 32 & _SIZE) + 1
        size = stored >> 40 & _SIZE
        entry = Entry(
            stored & _OFFSET, size, (decoded & 0xFFFF_FFFF) << 12, length, flags,
            data >> 32, data & 0xFFFF_FFFF,
        )  # fmt: skip
        if ContextFlags.ENCRYPTED in flags:
            raise FormatError("context", f"chunk {index} is encrypted")
        if not flags & (ContextFlags.COMPRESSED | ContextFlags.BATCH) and size != length:
            raise FormatError("context", f"chunk {index} has {size} bytes for {length}")
        if not size and not self.blob.separate and ContextFlags.BATCH not in flags:
            raise FormatError("context", f"chunk {index} has no bytes")
        if ContextFlags.HAS_CRC32 in flags and not data & 0xFFFF_FFFF:
            raise FormatError("context", f"chunk {index} has no checksum")
        if ContextFlags.ZRAN in flags:
            self._check_unit(index, entry, self.stretches)
        if ContextFlags.BATCH in flags:
            self._check_unit(index, entry, self.batches)
        return entry

    def _check_unit(
        self, index: int, entry: Entry, units: tuple[Batch, ...] | tuple[Stretch, ...]
    ) -> None:
        if entry.unit >= len(units):
            raise FormatError("context", f"chunk {index} is in unit {entry.unit} of {len(units)}")
        if entry.inner + entry.length > units[entry.unit].length:
            raise FormatError("context", f"chunk {index} ends behind its unit")


def decode_context(blob: Blob, data: bytes) -> tuple[bytes, bytes]:
    """Give the table, decoded, and the header in the bytes that a blob has of them.

    Args:
        blob: whose it is.
        data: `blob.context_size` bytes and the header.

    Raises:
        FormatError: cut short or damaged.
    """
    if len(data) != blob.context_size + CONTEXT_HEADER or blob.context_length > MAX_CONTEXT:
        raise FormatError("context", f"{len(data)} bytes for {blob.context_length}")
    stored, header = data[: blob.context_size], data[blob.context_size :]
    try:
        table = _decompress(stored, blob.context_length, blob.context_compressor)
    except (zlib.error, lz4.block.LZ4BlockError) as error:
        raise FormatError("context", f"cannot be decoded: {error}") from error
    return table, header


def _decompress(data: bytes, length: int, compressor: Compressor) -> bytes:
    if compressor is Compressor.NONE:
        return data
    if compressor is Compressor.ZSTD:
        return decode_frame(data, length)
    if compressor is Compressor.GZIP:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(data, length)
    decoded: bytes = lz4.block.decompress(data, uncompressed_size=length)
    return decoded


def split_context(blob: Blob, data: bytes) -> tuple[bytes, bytes]:
    """Give table and header in the file that a bootstrap layer has of them.

    Raises:
        FormatError: it is not as long as the bootstrap says.
    """
    padded = -(-blob.context_length // CONTEXT_HEADER) * CONTEXT_HEADER
    if len(data) != padded + CONTEXT_HEADER:
        raise FormatError("context", f"a file of {len(data)} bytes for {blob.context_length}")
    return data[: blob.context_length], data[padded:]


def parse_context(blob: Blob, table: bytes, header: bytes) -> Context:
    """Give a blob's context.

    Args:
        blob: whose it is.
        table: decoded.
        header: what follows it.

    Raises:
        FormatError: they contradict each other, or what the bootstrap says of the blob.
    """
    raw = blob_compression_context_header.decode(header)
    if (
        raw.magic != CONTEXT_MAGIC
        or raw.magic2 != CONTEXT_MAGIC
        or not 0 < raw.ci_entries <= MAX_CHUNKS
        or raw.ci_entries != blob.chunk_count
        or raw.ci_compressor != blob.context_compressor
        or raw.ci_offset != blob.context_offset
        or raw.ci_compressed_size != blob.context_size
        or raw.ci_uncompressed_size != blob.context_length
        or len(table) != blob.context_length
    ):
        raise FormatError("context", "its header is not what the bootstrap says")
    view = memoryview(table)
    batches: tuple[Batch, ...] = ()
    stretches: tuple[Stretch, ...] = ()
    if BlobFeatures.BATCH in blob.features:
        batches = tuple(map(_parse_batch, batch_context.iter_unpack(_units(raw, view, 40))))
    elif BlobFeatures.ZRAN in blob.features:
        stretches = _parse_stretches(blob, raw, view)
    return Context(blob, raw.ci_entries, batches, stretches, view)


def _units(raw: Any, view: memoryview, size: int) -> memoryview:
    """Give the bytes of the units, behind the chunks' entries."""
    start, length = raw.ci_zran_offset, raw.ci_zran_count * size
    if (
        start != raw.ci_entries * chunk_info_v2.size
        or raw.ci_zran_count > raw.ci_entries
        or length > raw.ci_zran_size
        or start + raw.ci_zran_size > len(view)
    ):
        raise FormatError("context", f"{raw.ci_zran_count} units at {start} cannot be")
    return view[start : start + length]


def _parse_batch(unit: tuple[int, int]) -> Batch:
    batch = Batch(*unit)
    if not 0 < batch.stored <= batch.length <= MAX_CHUNK_SIZE:
        raise FormatError("context", f"a batch of {batch.length} bytes in {batch.stored}")
    return batch


def _parse_stretches(blob: Blob, raw: Any, view: memoryview) -> tuple[Stretch, ...]:
    units = _units(raw, view, zran_context.size)
    windows = view[raw.ci_zran_offset + len(units) : raw.ci_zran_offset + raw.ci_zran_size]
    found = []
    for offset, _, place, stored, length, size, _, bits in zran_context.iter_unpack(units):
        if (
            not 0 < stored <= blob.data_size - offset
            or not 0 < length <= MAX_CHUNK_SIZE
            or size > _WINDOW
            or place + size > len(windows)
            or bits > (7 if offset else 0)
        ):
            raise FormatError("context", f"a stretch of {stored} bytes at {offset} cannot be")
        found.append(Stretch(offset, stored, length, bits, windows[place : place + size]))
    return tuple(found)
