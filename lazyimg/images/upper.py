"""One layer's own tree: what overlayfs calls the upper directory. Pure.

Entries are applied in the layer's order, as containerd unpacks them: a later entry replaces an
earlier one, a directory given twice keeps its children, a missing parent is implied, a parent that
is a symbolic link of the same layer is followed (inside the root), a hard link joins its target's
node and gives it the attributes of its own header. What concerns lower layers is only recorded
here: whiteouts, opaque directories, and implied directories, whose attributes come from below if
there is such a directory, or a link to one. A directory that its own layer replaces takes its
markers along. A character device 0/0 is a file as any other, which entries replace and link to; in
the end it hides its name.
"""

from __future__ import annotations

import stat
from copy import copy
from typing import TYPE_CHECKING, Final

from lazyimg_formats.device_table import BLOCK_SIZE
from lazyimg_formats.erofs.inode import encode_rdev
from lazyimg_formats.erofs.tree import ChunkData, FlatData, Node
from lazyimg_formats.erofs.xattr import split_name
from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import ChunkMap, Entry, Kind, LayerIndex

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_SYMLINKS: Final = 40
"""Links followed for one path: the kernel's MAXSYMLINKS."""

_IMPLIED_MODE: Final = stat.S_IFDIR | 0o755

_TYPE_BITS: Final = {
    Kind.REGULAR: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
}


_ANNOTATED: Final = frozenset({Kind.REGULAR, Kind.DIRECTORY})
_OF_USERS: Final = b"user."


class Upper:
    """A layer's tree, and what it says about lower layers.

    Args:
        index: the layer.
        device: number of the layer's device in the image, from 0.
        lower: the merged tree below, to find the targets of hard links; None for the first layer.

    Raises:
        FormatError: entries that contradict each other.
    """

    def __init__(self, index: LayerIndex, device: int, lower: Node | None) -> None:
        self.root = _implied_directory()
        self._device = device
        self._lower = lower
        # By id; the nodes are kept, so that no id is used twice.
        self._implied: dict[int, Node] = {id(self.root): self.root}
        self._opaque: dict[int, Node] = {}
        self._whiteouts: dict[int, tuple[Node, set[bytes]]] = {}
        self._last: tuple[bytes, Node] = (b"", self.root)
        self._blank = False
        for entry in index.entries:
            self._apply(entry)
        if self._blank:
            self._hide_blanks()

    def is_implied(self, directory: Node) -> bool:
        """Whether no entry of this layer gave the directory's attributes."""
        return id(directory) in self._implied

    def is_opaque(self, directory: Node) -> bool:
        """Whether the directory hides what is below it."""
        return id(directory) in self._opaque

    def whiteouts(self, directory: Node) -> set[bytes]:
        """Names in the directory that are gone from lower layers."""
        found = self._whiteouts.get(id(directory))
        return found[1] if found else set()

    def _apply(self, entry: Entry) -> None:
        kind = entry.kind
        if kind is Kind.OPAQUE:
            directory = self._directory(entry.path)
            self._opaque[id(directory)] = directory
            return
        if not entry.path:
            self._give_attributes(self.root, entry)
            return
        parent_path, _, name = entry.path.rpartition(b"/")
        parent = self._directory(parent_path)
        children = _children(parent)
        if kind is Kind.WHITEOUT:
            self._whiteouts.setdefault(id(parent), (parent, set()))[1].add(name)
        elif kind is Kind.HARDLINK:
            node = children[name] = self._link_target(entry)
            self._last = (b"", self.root)
            _change_attributes(node, entry)
        elif kind is Kind.DIRECTORY:
            self._add_directory(children, name, entry)
        else:
            if name in children:
                self._last = (b"", self.root)  # it may have been, or led to, that directory
            node = children[name] = self._node(entry)
            self._blank = self._blank or _is_blank(node)

    def _hide_blanks(self) -> None:
        """Let whiteouts take the places of character devices 0/0."""
        directories = [self.root]
        while directories:
            directory = directories.pop()
            children = _children(directory)
            blanks = {name for name, child in children.items() if _is_blank(child)}
            if blanks:
                self._whiteouts.setdefault(id(directory), (directory, set()))[1].update(blanks)
            for name in blanks:
                del children[name]
            directories += [child for child in children.values() if child.children is not None]

    def _add_directory(self, children: dict[bytes, Node], name: bytes, entry: Entry) -> None:
        existing = children.get(name)
        if existing is not None and existing.children is not None:
            self._give_attributes(existing, entry)
            return
        if existing is not None:
            self._last = (b"", self.root)
        children[name] = self._node(entry)

    def _node(self, entry: Entry) -> Node:
        return Node(
            mode=_TYPE_BITS[entry.kind] | (0o777 if entry.kind is Kind.SYMLINK else entry.mode),
            uid=entry.uid,
            gid=entry.gid,
            mtime=entry.mtime,
            mtime_ns=entry.mtime_ns,
            rdev=_rdev(entry),
            xattrs=_storable(entry.xattrs, entry.kind in _ANNOTATED) if entry.xattrs else (),
            size=entry.size,
            target=entry.target,
            children={} if entry.kind is Kind.DIRECTORY else None,
            data=self._data(entry.data),
        )

    def _data(self, data: int | ChunkMap | None) -> FlatData | ChunkData | None:
        if data is None:
            return None
        if isinstance(data, int):
            return FlatData(self._device, data // BLOCK_SIZE)
        return ChunkData(data.bits, data.blocks, self._device)

    def _give_attributes(self, directory: Node, entry: Entry) -> None:
        given = self._node(entry)
        copy_attributes(given, directory)
        self._implied.pop(id(directory), None)

    def _directory(self, path: bytes) -> Node:
        """Give the directory at `path`, following links; makes what is missing, as implied."""
        if path == self._last[0]:
            return self._last[1]
        directory = _follow(self.root, path, self._imply)
        if directory is None or directory.children is None:
            raise FormatError("layer", f"{path!r} is a parent of an entry, but no directory")
        self._last = (path, directory)
        return directory

    def _imply(self, parent: Node, trail: list[bytes], name: bytes) -> Node:
        """Make a directory that no entry gave, with the attributes that lower layers have there."""
        child = _children(parent)[name] = _implied_directory()
        self._implied[id(child)] = child
        if self._lower is not None and name not in self.whiteouts(parent):
            below = _follow(self._lower, b"/".join([*trail, name]))
            if below is not None and below.children is not None:
                copy_attributes(below, child)
        return child

    def _link_target(self, entry: Entry) -> Node:
        parent_path, _, name = entry.target.rpartition(b"/")
        parent = _follow(self.root, parent_path)
        found = parent.children.get(name) if parent is not None and parent.children else None
        if found is None:
            found = self._copy_up(entry, parent_path, name)
        if found.children is not None:
            raise FormatError(
                "layer", f"{entry.path!r} is a hard link to directory {entry.target!r}"
            )
        if entry.target == entry.path:
            raise FormatError("layer", f"{entry.path!r} is a hard link to itself")
        return found

    def _copy_up(self, entry: Entry, parent_path: bytes, name: bytes) -> Node:
        """Bring a lower layer's file into this one, as overlayfs does before it links."""
        below = self._lower
        for part in entry.target.split(b"/"):
            below = below.children.get(part) if below is not None and below.children else None
        if below is None or below.children is not None:
            raise FormatError(
                "layer", f"{entry.path!r} is a hard link to {entry.target!r}, which is no file"
            )
        if self._is_hidden(entry.target):
            raise FormatError(
                "layer", f"{entry.path!r} is a hard link to {entry.target!r}, which is deleted"
            )
        copied = _children(self._directory(parent_path))[name] = copy(below)
        return copied

    def _is_hidden(self, path: bytes) -> bool:
        """Whether this layer hides what lower layers have at `path`."""
        directory = self.root
        for part in path.split(b"/"):
            if self.is_opaque(directory) or part in self.whiteouts(directory):
                return True
            child = (directory.children or {}).get(part)
            if child is None:
                return False
            if child.children is None:
                return True
            directory = child
        return False


def _follow(
    root: Node,
    path: bytes,
    make: Callable[[Node, list[bytes], bytes], Node] | None = None,
) -> Node | None:
    """Give what is at `path`, following all links inside the root; None if a part is missing.

    Args:
        root: where it begins, and above which no link leads.
        path: relative.
        make: makes a part that is missing: in a directory, at a path without links, by name.
    """
    node = root
    above: list[tuple[Node, bytes]] = []  # directories, and the names by which they were left
    parts = path.split(b"/")[::-1] if path else []
    followed = 0
    while parts:
        part = parts.pop()
        if part in {b"", b"."}:
            continue
        if part == b"..":
            node = above.pop()[0] if above else root
            continue
        if node.children is None:
            return None
        child = node.children.get(part)
        if child is None:
            if make is None:
                return None
            child = make(node, [name for _, name in above], part)
        if stat.S_ISLNK(child.mode):
            followed += 1
            if followed > _MAX_SYMLINKS:
                raise FormatError("layer", f"too many symbolic links in {path!r}")
            if child.target.startswith(b"/"):
                node, above = root, []
            parts += child.target.split(b"/")[::-1]
            continue
        above.append((node, part))
        node = child
    return node


def _is_blank(node: Node) -> bool:
    """Whether it is a character device 0/0."""
    return node.rdev == 0 and stat.S_ISCHR(node.mode)


def copy_attributes(source: Node, target: Node) -> None:
    """Give a directory another one's mode, owner, time and attributes; children stay."""
    target.mode = source.mode
    target.uid = source.uid
    target.gid = source.gid
    target.mtime = source.mtime
    target.mtime_ns = source.mtime_ns
    target.xattrs = source.xattrs


def _change_attributes(node: Node, link: Entry) -> None:
    """Give an inode what the header of a further name of it says."""
    if not stat.S_ISLNK(node.mode):
        node.mode = stat.S_IFMT(node.mode) | link.mode
    node.uid = link.uid
    node.gid = link.gid
    node.mtime = link.mtime
    node.mtime_ns = link.mtime_ns
    if link.xattrs:
        given = dict(_storable(link.xattrs, stat.S_ISREG(node.mode)))
        node.xattrs = tuple(sorted((dict(node.xattrs) | given).items()))


def _storable(
    xattrs: tuple[tuple[bytes, bytes], ...],
    annotated: bool,  # noqa: FBT001 - only named values
) -> tuple[tuple[bytes, bytes], ...]:
    """Leave out what Linux's file systems cannot hold, as unpackers do.

    Args:
        xattrs: as the entry has them.
        annotated: whether the file is of a kind that can have attributes of users.
    """
    return tuple(
        pair
        for pair in xattrs
        if split_name(pair[0]) is not None and (annotated or not pair[0].startswith(_OF_USERS))
    )


def _rdev(entry: Entry) -> int:
    if entry.kind in {Kind.CHARACTER, Kind.BLOCK}:
        return encode_rdev(entry.major, entry.minor)
    return 0


def _implied_directory() -> Node:
    return Node(mode=_IMPLIED_MODE, children={})


def _children(directory: Node) -> dict[bytes, Node]:
    if directory.children is None:
        raise FormatError("layer", "a parent of an entry is no directory")
    return directory.children
