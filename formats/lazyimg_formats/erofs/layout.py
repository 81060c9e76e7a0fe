"""Structures of Linux fs/erofs/erofs_fs.h, under the kernel's names, and limits. Declarations only.

The 6.18 names are used where fields were renamed (`epoch` was `build_time`, `uniaddr` was
`mapped_blkaddr`).
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final

from construct import Bytes, Int8ul, Int16ul, Int32ul, Int64ul, Padding, Struct

from lazyimg_formats.codec import Layout

EROFS_SUPER_OFFSET: Final = 1024
EROFS_SUPER_MAGIC_V1: Final = 0xE0F5E1E2
EROFS_NAME_LEN: Final = 255
EROFS_NULL_ADDR: Final = 0xFFFF_FFFF
"""As a chunk's block: a hole."""

NID_SIZE: Final = 32
"""Bytes: an inode lies at nid * 32 behind the metadata's first block."""

BLOCK_BITS: Final = 12
BLOCK_SIZE: Final = 1 << BLOCK_BITS
"""Bytes. What the writer uses; over cachefiles it must be the page size."""

MIN_BLOCK_BITS: Final = 9
MAX_BLOCK_BITS: Final = 16

MAX_DEVICES: Final = 4096
"""Device slots of an image, so that the root behind them is reached by root_nid."""

MAX_ENTRIES: Final = 1 << 23
"""Names in one image."""

MAX_DIRECTORY_SIZE: Final = 1 << 31
"""Bytes of one directory: `MAX_ENTRIES` of its longest names fill it."""

MAX_PATH: Final = 4096
"""Bytes of a path with its NUL, as walked, and of a symbolic link's target: PATH_MAX."""

MAX_IMAGE_SIZE: Final = 1 << (32 + MAX_BLOCK_BITS)
"""Bytes: what 32-bit block addresses reach."""

MAX_CHUNKS: Final = 1 << 24
"""Chunks of one file, on reading."""

MAX_READ: Final = 256 << 20
"""Bytes of a file that one call gives: a hole may claim any size."""

NANOSECONDS: Final = 1_000_000_000
"""In a second: i_mtime_nsec is below."""

MAX_FILE_SIZE: Final = (1 << 63) - 1
"""Bytes: i_size is signed to the kernel."""


class FeatureCompat(IntFlag):
    """EROFS_FEATURE_COMPAT_*: what a reader may ignore."""

    SB_CHKSUM = 0x1
    MTIME = 0x2
    XATTR_FILTER = 0x4
    SHARED_EA_IN_METABOX = 0x8
    PLAIN_XATTR_PFX = 0x10


class FeatureIncompat(IntFlag):
    """EROFS_FEATURE_INCOMPAT_*: what a reader must know. Some bits have two names."""

    ZERO_PADDING = 0x1
    COMPR_CFGS = 0x2  # also BIG_PCLUSTER
    CHUNKED_FILE = 0x4
    DEVICE_TABLE = 0x8  # also COMPR_HEAD2
    ZTAILPACKING = 0x10
    FRAGMENTS = 0x20  # also DEDUPE
    XATTR_PREFIXES = 0x40
    EIGHT_BYTE_ADDRESSES = 0x80  # 48BIT
    METABOX = 0x100


class DataLayout(IntEnum):
    """EROFS_INODE_*: bits 1 to 3 of i_format."""

    FLAT_PLAIN = 0
    COMPRESSED_FULL = 1
    FLAT_INLINE = 2
    COMPRESSED_COMPACT = 3
    CHUNK_BASED = 4


class FileType(IntEnum):
    """EROFS_FT_*, in dirents: the kernel's FT_*."""

    UNKNOWN = 0
    REG_FILE = 1
    DIR = 2
    CHRDEV = 3
    BLKDEV = 4
    FIFO = 5
    SOCK = 6
    SYMLINK = 7


class XattrIndex(IntEnum):
    """EROFS_XATTR_INDEX_*: the part of an attribute's name that is not stored."""

    USER = 1
    POSIX_ACL_ACCESS = 2
    POSIX_ACL_DEFAULT = 3
    TRUSTED = 4
    SECURITY = 6


EROFS_XATTR_LONG_PREFIX: Final = 0x80
"""Bit of e_name_index: the rest is the number of a prefix in the image's own table."""

I_VERSION_EXTENDED: Final = 0x1
I_DATALAYOUT_BIT: Final = 1
I_ALL: Final = 0xF
"""Bits of i_format that images without 48-bit addresses use."""

CHUNK_FORMAT_BLKBITS_MASK: Final = 0x1F
CHUNK_FORMAT_INDEXES: Final = 0x20
CHUNK_FORMAT_ALL: Final = 0x3F

erofs_super_block = Layout(
    "erofs_super_block",
    Struct(
        "magic" / Int32ul,
        "checksum" / Int32ul,
        "feature_compat" / Int32ul,
        "blkszbits" / Int8ul,
        "sb_extslots" / Int8ul,
        "rootnid_2b" / Int16ul,
        "inos" / Int64ul,
        "epoch" / Int64ul,
        "fixed_nsec" / Int32ul,
        "blocks_lo" / Int32ul,
        "meta_blkaddr" / Int32ul,
        "xattr_blkaddr" / Int32ul,
        "uuid" / Bytes(16),
        "volume_name" / Bytes(16),
        "feature_incompat" / Int32ul,
        "available_compr_algs" / Int16ul,
        "extra_devices" / Int16ul,
        "devt_slotoff" / Int16ul,
        "dirblkbits" / Int8ul,
        "xattr_prefix_count" / Int8ul,
        "xattr_prefix_start" / Int32ul,
        "packed_nid" / Int64ul,
        "xattr_filter_reserved" / Int8ul,
        "reserved" / Padding(3),
        "build_time" / Int32ul,
        "rootnid_8b" / Int64ul,
        "reserved2" / Padding(8),
    ),
)

erofs_deviceslot = Layout(
    "erofs_deviceslot",
    Struct(
        "tag" / Bytes(64),
        "blocks_lo" / Int32ul,
        "uniaddr_lo" / Int32ul,
        "blocks_hi" / Int32ul,
        "uniaddr_hi" / Int16ul,
        "reserved" / Padding(50),
    ),
)

erofs_inode_compact = Layout(
    "erofs_inode_compact",
    Struct(
        "i_format" / Int16ul,
        "i_xattr_icount" / Int16ul,
        "i_mode" / Int16ul,
        "i_nlink" / Int16ul,
        "i_size" / Int32ul,
        "i_mtime" / Int32ul,
        "i_u" / Int32ul,
        "i_ino" / Int32ul,
        "i_uid" / Int16ul,
        "i_gid" / Int16ul,
        "i_reserved" / Padding(4),
    ),
)

erofs_inode_extended = Layout(
    "erofs_inode_extended",
    Struct(
        "i_format" / Int16ul,
        "i_xattr_icount" / Int16ul,
        "i_mode" / Int16ul,
        "i_nb" / Int16ul,
        "i_size" / Int64ul,
        "i_u" / Int32ul,
        "i_ino" / Int32ul,
        "i_uid" / Int32ul,
        "i_gid" / Int32ul,
        "i_mtime" / Int64ul,
        "i_mtime_nsec" / Int32ul,
        "i_nlink" / Int32ul,
        "i_reserved2" / Padding(16),
    ),
)

inode_extended: Final = struct.Struct("<HHHxxQIIIIqII16x")
"""erofs_inode_extended again, for one call per inode: i_format, i_xattr_icount, i_mode, i_size,
i_u, i_ino, i_uid, i_gid, i_mtime (signed), i_mtime_nsec, i_nlink."""

erofs_xattr_ibody_header = Layout(
    "erofs_xattr_ibody_header",
    Struct("h_name_filter" / Int32ul, "h_shared_count" / Int8ul, "h_reserved2" / Padding(7)),
)

erofs_xattr_entry: Final = struct.Struct("<BBH")
"""e_name_len, e_name_index, e_value_size; name and value follow, padded to 4 bytes."""

erofs_dirent: Final = struct.Struct("<QHBx")
"""nid, nameoff, file_type."""

erofs_inode_chunk_index: Final = struct.Struct("<HHI")
"""startblk_hi, device_id, startblk_lo."""

block_map_entry: Final = struct.Struct("<I")
"""startblk_lo, where chunks have no device_id (EROFS_BLOCK_MAP_ENTRY_SIZE)."""
