"""Inodes in both forms, both ways. The first sample is from mkfs.erofs 1.5."""

from __future__ import annotations

import os
import stat
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyimg_formats.erofs.inode import (
    Inode,
    decode_rdev,
    encode_rdev,
    inode_format,
    parse_inode,
    serialize_inode,
)
from lazyimg_formats.erofs.layout import DataLayout, FileType
from lazyimg_formats.errors import FormatError

COMPACT = bytes.fromhex(
    "0400 0500 a481 0200  88130000 00000000  07000000 03000000  0100 0200 00000000"
)
COMPACT_INODE = Inode(
    nid=40,
    extended=False,
    layout=DataLayout.FLAT_INLINE,
    mode=0o100644,
    uid=1,
    gid=2,
    mtime=1_600_000_000,
    mtime_ns=5,
    nlink=2,
    size=5000,
    start=7,
    xattr_count=5,
    ino=3,
)
EXTENDED = bytes.fromhex(
    "0100 0000 b661 0000  0000000000000000  46030510 09000000  00286bee 70110100"
    "feffffffffffffff  ffc99a3b 01000000  00000000000000000000000000000000"
)
EXTENDED_INODE = Inode(
    nid=41,
    extended=True,
    layout=DataLayout.FLAT_PLAIN,
    mode=stat.S_IFBLK | 0o666,
    uid=4_000_000_000,
    gid=70_000,
    mtime=-2,
    mtime_ns=999_999_999,
    nlink=1,
    size=0,
    rdev=0x10050346,
    ino=9,
)


def u(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, 2**bits - 1)


modes = st.builds(
    lambda kind, rest: kind | rest,
    st.sampled_from([stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK]),
    st.integers(0, 0o7777),
)
layouts = st.sampled_from(DataLayout)


def test_parse_compact() -> None:
    assert parse_inode(COMPACT, 40, epoch=1_600_000_000, fixed_nsec=5) == COMPACT_INODE
    assert COMPACT_INODE.header_size == 32


def test_serialize_compact() -> None:
    assert serialize_inode(COMPACT_INODE, epoch=1_600_000_000) == COMPACT
    later = replace(COMPACT_INODE, mtime=1_600_000_001)
    assert serialize_inode(later, epoch=1_600_000_000)[12:16] == b"\1\0\0\0"


def test_extended() -> None:
    assert parse_inode(EXTENDED, 41, epoch=77, fixed_nsec=5) == EXTENDED_INODE
    assert serialize_inode(EXTENDED_INODE, epoch=77) == EXTENDED
    assert EXTENDED_INODE.header_size == 64


@pytest.mark.parametrize("whole", [COMPACT, EXTENDED])
def test_truncated_and_trailing(whole: bytes) -> None:
    for data in [whole[:size] for size in range(len(whole))] + [whole + b"\0"]:
        with pytest.raises(FormatError, match=r"^(inode: truncated|erofs_inode_.*: expected )"):
            parse_inode(data, 1)


@pytest.mark.parametrize(
    ("where", "value", "problem"),
    [
        (0, 0x0010, "unknown i_format 0x10"),
        (0, 0x8000, "unknown i_format 0x8000"),
        (0, 0x000B, "unknown data layout 5"),
        (4, 0o0644, "mode 0o644 has no known type"),
        (4, 0o170644, "mode 0o170644 has no known type"),
        (14, 0x8000, "impossible size 9223372036854775808 or nanoseconds 999999999"),
        (40, 0xCA00, "impossible size 0 or nanoseconds 1000000000"),
    ],
)
def test_impossible_field(where: int, value: int, problem: str) -> None:
    data = EXTENDED[:where] + value.to_bytes(2, "little") + EXTENDED[where + 2 :]
    with pytest.raises(FormatError) as caught:
        parse_inode(data, 1)
    assert str(caught.value) == f"inode: {problem}"


@pytest.mark.parametrize(
    ("kind", "file_type"),
    [
        (stat.S_IFREG, FileType.REG_FILE),
        (stat.S_IFDIR, FileType.DIR),
        (stat.S_IFCHR, FileType.CHRDEV),
        (stat.S_IFBLK, FileType.BLKDEV),
        (stat.S_IFIFO, FileType.FIFO),
        (stat.S_IFSOCK, FileType.SOCK),
        (stat.S_IFLNK, FileType.SYMLINK),
    ],
)
def test_file_type(kind: int, file_type: FileType) -> None:
    inode = replace(EXTENDED_INODE, mode=kind | 0o7777)
    assert parse_inode(serialize_inode(inode), 41).file_type is file_type


def test_pipe_has_no_number() -> None:
    data = bytearray(EXTENDED)
    data[4:6] = (stat.S_IFIFO).to_bytes(2, "little")
    inode = parse_inode(bytes(data), 1)
    assert (inode.rdev, inode.start) == (0, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"uid": 1 << 32},
        {"size": -1},
        {"mtime": 1 << 63},
        {"mtime": -(1 << 63) - 1},
        {"mode": 1 << 16},
    ],
)
def test_number_that_does_not_fit(change: dict[str, int]) -> None:
    with pytest.raises(FormatError):
        serialize_inode(replace(EXTENDED_INODE, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"uid": 1 << 16}, {"nlink": 1 << 16}, {"size": 1 << 32}])
def test_number_that_does_not_fit_in_a_compact_inode(change: dict[str, int]) -> None:
    with pytest.raises(FormatError, match=r"^erofs_inode_compact: "):
        serialize_inode(replace(COMPACT_INODE, **change), epoch=1_600_000_000)  # type: ignore[arg-type]


@settings(max_examples=40)
@given(
    st.builds(
        Inode, nid=u(64), extended=st.sampled_from([True]), layout=layouts, mode=modes, uid=u(32),
        gid=u(32), mtime=st.integers(-(2**63), 2**63 - 1), mtime_ns=st.integers(0, 999_999_999),
        nlink=u(32), size=u(63), start=u(32), xattr_count=u(16), ino=u(32),
    )
)  # fmt: skip
def test_round_trip_of_extended(inode: Inode) -> None:
    assert parse_inode(serialize_inode(inode), inode.nid) == inode


@settings(max_examples=40)
@given(
    st.builds(
        Inode, nid=u(64), extended=st.sampled_from([False]), layout=layouts, mode=modes, uid=u(16),
        gid=u(16), mtime=u(32), mtime_ns=st.just(3), nlink=u(16), size=u(32), start=u(32),
        xattr_count=u(16), ino=u(32),
    )
)  # fmt: skip
def test_round_trip_of_compact(inode: Inode) -> None:
    assert parse_inode(serialize_inode(inode), inode.nid, fixed_nsec=3) == inode


@settings(max_examples=100)
@given(st.binary(min_size=32, max_size=32) | st.binary(min_size=64, max_size=64))
def test_any_bytes(data: bytes) -> None:
    try:
        inode = parse_inode(data, 1)
    except FormatError:
        return
    assert parse_inode(serialize_inode(inode), 1) == inode


def test_format_of_nothing() -> None:
    assert inode_format(b"\x05\0more") == 5
    with pytest.raises(FormatError, match=r"^inode: truncated$"):
        inode_format(b"\x05")


@given(st.integers(0, 4095), st.integers(0, 2**20 - 1))
def test_device_number_is_that_of_stat(major: int, minor: int) -> None:
    assert encode_rdev(major, minor) == os.makedev(major, minor)
    assert decode_rdev(encode_rdev(major, minor)) == (major, minor)


@pytest.mark.parametrize(("major", "minor"), [(4096, 0), (0, 1 << 20), (-1, 0), (0, -1)])
def test_device_number_that_does_not_fit(major: int, minor: int) -> None:
    with pytest.raises(FormatError) as caught:
        encode_rdev(major, minor)
    assert str(caught.value) == f"device number: {major}:{minor} does not fit in 12 and 20 bits"
