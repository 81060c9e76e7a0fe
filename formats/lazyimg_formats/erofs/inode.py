"""Inodes, in both forms: compact (32 bytes) and extended (64 bytes)."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import Final

from lazyimg_formats.erofs.layout import (
    I_ALL,
    I_DATALAYOUT_BIT,
    I_VERSION_EXTENDED,
    MAX_FILE_SIZE,
    NANOSECONDS,
    DataLayout,
    FileType,
    erofs_inode_compact,
    erofs_inode_extended,
)
from lazyimg_formats.errors import FormatError

COMPACT_SIZE: Final = erofs_inode_compact.size
EXTENDED_SIZE: Final = erofs_inode_extended.size

FILE_TYPES: Final[dict[int, FileType]] = {
    stat.S_IFREG: FileType.REG_FILE,
    stat.S_IFDIR: FileType.DIR,
    stat.S_IFCHR: FileType.CHRDEV,
    stat.S_IFBLK: FileType.BLKDEV,
    stat.S_IFIFO: FileType.FIFO,
    stat.S_IFSOCK: FileType.SOCK,
    stat.S_IFLNK: FileType.SYMLINK,
}
"""By the type bits of a mode."""

_LAYOUTS: Final = tuple(DataLayout)  # from 0 without a gap
_WITH_DATA: Final = frozenset({stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK})
_WITH_NUMBER: Final = frozenset({stat.S_IFCHR, stat.S_IFBLK})


@dataclass(frozen=True, slots=True)
class Inode:
    """What an inode says of itself.

    Attributes:
        nid: where it lies, in units of 32 bytes.
        extended: it has 64 bytes, not 32.
        layout: how its data lies.
        mode: type and permission bits.
        uid: owner.
        gid: group.
        mtime: seconds since the epoch.
        mtime_ns: nanoseconds added to it.
        nlink: names it has; for a directory 2 and its subdirectories.
        size: bytes of its data.
        start: i_u of a file, directory or link: the first block, or the chunk format.
        rdev: i_u of a character or block device: its number (`decode_rdev`).
        xattr_count: i_xattr_icount; see `xattr.body_size`.
        ino: a running number, for 32-bit stat(2) only.
    """

    nid: int
    extended: bool
    layout: DataLayout
    mode: int
    uid: int
    gid: int
    mtime: int
    mtime_ns: int
    nlink: int
    size: int
    start: int = 0
    rdev: int = 0
    xattr_count: int = 0
    ino: int = 0

    @property
    def header_size(self) -> int:
        """Bytes of the inode itself."""
        return EXTENDED_SIZE if self.extended else COMPACT_SIZE

    @property
    def file_type(self) -> FileType:
        """What it is."""
        return FILE_TYPES[stat.S_IFMT(self.mode)]


def encode_rdev(major: int, minor: int) -> int:
    """Give a device number as it is stored: Linux's new_encode_dev.

    Raises:
        FormatError: the parts have more than 12 and 20 bits.
    """
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
        raise FormatError("device number", f"{major}:{minor} does not fit in 12 and 20 bits")
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def decode_rdev(rdev: int) -> tuple[int, int]:
    """Give the major and minor part of a stored device number."""
    return rdev >> 8 & 0xFFF, rdev & 0xFF | rdev >> 12 & 0xFFF00


def inode_format(data: bytes) -> int:
    """Give i_format, from the first two bytes of an inode.

    Raises:
        FormatError: truncated, or bits of a newer format.
    """
    if len(data) < 2:
        raise FormatError("inode", "truncated")
    value = int.from_bytes(data[:2], "little")
    if value & ~I_ALL:
        raise FormatError("inode", f"unknown i_format {value:#x}")
    return value


def parse_inode(data: bytes, nid: int, *, epoch: int = 0, fixed_nsec: int = 0) -> Inode:
    """Give the inode in exactly its bytes, 32 or 64 as the first bit says.

    Args:
        data: the inode.
        nid: where it lies.
        epoch: the superblock's, in seconds: a compact inode's mtime counts from it.
        fixed_nsec: the superblock's: a compact inode's nanoseconds.

    Raises:
        FormatError: another length, an unknown layout or type, an impossible size or time.
    """
    value = inode_format(data)
    number = value >> I_DATALAYOUT_BIT
    if number >= len(_LAYOUTS):
        raise FormatError("inode", f"unknown data layout {number}")
    if value & I_VERSION_EXTENDED:
        raw = erofs_inode_extended.decode(data)
        mtime = raw.i_mtime - (raw.i_mtime >> 63 << 64)
        mtime_ns = raw.i_mtime_nsec
    else:
        raw = erofs_inode_compact.decode(data)
        mtime = epoch + raw.i_mtime
        mtime_ns = fixed_nsec
    kind = stat.S_IFMT(raw.i_mode)
    if kind not in FILE_TYPES:
        raise FormatError("inode", f"mode {raw.i_mode:#o} has no known type")
    if raw.i_size > MAX_FILE_SIZE or mtime_ns >= NANOSECONDS:
        raise FormatError("inode", f"impossible size {raw.i_size} or nanoseconds {mtime_ns}")
    return Inode(
        nid=nid,
        extended=bool(value & I_VERSION_EXTENDED),
        layout=_LAYOUTS[number],
        mode=raw.i_mode,
        uid=raw.i_uid,
        gid=raw.i_gid,
        mtime=mtime,
        mtime_ns=mtime_ns,
        nlink=raw.i_nlink,
        size=raw.i_size,
        start=raw.i_u if kind in _WITH_DATA else 0,
        rdev=raw.i_u if kind in _WITH_NUMBER else 0,
        xattr_count=raw.i_xattr_icount,
        ino=raw.i_ino,
    )


def serialize_inode(inode: Inode, *, epoch: int = 0) -> bytes:
    """Give an inode's 32 or 64 bytes.

    A compact inode has no nanoseconds of its own: the superblock's fixed_nsec must be right.

    Raises:
        FormatError: a number that does not fit.
    """
    kind = stat.S_IFMT(inode.mode)
    value = inode.layout << I_DATALAYOUT_BIT | (I_VERSION_EXTENDED if inode.extended else 0)
    common = {
        "i_format": value,
        "i_xattr_icount": inode.xattr_count,
        "i_mode": inode.mode,
        "i_nlink": inode.nlink,
        "i_size": inode.size,
        "i_u": inode.start if kind in _WITH_DATA else inode.rdev,
        "i_ino": inode.ino,
        "i_uid": inode.uid,
        "i_gid": inode.gid,
    }
    if not inode.extended:
        return erofs_inode_compact.encode(i_mtime=inode.mtime - epoch, **common)
    if not -(1 << 63) <= inode.mtime < 1 << 63:
        raise FormatError("inode", f"mtime {inode.mtime} does not fit in 64 bits")
    return erofs_inode_extended.encode(
        i_nb=0, i_mtime=inode.mtime % (1 << 64), i_mtime_nsec=inode.mtime_ns, **common
    )
