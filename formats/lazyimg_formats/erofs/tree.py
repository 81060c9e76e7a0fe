"""What the writer takes: a tree of nodes, and the devices that hold the regular files' bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Device:
    """A device of an image.

    Attributes:
        name: 1 to 64 printable ASCII characters: the slot's tag, by which the kernel asks for it.
        blocks: its size in blocks of 4,096 bytes.
    """

    name: str
    blocks: int


@dataclass(frozen=True, slots=True)
class FlatData:
    """A file's bytes follow each other on one device.

    Attributes:
        device: index into the devices.
        block: where they begin, in blocks of 4,096 bytes.
    """

    device: int
    block: int


@dataclass(frozen=True, slots=True)
class ChunkData:
    """A file's bytes lie in chunks.

    Attributes:
        bits: a chunk has 2**bits bytes, 12 to 43; the last one may have fewer.
        blocks: for each chunk, the device block that it begins at.
        device: index into the devices.
        devices: for each chunk such an index, if they lie on several; then `device` says nothing.
    """

    bits: int
    blocks: Sequence[int]
    device: int
    devices: Sequence[int] | None = None


@dataclass(slots=True, eq=False)
class Node:
    """A file of any type. The same node under several names is a file with hard links.

    Attributes:
        mode: type bits and permission bits (st_mode).
        uid: owner, 32 bits.
        gid: group, 32 bits.
        mtime: seconds since the epoch, may be negative, 64 bits.
        mtime_ns: nanoseconds added to it, 0 to 999,999,999.
        rdev: of a character or block device: its number, as `inode.encode_rdev` gives it.
        xattrs: (name, value) pairs; the order is kept.
        size: bytes of a regular file whose data lies on a device.
        target: a symbolic link's text.
        children: of a directory: its names, without ``.`` and ``..``. Nothing else has any.
        data: of a regular file: None if it is empty, where its bytes lie, or, for images without
            devices, the bytes themselves, which the image then holds.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    mtime_ns: int = 0
    rdev: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    size: int = 0
    target: bytes = b""
    children: dict[bytes, Node] | None = None
    data: FlatData | ChunkData | bytes | None = None
