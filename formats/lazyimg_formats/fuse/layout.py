"""Structures of include/uapi/linux/fuse.h (7.45), under the kernel's names. Declarations only."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

from construct import Int16un, Int32sn, Int32un, Int64un, Padding, Struct

from lazyimg_formats.codec import Layout

KERNEL_VERSION: Final = 7
"""FUSE_KERNEL_VERSION: the major version, the only one there is."""

KERNEL_MINOR_VERSION: Final = 45
"""FUSE_KERNEL_MINOR_VERSION of these declarations."""

ROOT_ID: Final = 1
"""FUSE_ROOT_ID: the node of the root directory."""

UNIQUE_RESEND: Final = 1 << 63
"""FUSE_UNIQUE_RESEND: the request was sent before, to a process that may have died."""

DEV_IOC_BACKING_OPEN: Final = 0x4010E501
"""_IOW(229, 1, struct fuse_backing_map): gives a backing id."""

DEV_IOC_BACKING_CLOSE: Final = 0x4004E502
"""_IOW(229, 2, uint32_t): gives it back."""


class Opcode(IntEnum):
    """enum fuse_opcode, as far as it is answered with more than ENOSYS, or not at all."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    OPEN = 14
    READ = 15
    STATFS = 17
    RELEASE = 18
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42


class Notify(IntEnum):
    """enum fuse_notify_code, as far as it is used."""

    RESEND = 7


class InitFlag(IntFlag):
    """Flags of INIT and its answer; from bit 32 on they are in `flags2`."""

    ASYNC_READ = 1 << 0
    ASYNC_DIO = 1 << 15
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    INIT_EXT = 1 << 30
    PASSTHROUGH = 1 << 37
    HAS_RESEND = 1 << 39
    REQUEST_TIMEOUT = 1 << 42


class OpenFlag(IntFlag):
    """Flags of the answer to OPEN."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    PASSTHROUGH = 1 << 7


fuse_in_header = Layout(
    "fuse_in_header",
    Struct(
        "len" / Int32un,
        "opcode" / Int32un,
        "unique" / Int64un,
        "nodeid" / Int64un,
        "uid" / Int32un,
        "gid" / Int32un,
        "pid" / Int32un,
        "total_extlen" / Int16un,
        "padding" / Int16un,
    ),
)

fuse_out_header = Layout(
    "fuse_out_header", Struct("len" / Int32un, "error" / Int32sn, "unique" / Int64un)
)

fuse_init_in_before_ext = Layout(
    "fuse_init_in",
    Struct("major" / Int32un, "minor" / Int32un, "max_readahead" / Int32un, "flags" / Int32un),
)
"""What kernels before 7.36 send."""

fuse_init_in = Layout(
    "fuse_init_in",
    Struct(
        "major" / Int32un,
        "minor" / Int32un,
        "max_readahead" / Int32un,
        "flags" / Int32un,
        "flags2" / Int32un,
        Padding(44),
    ),
)

fuse_init_out = Layout(
    "fuse_init_out",
    Struct(
        "major" / Int32un,
        "minor" / Int32un,
        "max_readahead" / Int32un,
        "flags" / Int32un,
        "max_background" / Int16un,
        "congestion_threshold" / Int16un,
        "max_write" / Int32un,
        "time_gran" / Int32un,
        "max_pages" / Int16un,
        "map_alignment" / Int16un,
        "flags2" / Int32un,
        "max_stack_depth" / Int32un,
        "request_timeout" / Int16un,
        Padding(22),
    ),
)

_attr = Struct(
    "ino" / Int64un,
    "size" / Int64un,
    "blocks" / Int64un,
    "atime" / Int64un,
    "mtime" / Int64un,
    "ctime" / Int64un,
    "atimensec" / Int32un,
    "mtimensec" / Int32un,
    "ctimensec" / Int32un,
    "mode" / Int32un,
    "nlink" / Int32un,
    "uid" / Int32un,
    "gid" / Int32un,
    "rdev" / Int32un,
    "blksize" / Int32un,
    "flags" / Int32un,
)

fuse_attr = Layout("fuse_attr", _attr)

fuse_entry_out = Layout(
    "fuse_entry_out",
    Struct(
        "nodeid" / Int64un,
        "generation" / Int64un,
        "entry_valid" / Int64un,
        "attr_valid" / Int64un,
        "entry_valid_nsec" / Int32un,
        "attr_valid_nsec" / Int32un,
        "attr" / _attr,
    ),
)

fuse_attr_out = Layout(
    "fuse_attr_out",
    Struct("attr_valid" / Int64un, "attr_valid_nsec" / Int32un, Padding(4), "attr" / _attr),
)

fuse_getattr_in = Layout(
    "fuse_getattr_in", Struct("getattr_flags" / Int32un, "dummy" / Int32un, "fh" / Int64un)
)

fuse_forget_in = Layout("fuse_forget_in", Struct("nlookup" / Int64un))

fuse_batch_forget_in = Layout("fuse_batch_forget_in", Struct("count" / Int32un, "dummy" / Int32un))

fuse_forget_one = Layout("fuse_forget_one", Struct("nodeid" / Int64un, "nlookup" / Int64un))

fuse_open_in = Layout("fuse_open_in", Struct("flags" / Int32un, "open_flags" / Int32un))

fuse_open_out = Layout(
    "fuse_open_out", Struct("fh" / Int64un, "open_flags" / Int32un, "backing_id" / Int32sn)
)

fuse_read_in = Layout(
    "fuse_read_in",
    Struct(
        "fh" / Int64un,
        "offset" / Int64un,
        "size" / Int32un,
        "read_flags" / Int32un,
        "lock_owner" / Int64un,
        "flags" / Int32un,
        "padding" / Int32un,
    ),
)

fuse_release_in = Layout(
    "fuse_release_in",
    Struct("fh" / Int64un, "flags" / Int32un, "release_flags" / Int32un, "lock_owner" / Int64un),
)

fuse_interrupt_in = Layout("fuse_interrupt_in", Struct("unique" / Int64un))

fuse_kstatfs = Layout(
    "fuse_kstatfs",
    Struct(
        "blocks" / Int64un,
        "bfree" / Int64un,
        "bavail" / Int64un,
        "files" / Int64un,
        "ffree" / Int64un,
        "bsize" / Int32un,
        "namelen" / Int32un,
        "frsize" / Int32un,
        Padding(28),
    ),
)

fuse_dirent = Layout(
    "fuse_dirent",
    Struct("ino" / Int64un, "off" / Int64un, "namelen" / Int32un, "type" / Int32un),
)
"""Without the name, which follows, padded to 8 bytes."""

fuse_backing_map = Layout("fuse_backing_map", Struct("fd" / Int32sn, Padding(12)))
