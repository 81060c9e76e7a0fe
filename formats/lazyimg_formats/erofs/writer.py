"""Tree to image: `serialize_image`. The package's text says what comes out.

Two passes. The first one visits every name once, gives each node its place and makes the blocks of
directories, for which names and places are enough. Then the size of the image is known, and with it
the addresses of its blocks and of the devices behind it; the second pass writes the inodes.

Small things fill gaps: where an inode with its tail does not fit in what is left of a block, the
rest of the block is kept for inodes that do.
"""

from __future__ import annotations

import gc
import hashlib
import stat
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from lazyimg_formats.erofs.chunk import ChunkFormat, serialize_chunk_format
from lazyimg_formats.erofs.dirent import check_names, serialize_block, split_names
from lazyimg_formats.erofs.inode import EXTENDED_SIZE, FILE_TYPES
from lazyimg_formats.erofs.layout import (
    BLOCK_BITS,
    BLOCK_SIZE,
    EROFS_SUPER_OFFSET,
    I_DATALAYOUT_BIT,
    I_VERSION_EXTENDED,
    MAX_ENTRIES,
    MAX_PATH,
    NANOSECONDS,
    NID_SIZE,
    DataLayout,
    FeatureCompat,
    FeatureIncompat,
    FileType,
    erofs_dirent,
    erofs_inode_chunk_index,
    inode_extended,
)
from lazyimg_formats.erofs.placement import Area, Slots
from lazyimg_formats.erofs.superblock import (
    SLOT_SIZE,
    SUPERBLOCK_SIZE,
    Superblock,
    checksum_range,
    compute_checksum,
    serialize_superblock,
)
from lazyimg_formats.erofs.tree import ChunkData, FlatData
from lazyimg_formats.erofs.xattr import body_count, serialize_body
from lazyimg_formats.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lazyimg_formats.erofs.tree import Device, Node

_TABLE: Final = EROFS_SUPER_OFFSET + SUPERBLOCK_SIZE
_PLAIN: Final = DataLayout.FLAT_PLAIN << I_DATALAYOUT_BIT | I_VERSION_EXTENDED
_INLINE: Final = DataLayout.FLAT_INLINE << I_DATALAYOUT_BIT | I_VERSION_EXTENDED
_CHUNKED: Final = DataLayout.CHUNK_BASED << I_DATALAYOUT_BIT | I_VERSION_EXTENDED
_NOTHING: Final = -1
_IMAGE: Final = -2
_CHUNK_ALIGNMENT: Final = erofs_inode_chunk_index.size


def serialize_image(root: Node, devices: Sequence[Device] = ()) -> bytes:
    """Give the image of a tree: its bootstrap, when the files' bytes lie on devices.

    The slots are the `devices` that have blocks, in their order. The garbage collector pauses.

    Args:
        root: a directory. Not changed, and must not be while this runs.
        devices: what `FlatData` and `ChunkData` count.

    Raises:
        FormatError: the tree has what an image cannot hold: an impossible name, mode, number,
            target or attribute, a directory with two names, data outside its device.
    """
    with _paused_collector():
        plan = _Plan(root, Slots(devices))
        plan.visit()
        return plan.serialize()


@contextmanager
def _paused_collector() -> Iterator[None]:
    """Millions of objects are made that hold no cycles: looking for some costs 40 %."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@dataclass(slots=True)
class _Body:
    """What an inode has beyond its node's own fields.

    Attributes:
        xattrs: the attributes' bytes.
        format: i_format.
        size: i_size.
        start: i_u, or what it counts from `base`.
        base: index of a device, or `_IMAGE`: the blocks behind the inodes, or `_NOTHING`.
        links: i_nlink of a directory; 0: as many as names were met.
        tail: what follows the attributes.
    """

    xattrs: bytes
    format: int = _PLAIN
    size: int = 0
    start: int = 0
    base: int = _NOTHING
    links: int = 0
    tail: bytes = b""


@dataclass(slots=True)
class _Directory:
    """A directory whose children have no place yet.

    Attributes:
        children: by name.
        names: theirs with ``.`` and ``..``, sorted.
        ends: where each block's names end.
        body: its inode's.
        nid: where its inode is.
        parent: where its parent's is.
    """

    children: dict[bytes, Node]
    names: list[bytes]
    ends: list[int]
    body: _Body
    nid: int
    parent: int


class _Plan:
    """One image in the making."""

    def __init__(self, root: Node, slots: Slots) -> None:
        self._slots = slots
        self._area = Area(_TABLE + slots.count * SLOT_SIZE)
        self._nodes: list[Node] = []
        self._places: list[int] = []
        self._nids: dict[int, int] = {}  # by identity of the node
        self._links: dict[int, int] = {}  # names of what has several, by nid
        self._bodies: dict[int, _Body] = {}  # by position, of what is not just flat
        self._blocks: list[bytes] = []  # behind the inodes, whole
        self._stack: list[_Directory] = []
        self._chunked = False
        if stat.S_IFMT(root.mode) != stat.S_IFDIR:
            raise FormatError("root", f"mode {root.mode:#o} is not that of a directory")
        self._names = 0
        self._stack[0].parent = self._add(root, 0)

    def visit(self) -> None:
        """First pass: find a place for everything, make the directories."""
        stack = self._stack
        while stack:
            directory = stack.pop()
            first = len(stack)
            self._fill(directory)
            stack[first:] = reversed(stack[first:])  # the first name comes next

    def _fill(self, directory: _Directory) -> None:
        """Place a directory's children, then serialize it."""
        self._names += len(directory.names)
        if self._names > MAX_ENTRIES:
            raise FormatError("tree", f"more than {MAX_ENTRIES} names")
        nids_by_id, slots_check = self._nids, self._slots.check
        place, nodes, places = self._area.place, self._nodes, self._places
        children, parent = directory.children, directory.nid
        nids = []
        types = []
        folders = 2
        for name in directory.names:
            node = children.get(name)
            if node is None:
                nids.append(parent if name == b"." else directory.parent)
                types.append(FileType.DIR)
                continue
            file_type = FILE_TYPES.get(node.mode & 0o170000, FileType.UNKNOWN)
            nid = nids_by_id.get(id(node))
            if nid is None:
                data = node.data
                if type(data) is FlatData and not node.xattrs and file_type is FileType.REG_FILE:
                    slots_check(data.device, data.block, node.size)
                    position = place(EXTENDED_SIZE)
                    nid = position // NID_SIZE
                    nids_by_id[id(node)] = nid
                    nodes.append(node)
                    places.append(position)
                else:
                    nid = self._add(node, parent)
            elif file_type is FileType.DIR:
                raise FormatError("directory", f"it has a second name, {name!r}")
            else:
                self._links[nid] = self._links.get(nid, 1) + 1
            folders += file_type is FileType.DIR
            nids.append(nid)
            types.append(file_type)
        directory.body.links = folders
        self._write_directory(directory, nids, types)

    def _write_directory(
        self, directory: _Directory, nids: list[int], types: list[FileType]
    ) -> None:
        begin = 0
        blocks = []
        for end in directory.ends:
            blocks.append(
                serialize_block(directory.names[begin:end], nids[begin:end], types[begin:end])
            )
            begin = end
        body = directory.body
        if body.format == _INLINE:
            body.tail = blocks.pop()
        for number, block in enumerate(blocks, body.start):
            self._blocks[number] = block.ljust(BLOCK_SIZE, b"\0")

    def _add(self, node: Node, parent: int) -> int:
        """Place a node of any kind; gives its nid."""
        body = _Body(serialize_body(node.xattrs))
        match FILE_TYPES.get(stat.S_IFMT(node.mode)):
            case FileType.DIR:
                position = self._place_directory(node, body, parent)
            case FileType.REG_FILE:
                position = self._place_regular(node, body)
            case FileType.SYMLINK:
                if not 0 < len(node.target) < MAX_PATH or b"\0" in node.target:
                    raise FormatError("symbolic link", f"impossible target {node.target[:80]!r}")
                position = self._place_bytes(node.target, body)
            case None:
                raise FormatError("inode", f"mode {node.mode:#o} has no known type")
            case file_type:
                if file_type in {FileType.CHRDEV, FileType.BLKDEV}:
                    body.start = node.rdev
                position = self._area.place(EXTENDED_SIZE + len(body.xattrs))
        nid = position // NID_SIZE
        self._nids[id(node)] = nid
        self._nodes.append(node)
        self._places.append(position)
        self._bodies[position] = body
        return nid

    def _place_directory(self, node: Node, body: _Body, parent: int) -> int:
        if node.children is None:
            raise FormatError("directory", "it has no children, not even none")
        names = list(node.children)
        check_names(names)
        names += [b".", b".."]
        names.sort()
        ends = split_names(names)
        full = len(ends) - 1
        last = names[ends[-2] :] if full else names
        tail = erofs_dirent.size * len(last) + sum(map(len, last))
        body.size = full * BLOCK_SIZE + tail
        position = self._place_flat(body, full, tail)
        nid = position // NID_SIZE
        self._stack.append(_Directory(node.children, names, ends, body, nid, parent))
        return position

    def _place_flat(self, body: _Body, full: int, tail: int) -> int:
        """Place an inode with `full` blocks and `tail` bytes; makes room for the blocks."""
        size = EXTENDED_SIZE + len(body.xattrs)
        if tail and size + tail <= BLOCK_SIZE:
            body.format = _INLINE
            position = self._area.place_whole(size + tail)
        else:
            full += tail > 0
            position = self._area.place(size)
        if full:
            body.base = _IMAGE
            body.start = len(self._blocks)
            self._blocks += [b""] * full
        return position

    def _place_bytes(self, data: bytes, body: _Body) -> int:
        """Place an inode with its bytes: a symbolic link or an embedded file."""
        full, tail = divmod(len(data), BLOCK_SIZE)
        body.size = len(data)
        position = self._place_flat(body, full, tail)
        if body.format == _INLINE:
            body.tail = data[full * BLOCK_SIZE :]
            data = data[: full * BLOCK_SIZE]
        for number, begin in enumerate(range(0, len(data), BLOCK_SIZE), body.start):
            self._blocks[number] = data[begin : begin + BLOCK_SIZE].ljust(BLOCK_SIZE, b"\0")
        return position

    def _place_regular(self, node: Node, body: _Body) -> int:
        data = node.data
        if isinstance(data, bytes):
            return self._place_bytes(data, body)
        body.size = node.size
        if isinstance(data, FlatData):
            self._slots.check(data.device, data.block, node.size)
            body.base, body.start = data.device, data.block
        elif isinstance(data, ChunkData):
            self._add_chunks(data, body)
        elif node.size:
            raise FormatError("data of a file", f"nothing says where its {node.size} bytes are")
        return self._area.place(EXTENDED_SIZE + len(body.xattrs) + len(body.tail))

    def _add_chunks(self, data: ChunkData, body: _Body) -> None:
        body.format = _CHUNKED
        body.start = serialize_chunk_format(ChunkFormat(data.bits, indexes=True), BLOCK_BITS)
        chunk = 1 << data.bits
        if len(data.blocks) != -(-body.size >> data.bits):
            raise FormatError(
                "data of a file", f"{len(data.blocks)} chunks of {chunk} bytes for {body.size}"
            )
        left = body.size
        devices = [data.device] * len(data.blocks) if data.devices is None else data.devices
        pack, numbers = erofs_inode_chunk_index.pack, self._slots.numbers
        indexes = [bytes(-len(body.xattrs) % _CHUNK_ALIGNMENT)]
        for device, block in zip(devices, data.blocks, strict=True):
            self._slots.check(device, block, min(left, chunk))
            indexes.append(pack(0, numbers[device], block))
            left -= chunk
        body.tail = b"".join(indexes)
        self._chunked = True

    def serialize(self) -> bytes:
        """Second pass: write everything."""
        first = -(-self._area.end // BLOCK_SIZE)
        blocks = first + len(self._blocks)
        image = bytearray(first * BLOCK_SIZE)
        self._write_inodes(image, [*self._slots.starts(blocks), first, 0])
        table = self._slots.serialize(blocks)
        image[_TABLE : _TABLE + len(table)] = table
        image += b"".join(self._blocks)
        self._write_superblock(image, blocks)
        return bytes(image)

    def _write_inodes(self, image: bytearray, bases: list[int]) -> None:
        """`bases`: where each device starts, then, found at `_IMAGE`, the blocks, then 0."""
        pack, bodies, links = inode_extended.pack_into, self._bodies, self._links
        for node in self._nodes:
            if not 0 <= node.mtime_ns < NANOSECONDS:
                raise FormatError("inode", f"{node.mtime_ns} nanoseconds")
        try:
            for ino, (node, position) in enumerate(zip(self._nodes, self._places, strict=True), 1):
                body = bodies.get(position)
                if body is None:
                    data = cast("FlatData", node.data)
                    pack(
                        image, position, _PLAIN, 0, node.mode, node.size,
                        bases[data.device] + data.block, ino, node.uid, node.gid,
                        node.mtime, node.mtime_ns, links.get(position // NID_SIZE, 1),
                    )  # fmt: skip
                    continue
                pack(
                    image, position, body.format, body_count(len(body.xattrs)), node.mode,
                    body.size, bases[body.base] + body.start, ino, node.uid, node.gid,
                    node.mtime, node.mtime_ns,
                    body.links or links.get(position // NID_SIZE, 1),
                )  # fmt: skip
                begin = position + EXTENDED_SIZE
                more = body.xattrs + body.tail
                image[begin : begin + len(more)] = more
        except struct.error as error:
            raise FormatError(
                "inode",
                f"a number does not fit ({error}): mode {node.mode:#o}, uid {node.uid}, "
                f"gid {node.gid}, size {node.size}, rdev {node.rdev}, "
                f"mtime {node.mtime} s {node.mtime_ns} ns",
            ) from error

    def _write_superblock(self, image: bytearray, blocks: int) -> None:
        incompat = FeatureIncompat(0)
        if self._slots.count:
            incompat |= FeatureIncompat.DEVICE_TABLE
        if self._chunked:
            incompat |= FeatureIncompat.CHUNKED_FILE
        superblock = Superblock(
            block_bits=BLOCK_BITS,
            root_nid=self._places[0] // NID_SIZE,
            inodes=len(self._nodes),
            blocks=blocks,
            uuid=bytes(16),
            compat=FeatureCompat.SB_CHKSUM | FeatureCompat.MTIME,
            incompat=incompat,
            devices=self._slots.count,
            slot_offset=_TABLE // SLOT_SIZE if self._slots.count else 0,
        )
        image[EROFS_SUPER_OFFSET:_TABLE] = serialize_superblock(superblock)
        digest = hashlib.sha256(image).digest()
        image[EROFS_SUPER_OFFSET + 48 : EROFS_SUPER_OFFSET + 64] = digest[:16]
        covered = checksum_range(BLOCK_BITS)
        checksum = compute_checksum(image[covered.start : covered.stop])
        image[EROFS_SUPER_OFFSET + 4 : EROFS_SUPER_OFFSET + 8] = checksum.to_bytes(4, "little")
