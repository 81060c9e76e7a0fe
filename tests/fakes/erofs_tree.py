"""A tree with whatever an EROFS image can hold, and what must be seen of it wherever it is read."""

from __future__ import annotations

import os
import random
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lazyimg_formats.erofs.inode import decode_rdev, encode_rdev
from lazyimg_formats.erofs.layout import FileType
from lazyimg_formats.erofs.tree import ChunkData, Device, FlatData, Node

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lazyimg_formats.erofs.inode import Inode
    from lazyimg_formats.erofs.reader import Image

BLOCK = 4096
FILE = stat.S_IFREG
DIRECTORY = stat.S_IFDIR | 0o755
LINK = stat.S_IFLNK | 0o777

ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in [
        (1, 7, 0xFFFFFFFF), (2, 5, 4321), (4, 5, 0xFFFFFFFF), (0x10, 5, 0xFFFFFFFF),
        (0x20, 5, 0xFFFFFFFF),
    ]
)  # fmt: skip
CAPABILITY = struct.pack("<IIIII", 0x02000001, 0x400, 0, 0, 0)


@dataclass(frozen=True)
class Seen:
    """A path, as lstat(2), read(2), readlink(2) and getxattr(2) show it."""

    mode: int
    uid: int
    gid: int
    mtime: int  # in nanoseconds
    nlink: int
    rdev: int
    size: int | None  # None: a directory's is the image's affair
    data: bytes  # of a file; a link's target
    xattrs: dict[bytes, bytes]
    names: list[bytes] | None  # of a directory, in order


@dataclass
class Sample:
    """A tree, its devices, and each device's bytes."""

    root: Node
    devices: list[Device]
    contents: list[bytes]

    def seen(self) -> dict[bytes, Seen]:
        """Give what must be seen, by path; the root's is empty."""
        links: dict[int, int] = {}
        paths: list[tuple[bytes, Node]] = [(b"", self.root)]
        for path, node in paths:  # grows
            links[id(node)] = links.get(id(node), 0) + 1
            for name, child in (node.children or {}).items():
                paths.append((path + b"/" + name, child))
        return {path: self._seen(node, links[id(node)]) for path, node in paths}

    def _seen(self, node: Node, links: int) -> Seen:
        data = node.target or self.data(node)
        if node.children is not None:
            folders = [n for n in node.children.values() if n.children is not None]
            links = 2 + len(folders)
        return Seen(
            mode=node.mode,
            uid=node.uid,
            gid=node.gid,
            mtime=node.mtime * 10**9 + node.mtime_ns,
            nlink=links,
            rdev=node.rdev,
            size=None if node.children is not None else len(data),
            data=data,
            xattrs=dict(node.xattrs),
            names=None if node.children is None else sorted(node.children),
        )

    def data(self, node: Node) -> bytes:
        """Give a file's bytes."""
        match node.data:
            case bytes(embedded):
                return embedded
            case FlatData(device, block):
                return self.contents[device][block * BLOCK :][: node.size]
            case ChunkData(bits, blocks, device):
                content = self.contents[device]
                chunks = [content[block * BLOCK :][: 1 << bits] for block in blocks]
                return b"".join(chunks)[: node.size]
            case _:
                return b""


def seen_at(target: bytes) -> dict[bytes, Seen]:
    """Give what the kernel shows in a directory and below."""
    found = {}
    todo = [b""]
    while todo:
        path = todo.pop()
        found[path] = seen = _seen(target + path)
        todo += [path + b"/" + name for name in seen.names or ()]
    return found


def _seen(path: bytes) -> Seen:
    status = os.lstat(path)
    data = b""
    names = None
    if stat.S_ISDIR(status.st_mode):
        names = os.listdir(path)  # noqa: PTH208  # bytes
    elif stat.S_ISREG(status.st_mode):
        data = Path(os.fsdecode(path)).read_bytes()
    elif stat.S_ISLNK(status.st_mode):
        data = os.readlink(path)  # noqa: PTH115  # bytes
    return Seen(
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        mtime=status.st_mtime_ns,
        nlink=status.st_nlink,
        rdev=status.st_rdev,
        size=None if names is not None else status.st_size,
        data=data,
        xattrs={
            os.fsencode(name): os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        },
        names=names,
    )


def seen_in_image(image: Image) -> dict[bytes, Seen]:
    """Give what our reader shows."""
    return {(b"/" + path if path else path): _seen_in(image, inode) for path, inode in image.walk()}


def _seen_in(image: Image, inode: Inode) -> Seen:
    directory = inode.file_type is FileType.DIR
    return Seen(
        mode=inode.mode,
        uid=inode.uid,
        gid=inode.gid,
        mtime=inode.mtime * 10**9 + inode.mtime_ns,
        nlink=inode.nlink,
        rdev=os.makedev(*decode_rdev(inode.rdev)),
        size=None if directory else inode.size,
        data=b"" if directory else image.read(inode),
        xattrs=dict(image.xattrs(inode)),
        names=[d.name for d in image.read_directory(inode) if d.name not in {b".", b".."}]
        if directory
        else None,
    )


def _device(number: int, blocks: int) -> tuple[Device, bytes]:
    content = random.Random(number).randbytes(blocks * BLOCK)  # noqa: S311  # the same each time
    return Device(f"{number:064x}", blocks), content


def make_sample(*, names: int = 400, depth: int = 300) -> Sample:
    """Give the tree, with a directory of so many names and another one so deep."""
    sizes = [64, 0, 300, 1]
    pairs = [_device(number, blocks) for number, blocks in enumerate(sizes, 1)]
    root = Node(DIRECTORY | 0o1000, mtime=1_700_000_000, mtime_ns=999_999_999, children={})
    sample = Sample(root, [device for device, _ in pairs], [content for _, content in pairs])
    children = root.children
    assert children is not None
    children.update(_files())
    children.update(_specials())
    children.update(_attributes())
    many = {b"%d-%s" % (i, b"n" * (i % 240)): Node(FILE | 0o600, i, i) for i in range(names)}
    children[b"many"] = Node(DIRECTORY, children=many)
    deep = Node(DIRECTORY, children={b"bottom": Node(LINK, target=b"../" * 300)})
    for _ in range(depth):
        deep = Node(DIRECTORY, children={b"d": deep})
    children[b"deep"] = deep
    return sample


def _files() -> dict[bytes, Node]:
    hard = Node(FILE | 0o4755, 0, 0, 12, 34, size=10_000, data=FlatData(2, 10))
    chunks = ChunkData(16, array_of([0, 100, 16, 100, 250]), 2)
    sparse = ChunkData(12, [5, 5, 5, 6], 0)
    mebibyte = ChunkData(20, [40, 0], 2)
    return {
        b"empty": Node(FILE | 0o644),
        b"flat": Node(FILE | 0o644, 70_000, 4_000_000_000, -1, 1, size=1, data=FlatData(0, 0)),
        b"flat-whole": Node(FILE, 1, 2, 2**33, 5, size=64 * BLOCK, data=FlatData(0, 0)),
        b"flat-last": Node(FILE | 0o777, size=BLOCK - 1, data=FlatData(3, 0)),
        b"flat-empty": Node(FILE | 0o777, size=0, data=FlatData(1, 0)),
        b"hard": hard,
        b"chunks": Node(FILE | 0o640, size=4 * 65536 + 123, data=chunks),
        b"chunks-small": Node(FILE | 0o640, size=4 * BLOCK - 1, data=sparse),
        b"chunks-large": Node(FILE | 0o640, size=(1 << 20) + 1, data=mebibyte),
        b"chunks-none": Node(FILE | 0o640, size=0, data=ChunkData(16, [], 0)),
        b"embedded": Node(FILE | 0o444, data=b"short"),
        b"embedded-none": Node(FILE | 0o444, data=b""),
        b"embedded-block": Node(FILE | 0o444, data=b"b" * BLOCK),
        b"embedded-blocks": Node(FILE | 0o444, data=bytes(range(256)) * 50),
        b"embedded-tail-too-long": Node(FILE | 0o444, data=b"t" * (3 * BLOCK - 1)),
        b"folder": Node(
            DIRECTORY,
            mtime=-(2**40),
            children={
                b"hard-again": hard,
                b"hard-third": hard,
                b"none": Node(DIRECTORY | 0o7000, children={}),
                b"!before-the-dot": Node(FILE | 0o111),
                b"-": Node(DIRECTORY, children={b"+": hard}),
                b"n" * 255: Node(FILE | 0o222),
                b"\xff\xfe\n": Node(FILE | 0o222),
            },
        ),
    }


def _specials() -> dict[bytes, Node]:
    return {
        b"null": Node(stat.S_IFCHR | 0o666, rdev=encode_rdev(1, 3)),
        b"block": Node(stat.S_IFBLK | 0o660, 0, 6, rdev=encode_rdev(259, 70_000)),
        b"fifo": Node(stat.S_IFIFO | 0o600),
        b"socket": Node(stat.S_IFSOCK | 0o755),
        b"link": Node(LINK, 5, 6, 7, 8, target=b"folder/none"),
        b"link-long": Node(LINK, target=b"x/" * 2000),
        b"link-longest": Node(LINK, target=b"y" * 4095),
    }


def _attributes() -> dict[bytes, Node]:
    big = tuple((b"user.%d" % i, bytes([i]) * (i * 997 % 6000)) for i in range(12))
    acls = ((b"system.posix_acl_access", ACL), (b"system.posix_acl_default", ACL))
    flat, chunks = FlatData(0, 3), ChunkData(16, [0, 32], 0)
    label = ((b"security.selinux", b"label\0"),)
    large = ((b"user.large", b"L" * 65_535), (b"user.larger", b"M" * 60_000))
    return {
        b"attr-flat": Node(FILE | 0o755, size=5000, data=flat, xattrs=label),
        b"attr-capability": Node(FILE, xattrs=((b"security.capability", CAPABILITY),)),
        b"attr-large": Node(FILE | 0o644, xattrs=large),
        b"attr-chunks": Node(FILE | 0o644, size=65_537, data=chunks, xattrs=big),
        b"attr-embedded": Node(FILE | 0o644, data=b"e" * 4000, xattrs=label),
        b"attr-directory": Node(DIRECTORY, children={b"x": Node(FILE)}, xattrs=(*acls, *big)),
        b"attr-link": Node(LINK, target=b"t", xattrs=((b"trusted.empty", b""), *label)),
        b"attr-fifo": Node(stat.S_IFIFO, xattrs=((b"trusted." + b"n" * 247, b"v"),)),
    }


def array_of(blocks: Sequence[int]) -> Sequence[int]:
    """Give blocks as layers have them."""
    return tuple(blocks)
