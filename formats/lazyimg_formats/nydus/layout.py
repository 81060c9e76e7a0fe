"""Structures of RAFS v6 under their names in nydus-rafs and nydus-storage. Declarations only."""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final

from construct import Bytes, Int32ul, Int64ul, Padding, Struct

from lazyimg_formats.codec import Layout

BLOCK_SIZE: Final = 4096
"""EROFS_BLOCK_SIZE_4096."""

RAFSV5_SUPER_MAGIC: Final = b"SFAR"
"""What a bootstrap of version 5 begins with."""

EXTENSION_OFFSET: Final = 1024 + 128
"""Where the extended superblock is: EROFS_SUPER_OFFSET + EROFS_SUPER_BLOCK_SIZE."""

DEVTABLE_OFFSET: Final = EXTENSION_OFFSET + 256
"""EROFS_DEVTABLE_OFFSET."""

FEATURE_COMPAT_RAFS_V6: Final = 0x4000_0000

MAX_BOOTSTRAP: Final = 256 << 20
"""Bytes of a bootstrap, and of all that a bootstrap layer holds."""

MAX_BLOBS: Final = 254
"""A chunk's blob has 8 bits, of which 0 is none; the builder stops before 255."""

MAX_CHUNK_SIZE: Final = 16 << 20
"""RAFS_MAX_CHUNK_SIZE; batches and stretches of gzip are not larger either when decoded."""

MAX_CHUNKS: Final = 1 << 24
"""RAFS_MAX_CHUNKS_PER_BLOB."""

MAX_UNCOMPRESSED: Final = 1 << 44
"""BLOB_MAX_SIZE_UNCOMPRESSED."""

MAX_COMPRESSED: Final = 1 << 40
"""BLOB_MAX_SIZE_COMPRESSED."""

MAX_CONTEXT: Final = 256 << 20
"""Bytes of one blob's context, decoded."""

CONTEXT_HEADER: Final = 4096
"""BLOB_CCT_HEADER_SIZE."""

CONTEXT_MAGIC: Final = 0xB10B_B10B
"""BLOB_CCT_MAGIC."""

TAR_HEADER: Final = 512


class SuperFlags(IntFlag):
    """RafsSuperFlags."""

    COMPRESSION_NONE = 0x1
    COMPRESSION_LZ4 = 0x2
    HASH_BLAKE3 = 0x4
    HASH_SHA256 = 0x8
    EXPLICIT_UID_GID = 0x10
    HAS_XATTR = 0x20
    COMPRESSION_GZIP = 0x40
    COMPRESSION_ZSTD = 0x80
    INLINED_CHUNK_DIGEST = 0x100
    TARFS_MODE = 0x200
    ENCRYPTION_NONE = 0x100_0000
    ENCRYPTION_AES_128_XTS = 0x200_0000


KNOWN_FLAGS: Final = 0x3FF | 0xFF00_0000
"""Bits of `SuperFlags`, with those that are kept for compatible changes."""

COMPRESSIONS: Final = (
    SuperFlags.COMPRESSION_NONE
    | SuperFlags.COMPRESSION_LZ4
    | SuperFlags.COMPRESSION_GZIP
    | SuperFlags.COMPRESSION_ZSTD
)
HASHES: Final = SuperFlags.HASH_BLAKE3 | SuperFlags.HASH_SHA256


class Compressor(IntEnum):
    """compress::Algorithm."""

    NONE = 0
    LZ4_BLOCK = 1
    GZIP = 2
    ZSTD = 3


class Hash(IntEnum):
    """digest::Algorithm."""

    BLAKE3 = 0
    SHA256 = 1


class BlobFeatures(IntFlag):
    """BlobFeatures."""

    ALIGNED = 0x1
    INLINED_FS_META = 0x2
    CHUNK_INFO_V2 = 0x4
    ZRAN = 0x8
    SEPARATE = 0x10
    INLINED_CHUNK_DIGEST = 0x20
    TARFS = 0x40
    BATCH = 0x80
    ENCRYPTED = 0x100
    IS_CHUNKDICT_GENERATED = 0x200
    IS_SEPARATED_WITH_PREFETCH_FILES = 0x400
    EXTERNAL = 0x800
    HAS_TAR_HEADER = 0x1000_0000
    HAS_TOC = 0x2000_0000
    CAP_TAR_TOC = 0x4000_0000


UNKNOWN_FEATURES: Final = 0x8000_F000
"""Bits of `BlobFeatures` that a reader must know, and that mean nothing here."""


class ChunkFlags(IntFlag):
    """BlobChunkFlags: in a bootstrap's chunk table."""

    COMPRESSED = 0x1
    HOLECHUNK = 0x2
    ENCRYPTED = 0x4
    BATCH = 0x8
    HAS_CRC32 = 0x10


class ContextFlags(IntFlag):
    """CHUNK_V2_FLAG_*: in a context of version 2."""

    COMPRESSED = 0x1
    ZRAN = 0x2
    BATCH = 0x4
    ENCRYPTED = 0x8
    HAS_CRC32 = 0x10


class TocFlags(IntFlag):
    """TocEntryFlags."""

    COMPRESSION_NONE = 0x1
    COMPRESSION_ZSTD = 0x2
    COMPRESSION_LZ4_BLOCK = 0x4


rafs_v6_super_block_ext = Layout(
    "RafsV6SuperBlockExt",
    Struct(
        "flags" / Int64ul,
        "blob_table_offset" / Int64ul,
        "blob_table_size" / Int32ul,
        "chunk_size" / Int32ul,
        "chunk_table_offset" / Int64ul,
        "chunk_table_size" / Int64ul,
        "prefetch_table_offset" / Int64ul,
        "prefetch_table_size" / Int32ul,
        "reserved" / Padding(204),
    ),
)

rafs_v6_blob = Layout(
    "RafsV6Blob",
    Struct(
        "blob_id" / Bytes(64),
        "blob_index" / Int32ul,
        "chunk_size" / Int32ul,
        "chunk_count" / Int32ul,
        "compression_algo" / Int32ul,
        "digest_algo" / Int32ul,
        "features" / Int32ul,
        "compressed_size" / Int64ul,
        "uncompressed_size" / Int64ul,
        "blob_toc_size" / Int32ul,
        "ci_compressor" / Int32ul,
        "ci_offset" / Int64ul,
        "ci_compressed_size" / Int64ul,
        "ci_uncompressed_size" / Int64ul,
        "blob_toc_digest" / Bytes(32),
        "blob_meta_digest" / Bytes(32),
        "blob_meta_size" / Int64ul,
        "cipher_iv" / Bytes(8),
        "cipher_algo" / Int32ul,
        "reserved" / Padding(36),
    ),
)

blob_compression_context_header = Layout(
    "BlobCompressionContextHeader",
    Struct(
        "magic" / Int32ul,
        "features" / Int32ul,
        "ci_compressor" / Int32ul,
        "ci_entries" / Int32ul,
        "ci_offset" / Int64ul,
        "ci_compressed_size" / Int64ul,
        "ci_uncompressed_size" / Int64ul,
        "ci_zran_offset" / Int64ul,
        "ci_zran_size" / Int64ul,
        "ci_zran_count" / Int32ul,
        "reserved" / Padding(4032),
        "magic2" / Int32ul,
    ),
)

toc_entry = Layout(
    "TocEntry",
    Struct(
        "flags" / Int32ul,
        "reserved1" / Padding(4),
        "name" / Bytes(16),
        "uncompressed_digest" / Bytes(32),
        "compressed_offset" / Int64ul,
        "compressed_size" / Int64ul,
        "uncompressed_size" / Int64ul,
        "reserved2" / Padding(48),
    ),
)

chunk_info: Final = struct.Struct("<32sIIIIQQQII")
"""RafsV5ChunkInfo: block_id, blob_index, flags, compressed_size, uncompressed_size,
compressed_offset, uncompressed_offset, file_offset, index, crc32."""

inode_chunk_addr: Final = struct.Struct("<HHI")
"""RafsV6InodeChunkAddr: c_blob_addr_lo, c_blob_addr_hi, c_blk_addr."""

chunk_info_v1: Final = struct.Struct("<QQ")
"""BlobChunkInfoV1Ondisk: uncomp_info, comp_info."""

chunk_info_v2: Final = struct.Struct("<QQQ")
"""BlobChunkInfoV2Ondisk: uncomp_info, comp_info, data."""

batch_context: Final = struct.Struct("<II32x")
"""BatchInflateContext: compressed_size, uncompressed_batch_size."""

zran_context: Final = struct.Struct("<QQQIIIBB2x")
"""ZranInflateContext: in_offset, out_offset, dict_offset, in_len, out_len, dict_size, ctx_byte,
ctx_bits."""

prefetch_entry: Final = struct.Struct("<I")
"""A nid; 0: no more of them."""
