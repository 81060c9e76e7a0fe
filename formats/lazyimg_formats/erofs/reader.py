"""An image, read: any uncompressed one, whoever made it. See `Image`."""

from __future__ import annotations

import stat
from bisect import bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from lazyimg_formats.erofs import xattr
from lazyimg_formats.erofs.chunk import Chunk, parse_chunk_format, parse_chunks
from lazyimg_formats.erofs.dirent import Dirent, parse_block
from lazyimg_formats.erofs.inode import (
    COMPACT_SIZE,
    EXTENDED_SIZE,
    Inode,
    inode_format,
    parse_inode,
)
from lazyimg_formats.erofs.layout import (
    EROFS_NULL_ADDR,
    EROFS_SUPER_OFFSET,
    I_VERSION_EXTENDED,
    MAX_DIRECTORY_SIZE,
    MAX_ENTRIES,
    MAX_IMAGE_SIZE,
    MAX_PATH,
    MAX_READ,
    NID_SIZE,
    DataLayout,
    FeatureCompat,
    FeatureIncompat,
    FileType,
    erofs_xattr_entry,
)
from lazyimg_formats.erofs.superblock import (
    SLOT_SIZE,
    SUPERBLOCK_SIZE,
    DeviceSlot,
    Superblock,
    checksum_range,
    compute_checksum,
    parse_slots,
    parse_superblock,
)
from lazyimg_formats.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Source = bytes | bytearray | memoryview | Callable[[int, int], bytes]


class DataExtent(NamedTuple):
    """A piece of a file.

    Attributes:
        offset: where it is in the file, in bytes.
        length: bytes, at least 1.
        device: where its bytes are: 0: the image itself, N: slot N - 1, None: nowhere, a hole.
        position: where they are there, in bytes.
    """

    offset: int
    length: int
    device: int | None
    position: int


class Image:
    """An image whose superblock and device slots are good.

    Everything else is checked when it is read; every method raises FormatError for what breaks the
    format, exceeds a limit in `layout`, lies outside of the image, or is compressed.

    Attributes:
        superblock: what the image says of itself.
        slots: its devices.

    Args:
        source: the image: its bytes, or a function that gives the bytes at an offset, of a length,
            and fewer only at the end.
        devices: likewise for the slots, in their order, as far as their bytes are wanted.
    """

    superblock: Superblock
    slots: tuple[DeviceSlot, ...]

    def __init__(self, source: Source, devices: Sequence[Source] = ()) -> None:
        self._sources = (source, *devices)
        self.superblock = parse_superblock(self._read(EROFS_SUPER_OFFSET, SUPERBLOCK_SIZE))
        self._bits = self.superblock.block_bits
        self._check_checksum()
        self.slots = self._read_slots()
        self._mapped = sorted(
            (slot.start, slot.start + slot.blocks, number)
            for number, slot in enumerate(self.slots, 1)
            if slot.start and slot.blocks
        )
        if any(one[1] > other[0] for one, other in pairwise(self._mapped)):
            raise FormatError("erofs_deviceslot", "devices overlap in the unified space")
        self._prefixes: tuple[bytes, ...] | None = None

    def _read(self, offset: int, length: int, device: int = 0) -> bytes:
        if device >= len(self._sources):
            raise FormatError("image", f"data lies on device {device}, which is not at hand")
        source = self._sources[device]
        data = b""
        if 0 <= offset <= MAX_IMAGE_SIZE - length:
            if callable(source):
                data = source(offset, length)
            else:
                data = bytes(source[offset : offset + length])
        if len(data) != length:
            where = f"device {device}" if device else "image"
            raise FormatError(where, f"{length} bytes at {offset} are not in it")
        return data

    def _check_checksum(self) -> None:
        if self.superblock.compat & FeatureCompat.SB_CHKSUM:
            covered = checksum_range(self._bits)
            found = compute_checksum(self._read(covered.start, len(covered)))
            if found != self.superblock.checksum:
                raise FormatError(
                    "erofs_super_block",
                    f"checksum is {found:#010x}, expected {self.superblock.checksum:#010x}",
                )

    def _read_slots(self) -> tuple[DeviceSlot, ...]:
        if not self.superblock.incompat & FeatureIncompat.DEVICE_TABLE:
            return ()
        offset = self.superblock.slot_offset * SLOT_SIZE
        return parse_slots(self._read(offset, self.superblock.devices * SLOT_SIZE))

    @property
    def root(self) -> Inode:
        """The root directory."""
        inode = self.inode(self.superblock.root_nid)
        if not stat.S_ISDIR(inode.mode):
            raise FormatError("root", f"nid {inode.nid} has mode {inode.mode:#o}")
        return inode

    def inode(self, nid: int) -> Inode:
        """Give an inode."""
        position = self._position(nid)
        data = self._read(position, COMPACT_SIZE)
        if inode_format(data) & I_VERSION_EXTENDED:
            data += self._read(position + COMPACT_SIZE, EXTENDED_SIZE - COMPACT_SIZE)
        superblock = self.superblock
        return parse_inode(data, nid, epoch=superblock.epoch, fixed_nsec=superblock.fixed_nsec)

    def _position(self, nid: int) -> int:
        return (self.superblock.meta_block << self._bits) + nid * NID_SIZE

    def _body_end(self, inode: Inode) -> int:
        """Where an inode's attributes end, and its chunks or inline tail begin."""
        size = inode.header_size + xattr.body_size(inode.xattr_count)
        return self._position(inode.nid) + size

    def extents(self, inode: Inode) -> list[DataExtent]:
        """Give where the bytes of a file, directory or link are, in their order."""
        match inode.layout:
            case _ if not inode.size:
                return []
            case DataLayout.FLAT_PLAIN:
                return [self._locate(0, inode.size, Chunk(0, _flat_start(inode)))]
            case DataLayout.FLAT_INLINE:
                return self._inline_extents(inode)
            case DataLayout.CHUNK_BASED:
                return self._chunk_extents(inode)
            case layout:
                raise FormatError("inode", f"nid {inode.nid} is compressed ({layout.name})")

    def _inline_extents(self, inode: Inode) -> list[DataExtent]:
        full = (inode.size - 1) >> self._bits << self._bits
        tail = inode.size - full
        position = self._body_end(inode)
        if position % self.superblock.block_size + tail > self.superblock.block_size:
            raise FormatError("inode", f"the inline data of nid {inode.nid} crosses a block")
        found = [self._locate(0, full, Chunk(0, inode.start))] if full else []
        return [*found, DataExtent(full, tail, 0, position)]

    def _chunk_extents(self, inode: Inode) -> list[DataExtent]:
        chunks = parse_chunk_format(inode.start, self._bits)
        array = self.read_chunk_array(inode, chunks.count(inode.size), chunks.element_size)
        found: list[DataExtent] = []
        offset = 0
        for chunk in parse_chunks(array, chunks):
            length = min(1 << chunks.bits, inode.size - offset)
            extent = self._locate(offset, length, chunk)
            if found and _follows(found[-1], extent):
                last = found.pop()
                extent = last._replace(length=last.length + length)
            found.append(extent)
            offset += length
        return found

    def read_chunk_array(self, inode: Inode, count: int, unit: int = 8) -> bytes:
        """Give `count` elements of `unit` bytes behind an inode, whatever they mean."""
        position = -(-self._body_end(inode) // unit) * unit
        return self._read(position, count * unit)

    def _locate(self, offset: int, length: int, chunk: Chunk) -> DataExtent:
        """Find the device of a run of blocks, which must all be on it."""
        block = chunk.block
        if block is None:
            return DataExtent(offset, length, None, 0)
        # The kernel looks only at the bits that are needed to count the devices.
        device = chunk.device & ((1 << len(self.slots).bit_length()) - 1)
        if device > len(self.slots):
            raise FormatError("erofs_inode_chunk_index", f"device {device} of {len(self.slots)}")
        if not device:
            device, block = self._resolve(block)
        size = self.slots[device - 1].blocks if device else self.superblock.blocks
        if size and block + -(-length >> self._bits) > size:  # 0: mkfs.erofs 1.5 does not say
            raise FormatError(
                "data of a file",
                f"{length} bytes from block {block} on do not fit in the {size} of device {device}",
            )
        return DataExtent(offset, length, device, block << self._bits)

    def _resolve(self, block: int) -> tuple[int, int]:
        """Give the device that a unified block is on, and the block there."""
        index = bisect_right(self._mapped, block, key=lambda mapped: mapped[0])
        if index:
            start, end, number = self._mapped[index - 1]
            if block < end:
                return number, block - start
        return 0, block

    def read(self, inode: Inode, offset: int = 0, length: int | None = None) -> bytes:
        """Give bytes of a file, directory or link; fewer than `length` only at its end.

        More than `MAX_READ` bytes are a FormatError: ask for pieces.
        """
        end = inode.size if length is None else min(inode.size, offset + length)
        if end - offset > MAX_READ:
            raise FormatError("data of a file", f"{end - offset} bytes at once, at most {MAX_READ}")
        parts = []
        for extent in self.extents(inode):
            begin = max(offset, extent.offset)
            size = min(end, extent.offset + extent.length) - begin
            if size <= 0:
                continue
            if extent.device is None:
                parts.append(bytes(size))
            else:
                position = extent.position + begin - extent.offset
                parts.append(self._read(position, size, extent.device))
        return b"".join(parts)

    def target(self, inode: Inode) -> bytes:
        """Give a symbolic link's text."""
        if not stat.S_ISLNK(inode.mode) or not 0 < inode.size < MAX_PATH:
            raise FormatError(
                "symbolic link", f"nid {inode.nid} has mode {inode.mode:#o}, size {inode.size}"
            )
        target = self.read(inode)
        if b"\0" in target:
            raise FormatError("symbolic link", f"impossible target {target[:80]!r}")
        return target

    def read_directory(self, inode: Inode) -> list[Dirent]:
        """Give a directory's names, ``.`` and ``..`` among them, in order."""
        if not stat.S_ISDIR(inode.mode) or inode.size > MAX_DIRECTORY_SIZE:
            raise FormatError(
                "directory", f"nid {inode.nid} has mode {inode.mode:#o}, size {inode.size}"
            )
        found: list[Dirent] = []
        for extent in self.extents(inode):
            if extent.device != 0:  # one hole could be read forever
                raise FormatError("directory", f"nid {inode.nid} has data outside of the image")
            end = extent.position + extent.length
            for position in range(extent.position, end, self.superblock.block_size):
                size = min(self.superblock.block_size, end - position)
                block = parse_block(self._read(position, size))
                if found and block[0].name <= found[-1].name:
                    raise FormatError(
                        "directory", f"name {block[0].name!r} is not behind {found[-1].name!r}"
                    )
                found += block
        return found

    def lookup(self, path: bytes) -> Inode | None:
        """Give what is at a path, seen from the root; None if nothing is. Follows no links."""
        inode = self.root
        for part in path.split(b"/"):
            if part:
                if not stat.S_ISDIR(inode.mode):
                    return None
                names = {dirent.name: dirent.nid for dirent in self.read_directory(inode)}
                if part not in names:
                    return None
                inode = self.inode(names[part])
        return inode

    def walk(self, *, links: bool = True) -> Iterator[tuple[bytes, Inode]]:
        """Give every path and what is there: parents first, in the order of names.

        The root's path is empty, the others have no ``/`` in front. Checks on the way that the
        directories are a tree, and, at the end, that every inode has the names that it counts.

        Args:
            links: False: what inodes count is not looked at.
        """
        root = self.root
        yield b"", root
        directories = {root.nid}
        names = 0
        missing: dict[int, int] = {}  # names that were not met so far, of what is no directory
        stack = [(b"", root.nid, iter(self._children(root, root.nid, links=links)))]
        while stack:
            parent, parent_nid, children = stack[-1]
            dirent = next(children, None)
            if dirent is None:
                stack.pop()
                continue
            names += 1
            path = parent + dirent.name
            if names > MAX_ENTRIES or len(path) >= MAX_PATH:
                raise FormatError("image", f"over {MAX_ENTRIES} names or {MAX_PATH - 1} bytes")
            inode = self.inode(dirent.nid)
            if inode.file_type != dirent.file_type:
                raise FormatError(
                    "erofs_dirent",
                    f"{path!r} is called {dirent.file_type.name}, its inode {inode.file_type.name}",
                )
            yield path, inode
            if inode.file_type is not FileType.DIR:
                missing[inode.nid] = missing.get(inode.nid, inode.nlink) - 1
                continue
            if inode.nid in directories:
                raise FormatError("directory", f"{path!r} was reached before")
            directories.add(inode.nid)
            stack.append(
                (path + b"/", inode.nid, iter(self._children(inode, parent_nid, links=links)))
            )
        for nid, number in missing.items():
            if links and number:
                raise FormatError("inode", f"nid {nid} counts {number} names too many")

    def _children(self, inode: Inode, parent: int, *, links: bool) -> list[Dirent]:
        """Give a directory's names without dots; checks the dots and the count of links."""
        dots = {b".": inode.nid, b"..": parent}
        children = []
        for dirent in self.read_directory(inode):
            if dirent.name not in {b".", b".."}:
                children.append(dirent)
            elif dots.pop(dirent.name) != dirent.nid:
                raise FormatError("directory", f"nid {inode.nid} has a wrong {dirent.name!r}")
        if dots:
            raise FormatError("directory", f"nid {inode.nid} lacks {b' '.join(dots)!r}")
        counted = 2 + sum(child.file_type is FileType.DIR for child in children)
        if links and inode.nlink not in {counted, 1}:  # 1: its maker did not count
            raise FormatError("directory", f"nid {inode.nid} counts {inode.nlink}, not {counted}")
        return children

    def xattrs(self, inode: Inode) -> tuple[xattr.Xattr, ...]:
        """Give the extended attributes: whole names, and values."""
        size = xattr.body_size(inode.xattr_count)
        data = self._read(self._body_end(inode) - size, size)
        if not data:
            return ()
        body = xattr.parse_body(data, self._long_prefixes())
        return (*body.inline, *map(self._shared_xattr, body.shared))

    def _shared_xattr(self, number: int) -> xattr.Xattr:
        position = (self.superblock.xattr_block << self._bits) + 4 * number
        head = self._read(position, erofs_xattr_entry.size)
        name_length, _, value_size = erofs_xattr_entry.unpack(head)
        entry = head + self._read(position + len(head), name_length + value_size)
        return xattr.parse_entry(entry, 0, self._long_prefixes())[0]

    def _long_prefixes(self) -> tuple[bytes, ...]:
        if self._prefixes is None:
            self._prefixes = tuple(self._read_prefixes())
        return self._prefixes

    def _read_prefixes(self) -> Iterator[bytes]:
        """Read the table of long prefixes: records of a 16-bit length, at multiples of 4."""
        superblock = self.superblock
        if not superblock.incompat & FeatureIncompat.XATTR_PREFIXES:
            return
        packed = None  # the table is in the packed inode, if there is one
        plain = superblock.compat & FeatureCompat.PLAIN_XATTR_PFX
        if superblock.incompat & FeatureIncompat.FRAGMENTS and superblock.packed_nid and not plain:
            packed = self.inode(superblock.packed_nid)
        position = superblock.prefix_start * 4
        for _ in range(superblock.prefix_count):
            length = int.from_bytes(self._read_table(packed, position, 2), "little")
            yield xattr.parse_long_prefix(self._read_table(packed, position + 2, length))
            position += -(-(2 + length) // 4) * 4

    def _read_table(self, packed: Inode | None, position: int, length: int) -> bytes:
        if packed is None:
            return self._read(position, length)
        data = self.read(packed, position, length)
        if len(data) != length:
            raise FormatError("packed inode", f"{length} bytes at {position} are not in it")
        return data


def _flat_start(inode: Inode) -> int | None:
    return None if inode.start == EROFS_NULL_ADDR else inode.start


def _follows(one: DataExtent, other: DataExtent) -> bool:
    """Tell whether two pieces that follow each other in a file do so where they are."""
    if one.device is None:
        return other.device is None
    return one.device == other.device and one.position + one.length == other.position
