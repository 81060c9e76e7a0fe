"""A bootstrap: its superblocks, blobs, chunks and prefetch hints. See `parse_bootstrap`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from lazyimg_formats.erofs.layout import FeatureIncompat
from lazyimg_formats.erofs.reader import Image
from lazyimg_formats.erofs.superblock import SLOT_SIZE
from lazyimg_formats.errors import FormatError
from lazyimg_formats.nydus.layout import (
    BLOCK_SIZE,
    COMPRESSIONS,
    DEVTABLE_OFFSET,
    EXTENSION_OFFSET,
    FEATURE_COMPAT_RAFS_V6,
    HASHES,
    KNOWN_FLAGS,
    MAX_BLOBS,
    MAX_BOOTSTRAP,
    MAX_CHUNK_SIZE,
    MAX_CHUNKS,
    MAX_COMPRESSED,
    MAX_UNCOMPRESSED,
    RAFSV5_SUPER_MAGIC,
    TAR_HEADER,
    UNKNOWN_FEATURES,
    BlobFeatures,
    ChunkFlags,
    Compressor,
    Hash,
    SuperFlags,
    chunk_info,
    chunk_info_v1,
    chunk_info_v2,
    prefetch_entry,
    rafs_v6_blob,
    rafs_v6_super_block_ext,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_INCOMPAT: Final = FeatureIncompat.CHUNKED_FILE | FeatureIncompat.DEVICE_TABLE
_REFUSED: Final = {
    BlobFeatures.ENCRYPTED: "is encrypted",
    BlobFeatures.EXTERNAL: "lies outside of the registry",
    BlobFeatures.TARFS: "is a tar of its own (tarfs)",
    BlobFeatures.IS_CHUNKDICT_GENERATED: "is of a generated chunk dictionary",
}
_WITH_UNITS: Final = BlobFeatures.BATCH | BlobFeatures.ZRAN
_UNREADABLE: Final = int(ChunkFlags.HOLECHUNK | ChunkFlags.ENCRYPTED)
_OLD_BLOCKS: Final = 4096  # s_blocks of old bootstraps without blobs


class UnsupportedError(FormatError):
    """A good image of a kind that is not read here."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob, as the bootstrap describes it.

    Attributes:
        id: 64 lower-case hexadecimal digits: the sha256 of the blob with the chunks. Of a blob that
            has its own bootstrap inside, anything: it could not know.
        features: what it has.
        compressor: of its chunks.
        hash: of its chunks' digests.
        chunk_count: entries of its context.
        compressed_size: bytes of the blob, or of what of it holds chunks.
        data_size: bytes that hold chunks.
        uncompressed_size: bytes of its chunks, decoded, each on a block of its own.
        context_offset: where its context is, in the blob, or, of `separate` ones, in another.
        context_size: bytes of the context there, without its header, which follows it.
        context_length: bytes of the context, decoded.
        context_compressor: of the context.
        meta_digest: sha256 of the blob with the context, if it is another one; zeros: not said.
    """

    id: str
    features: BlobFeatures
    compressor: Compressor
    hash: Hash
    chunk_count: int
    compressed_size: int
    data_size: int
    uncompressed_size: int
    context_offset: int
    context_size: int
    context_length: int
    context_compressor: Compressor
    meta_digest: bytes

    @property
    def needs_context(self) -> bool:
        """Whether its chunks cannot be decoded by what the bootstrap says."""
        return bool(self.features & _WITH_UNITS) and self.chunk_count > 0

    @property
    def separate(self) -> bool:
        """Whether its context is in another blob."""
        return bool(self.features & BlobFeatures.SEPARATE)


class Chunk(NamedTuple):
    """A chunk, as the bootstrap's table describes it.

    Attributes:
        digest: of its decoded bytes.
        blob: number of its blob, from 0.
        flags: how it is stored.
        compressed_size: bytes in the blob.
        uncompressed_size: bytes when decoded.
        compressed_offset: where it is in the blob.
        uncompressed_offset: where it is among the blob's decoded chunks, a multiple of 4,096.
        number: of its entry in the blob's context.
    """

    digest: bytes
    blob: int
    flags: int
    compressed_size: int
    uncompressed_size: int
    compressed_offset: int
    uncompressed_offset: int
    number: int


class Bootstrap:
    """A bootstrap whose superblocks and tables are good. Give it to `image.parse_image`.

    Attributes:
        image: its directories and inodes.
        chunk_size: bytes of a file's chunks, but of its last one.
        blobs: in the order of their numbers.
        prefetch: nids of what may be wanted first, in their order.
        explicit_ids: whether inodes have owners; else everything is root's.

    Args and Raises: as `parse_bootstrap`.
    """

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        if data.startswith(RAFSV5_SUPER_MAGIC):
            raise UnsupportedError("RAFS", "version 5 is not supported, only version 6")
        size = len(data)
        if not BLOCK_SIZE <= size <= MAX_BOOTSTRAP or size % BLOCK_SIZE:
            raise FormatError("RAFS", f"a bootstrap of {size} bytes")
        self.image = Image(data)
        self._check_super()
        extension = rafs_v6_super_block_ext.decode(
            data[EXTENSION_OFFSET : EXTENSION_OFFSET + rafs_v6_super_block_ext.size]
        )
        flags = extension.flags
        _check_flags(flags)
        self.explicit_ids = bool(flags & SuperFlags.EXPLICIT_UID_GID)
        self.chunk_size: int = extension.chunk_size
        if not _is_chunk_size(self.chunk_size):
            raise FormatError("RafsV6SuperBlockExt", f"chunks of {self.chunk_size} bytes")
        self._slots_end = DEVTABLE_OFFSET + len(self.image.slots) * SLOT_SIZE
        blobs = self._range("blob", extension.blob_table_offset, extension.blob_table_size, 256)
        self._chunks = range(0)
        if extension.chunk_table_size:
            offset, length = extension.chunk_table_offset, extension.chunk_table_size
            self._chunks = self._range("chunk", offset, length, chunk_info.size)
        hints = range(0)
        if extension.prefetch_table_size and extension.prefetch_table_offset:
            offset, length = extension.prefetch_table_offset, extension.prefetch_table_size
            hints = self._range("prefetch", offset, length, prefetch_entry.size, aligned=False)
        if any(_overlap(one, other) for one, other in _pairs(blobs, self._chunks, hints)):
            raise FormatError("RafsV6SuperBlockExt", "tables overlap")
        self.blobs = tuple(self._parse_blobs(blobs))
        self.prefetch = tuple(self._parse_prefetch(hints))

    def _check_super(self) -> None:
        superblock = self.image.superblock
        if not int(superblock.compat) & FEATURE_COMPAT_RAFS_V6:
            raise UnsupportedError("RAFS", "no image of version 6")
        if superblock.incompat != _INCOMPAT:
            raise FormatError("RAFS", f"incompatible features {int(superblock.incompat):#x}")
        if superblock.block_size != BLOCK_SIZE:
            raise UnsupportedError("RAFS", "blocks of 512 bytes (tarfs) are not supported")
        if superblock.slot_offset * SLOT_SIZE != DEVTABLE_OFFSET:
            raise FormatError("RAFS", f"device slots at {superblock.slot_offset * SLOT_SIZE}")
        no_devices = not superblock.devices and superblock.blocks not in {0, _OLD_BLOCKS}
        if (
            superblock.checksum
            or superblock.extension_slots
            or not superblock.inodes
            or superblock.compressions
            or superblock.xattr_block
            or no_devices
            or superblock.meta_block * BLOCK_SIZE > len(self._data)
        ):
            raise FormatError("RAFS", "a field of the superblock is impossible")
        tags = [slot.tag for slot in self.image.slots]
        if any(len(tag) != 64 or not tag.isascii() for tag in tags) or len(set(tags)) != len(tags):
            raise FormatError("RafsV6Device", "names that are not 64 characters, or used twice")
        if not all(slot.blocks for slot in self.image.slots):
            raise FormatError("RafsV6Device", "a device without blocks")

    def _range(
        self, what: str, offset: int, length: int, unit: int, *, aligned: bool = True
    ) -> range:
        if (
            (aligned and offset % BLOCK_SIZE)
            or offset < max(BLOCK_SIZE, self._slots_end)
            or length % unit
            or offset + length > len(self._data)
        ):
            raise FormatError(
                "RafsV6SuperBlockExt", f"{what} table of {length} bytes at {offset} cannot be"
            )
        return range(offset, offset + length)

    def _parse_blobs(self, table: range) -> Iterator[Blob]:
        count = len(table) // rafs_v6_blob.size
        if count > MAX_BLOBS:
            raise FormatError("RafsV6Blob", f"{count} blobs, at most {MAX_BLOBS}")
        for number in range(count):
            offset = table.start + number * rafs_v6_blob.size
            data = bytes(self._data[offset : offset + rafs_v6_blob.size])
            yield _parse_blob(data, number, self.chunk_size)

    def _parse_prefetch(self, table: range) -> Iterator[int]:
        for (nid,) in prefetch_entry.iter_unpack(self._data[table.start : table.stop]):
            if not nid:
                return
            yield nid

    def chunks(self) -> Iterator[Chunk]:
        """Give the chunks of all blobs, in the table's order.

        Raises:
            FormatError: one that its blob cannot have.
        """
        table = self._data[self._chunks.start : self._chunks.stop]
        for (
            digest, blob, flags, stored, length, offset, address, _, number, _,
        ) in chunk_info.iter_unpack(table):  # fmt: skip
            if blob >= len(self.blobs):
                raise FormatError("RafsV5ChunkInfo", f"blob {blob} of {len(self.blobs)}")
            if flags & _UNREADABLE:
                raise FormatError("RafsV5ChunkInfo", f"flags {flags:#x} are not supported")
            if (
                not 0 < length <= self.chunk_size
                or address % BLOCK_SIZE
                or address + length > self.blobs[blob].uncompressed_size
            ):
                raise FormatError("RafsV5ChunkInfo", f"{length} bytes at {address} cannot be")
            yield Chunk(digest, blob, flags, stored, length, offset, address, number)


def parse_bootstrap(data: bytes) -> Bootstrap:
    """Give what a bootstrap says of its image.

    Args:
        data: the bootstrap, whole.

    Raises:
        UnsupportedError: it is of another version, encrypted, or its blobs are not of Nydus's own
            format.
        FormatError: it breaks the format.
    """
    return Bootstrap(data)


def _check_flags(flags: int) -> None:
    if flags & ~KNOWN_FLAGS:
        raise FormatError("RafsV6SuperBlockExt", f"unknown flags {flags:#x}")
    if (flags & COMPRESSIONS).bit_count() != 1 or (flags & HASHES).bit_count() != 1:
        raise FormatError("RafsV6SuperBlockExt", f"flags {flags:#x} contradict each other")
    if flags & SuperFlags.ENCRYPTION_AES_128_XTS:
        raise UnsupportedError("RAFS", "encrypted images are not supported")
    if flags & SuperFlags.TARFS_MODE:
        raise UnsupportedError("RAFS", "images of plain tars (tarfs) are not supported")


def _is_chunk_size(size: int) -> bool:
    return BLOCK_SIZE <= size <= MAX_CHUNK_SIZE and not size & (size - 1)


def _pairs(*ranges: range) -> Iterator[tuple[range, range]]:
    for number, one in enumerate(ranges):
        for other in ranges[:number]:
            yield one, other


def _overlap(one: range, other: range) -> bool:
    return max(one.start, other.start) < min(one.stop, other.stop)


def _parse_blob(data: bytes, number: int, chunk_size: int) -> Blob:
    raw = rafs_v6_blob.decode(data)
    if raw.features & UNKNOWN_FEATURES:
        raise FormatError("RafsV6Blob", f"blob {number} has unknown features {raw.features:#x}")
    features = BlobFeatures(raw.features)
    for feature, text in _REFUSED.items():
        if feature in features:
            raise UnsupportedError("RafsV6Blob", f"blob {number} {text}: that is not supported")
    if raw.cipher_algo:
        raise UnsupportedError("RafsV6Blob", f"blob {number} is encrypted: that is not supported")
    try:
        name = raw.blob_id.decode("ascii")
        compressor, own = Compressor(raw.compression_algo), Compressor(raw.ci_compressor)
        kind = Hash(raw.digest_algo)
    except ValueError as error:
        raise FormatError("RafsV6Blob", f"blob {number}: {error}") from error
    if (
        raw.blob_index != number
        or raw.chunk_size != chunk_size
        or raw.chunk_count > MAX_CHUNKS
        or raw.uncompressed_size > MAX_UNCOMPRESSED
        or raw.compressed_size > MAX_COMPRESSED
        or BlobFeatures.ALIGNED not in features
        or raw.ci_offset > MAX_COMPRESSED
        or raw.ci_compressed_size > raw.ci_uncompressed_size
        or not _fits(features, raw.chunk_count, raw.ci_uncompressed_size)
    ):
        raise FormatError("RafsV6Blob", f"a field of blob {number} is impossible")
    return Blob(
        name, features, compressor, kind, raw.chunk_count, raw.compressed_size,
        _data_size(features, raw.compressed_size, raw.ci_offset, raw.ci_compressed_size),
        raw.uncompressed_size, raw.ci_offset, raw.ci_compressed_size, raw.ci_uncompressed_size,
        own, raw.blob_meta_digest,
    )  # fmt: skip


def _fits(features: BlobFeatures, count: int, length: int) -> bool:
    """Whether a blob's context can have `length` bytes."""
    if BlobFeatures.CHUNK_INFO_V2 not in features:
        return not features & _WITH_UNITS and length == count * chunk_info_v1.size
    if features & _WITH_UNITS:
        return bool(length >= count * chunk_info_v2.size)
    return bool(length == count * chunk_info_v2.size)


def _data_size(features: BlobFeatures, stored: int, offset: int, context: int) -> int:
    """Give the bytes of a blob that hold chunks: BlobInfo::compressed_data_size."""
    if BlobFeatures.SEPARATE in features or BlobFeatures.CAP_TAR_TOC not in features:
        return stored
    end = offset if context else stored
    return max(0, end - (TAR_HEADER if BlobFeatures.HAS_TAR_HEADER in features else 0))
