"""A bootstrap and the contexts of its blobs -> what an image holds, and a device for each blob.

A blob's device is what Nydus calls its uncompressed address space: each chunk starts on a block.
"""

from __future__ import annotations

import stat
from array import array
from typing import TYPE_CHECKING, Final

import msgspec

from lazyimg_formats.device_table import Codec, DeviceColumns, DeviceTable, Hash
from lazyimg_formats.erofs.inode import decode_rdev
from lazyimg_formats.erofs.layout import DataLayout
from lazyimg_formats.erofs.tree import ChunkData, FlatData
from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import Entry, Kind, LayerBuilder
from lazyimg_formats.nydus.layout import (
    BLOCK_SIZE,
    MAX_CHUNKS,
    ChunkFlags,
    Compressor,
    ContextFlags,
    inode_chunk_addr,
)
from lazyimg_formats.nydus.layout import Hash as NydusHash

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lazyimg_formats.erofs.inode import Inode
    from lazyimg_formats.nydus.bootstrap import Blob, Bootstrap, Chunk
    from lazyimg_formats.nydus.context import Batch, Context, Stretch


_COMPRESSED: Final = int(ChunkFlags.COMPRESSED)  # a member of an enumeration takes long
_BATCH: Final = int(ChunkFlags.BATCH)

_KINDS: Final = {
    stat.S_IFREG: Kind.REGULAR,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
}
_WHOLE: Final = {
    Compressor.NONE: Codec.RAW,
    Compressor.LZ4_BLOCK: Codec.LZ4,
    Compressor.GZIP: Codec.GZIP,
    Compressor.ZSTD: Codec.ZSTD,
}
_PART: Final = {
    Compressor.LZ4_BLOCK: Codec.LZ4_PART,
    Compressor.GZIP: Codec.GZIP,
    Compressor.ZSTD: Codec.ZSTD_PART,
}
_HASHES: Final = {NydusHash.BLAKE3: Hash.BLAKE3, NydusHash.SHA256: Hash.SHA256}


class PlacedFile(msgspec.Struct, frozen=True):
    """A regular file that is not empty.

    Attributes:
        path: its first one.
        size: bytes.
        data: where they are; devices are counted as in `ImageIndex.names`.
    """

    path: bytes
    size: int
    data: FlatData | ChunkData


class ImageIndex(msgspec.Struct, frozen=True):
    """An image.

    Attributes:
        entries: of one layer that holds all; its regular files are empty.
        files: what is in them.
        tables: the device of each blob, in the order of the bootstrap's blobs.
        names: of the devices that have a size, each once.
        prefetch: paths of what may be wanted first, in their order.
    """

    entries: list[Entry]
    files: list[PlacedFile]
    tables: list[DeviceTable]
    names: list[str]
    prefetch: list[bytes]


def parse_image(bootstrap: Bootstrap, contexts: Mapping[int, Context]) -> ImageIndex:
    """Give what an image holds.

    Args:
        bootstrap: its.
        contexts: of blobs, by their numbers; those that need one must have it.

    Raises:
        FormatError: the bootstrap or a context breaks the format, or they contradict each other.
    """
    chunks: list[list[Chunk]] = [[] for _ in bootstrap.blobs]
    lengths: dict[int, int] = {}
    for chunk in bootstrap.chunks():
        chunks[chunk.blob].append(chunk)
        key = _key(chunk.blob, chunk.number, chunk.uncompressed_offset // BLOCK_SIZE)
        lengths[key] = chunk.uncompressed_size
    tables = [
        _make_table(blob, found, contexts.get(number))
        for number, (blob, found) in enumerate(zip(bootstrap.blobs, chunks, strict=True))
    ]
    names = list(dict.fromkeys(table.name for table in tables if table.size))
    numbers = [names.index(table.name) if table.size else -1 for table in tables]
    files = _Files(bootstrap, lengths, numbers)
    files.visit()
    wanted = [files.paths[nid] for nid in bootstrap.prefetch if nid in files.paths]
    return ImageIndex(files.builder.finish().entries, files.placed, tables, names, wanted)


def _key(blob: int, number: int, block: int) -> int:
    """Give one number for what chunk indexes are looked up by: a tuple takes twice the memory."""
    return (blob << 32 | number) << 32 | block


def _make_table(blob: Blob, chunks: list[Chunk], context: Context | None) -> DeviceTable:
    chunks.sort(key=lambda chunk: chunk.uncompressed_offset)
    columns = DeviceColumns(_HASHES[blob.hash])
    end = 0
    last = None
    for chunk in chunks:
        if chunk.uncompressed_offset < end:
            raise FormatError("RafsV5ChunkInfo", f"chunks overlap at {chunk.uncompressed_offset}")
        last = _add_chunk(columns, blob, chunk, context, last)
        span = columns.span_count - 1
        columns.add_extent(chunk.uncompressed_offset, chunk.uncompressed_size, span, 0)
        end = chunk.uncompressed_offset + chunk.uncompressed_size
    return DeviceTable(columns.serialize(-(-end // BLOCK_SIZE) * BLOCK_SIZE))


def _add_chunk(
    columns: DeviceColumns,
    blob: Blob,
    chunk: Chunk,
    context: Context | None,
    last: Stretch | None,
) -> Stretch | None:
    """Add a chunk's span; gives the stretch that it is in, if it is in one.

    `last` is that of the chunk before it: several chunks have one window.
    """
    if context is None:
        if blob.needs_context or chunk.flags & _BATCH:
            raise FormatError("context", f"blob {chunk.blob} has none")
        _add_whole(columns, blob, chunk, chunk.compressed_offset, chunk.compressed_size)
        return None
    entry = context.entry(chunk.number)
    if (entry.address, entry.length) != (chunk.uncompressed_offset, chunk.uncompressed_size):
        raise FormatError("context", f"chunk {chunk.number} is another one than the bootstrap's")
    if ContextFlags.ZRAN in entry.flags:
        stretch = context.stretches[entry.unit]
        _add_part_of_stretch(columns, chunk, stretch, entry.inner, known=stretch is last)
        return stretch
    if ContextFlags.BATCH in entry.flags:
        batch = context.batches[entry.unit]
        if entry.offset + batch.stored > blob.data_size:
            raise FormatError("context", f"batch {entry.unit} ends behind its blob's chunks")
        _add_part_of_batch(columns, blob, chunk, batch, entry.offset, entry.inner)
    else:
        if not blob.needs_context and (entry.offset, entry.stored) != (
            chunk.compressed_offset,
            chunk.compressed_size,
        ):
            raise FormatError("context", f"chunk {chunk.number} is elsewhere than in the bootstrap")
        _add_whole(columns, blob, chunk, entry.offset, entry.stored)
    return None


def _add_whole(columns: DeviceColumns, blob: Blob, chunk: Chunk, offset: int, stored: int) -> None:
    codec = _WHOLE[blob.compressor] if chunk.flags & _COMPRESSED else Codec.RAW
    length = chunk.uncompressed_size
    if offset + stored > blob.data_size or (codec is Codec.RAW and stored != length):
        raise FormatError("chunk", f"{length} bytes in {stored} at {offset} cannot be")
    columns.add_span(offset, stored, length, chunk.digest, codec)


def _add_part_of_batch(  # noqa: PLR0917 - what there is of it
    columns: DeviceColumns, blob: Blob, chunk: Chunk, batch: Batch, offset: int, inner: int
) -> None:
    length, codec = chunk.uncompressed_size, _PART.get(blob.compressor)
    if batch.stored == batch.length:
        columns.add_span(offset + inner, length, length, chunk.digest, Codec.RAW)
    elif codec is None:
        raise FormatError("context", f"a batch of {batch.length} bytes in {batch.stored}")
    else:
        columns.add_span(offset, batch.stored, length, chunk.digest, codec, inner)


def _add_part_of_stretch(
    columns: DeviceColumns, chunk: Chunk, stretch: Stretch, inner: int, *, known: bool
) -> None:
    early = stretch.bits > 0  # it begins inside the byte before
    columns.add_span(
        stretch.offset - early,
        stretch.stored + early,
        chunk.uncompressed_size,
        chunk.digest,
        Codec.DEFLATE_PART,
        inner,
        bit=-stretch.bits % 8,
        window=b"" if known or not stretch.window else _store(stretch.window),
    )


def _store(window: memoryview) -> bytes:
    """Give a window as a zstd frame that is the same with every version of zstd: one raw block."""
    size = len(window)
    header = b"\x28\xb5\x2f\xfd\xa0" + size.to_bytes(4, "little")
    return header + (size << 3 | 1).to_bytes(3, "little") + window


class _Files:
    """The directories of a bootstrap, as a layer's entries."""

    def __init__(
        self, bootstrap: Bootstrap, lengths: Mapping[int, int], numbers: Sequence[int]
    ) -> None:
        self.builder = LayerBuilder()
        self.placed: list[PlacedFile] = []
        self.paths: dict[int, bytes] = {}
        self._bootstrap = bootstrap
        self._image = bootstrap.image
        self._lengths = lengths
        self._numbers = numbers
        self._bits = bootstrap.chunk_size.bit_length() - 1
        self._chunks = 0

    def visit(self) -> None:
        """Add everything there is."""
        for path, inode in self._image.walk(links=False):
            first = self.paths.setdefault(inode.nid, path)
            kind = _KINDS.get(stat.S_IFMT(inode.mode))
            if kind is None:
                raise FormatError("RAFS", f"{path!r} is a socket")
            if first != path:
                self._add(path, inode, Kind.HARDLINK, first)
                continue
            target = self._image.target(inode) if kind is Kind.SYMLINK else b""
            self._add(path, inode, kind, target)
            if kind is Kind.REGULAR and inode.size:
                self.placed.append(PlacedFile(path, inode.size, self._place(path, inode)))

    def _add(self, path: bytes, inode: Inode, kind: Kind, target: bytes) -> None:
        major, minor = decode_rdev(inode.rdev)
        owned = self._bootstrap.explicit_ids
        self.builder.add(
            Entry(
                path,
                kind,
                inode.mode & 0o7777,
                inode.uid if owned else 0,
                inode.gid if owned else 0,
                inode.mtime,
                inode.mtime_ns,
                0,
                target,
                major,
                minor,
                tuple(self._image.xattrs(inode)) if inode.xattr_count else (),
            )
        )

    def _place(self, path: bytes, inode: Inode) -> FlatData | ChunkData:
        """Find a file's chunks; they follow each other on one device, or not."""
        if inode.layout is not DataLayout.CHUNK_BASED:
            raise FormatError("RAFS", f"{path!r} has no chunks")
        count = -(-inode.size >> self._bits)
        self._chunks += count
        if self._chunks > MAX_CHUNKS:
            raise FormatError("RAFS", f"over {MAX_CHUNKS} chunks of files")
        left, whole = inode.size, 1 << self._bits
        blocks, devices = array("I"), array("B")
        for low, high, block in inode_chunk_addr.iter_unpack(
            self._image.read_chunk_array(inode, count)
        ):
            blob = (high & 0xFF) - 1
            length = self._lengths.get(_key(blob, (high >> 8) << 16 | low, block))
            if length is None or length != min(left, whole):
                raise FormatError("RAFS", f"{path!r} has a chunk that no blob has")
            blocks.append(block)
            devices.append(self._numbers[blob])
            left -= length
        step = whole // BLOCK_SIZE
        end = blocks[0] + count * step
        if devices.count(devices[0]) < count:
            return ChunkData(self._bits, blocks, devices[0], devices)
        if end < 1 << 32 and blocks == array("I", range(blocks[0], end, step)):
            return FlatData(devices[0], blocks[0])
        return ChunkData(self._bits, blocks, devices[0])
