"""LayerIndex: what an OCI layer holds and where, whatever its format.

A front end (zstd:chunked, eStargz, ...) feeds a `LayerBuilder` in the layer's own order: the spans
of the blob, and each entry with the pieces of spans that give its bytes. The builder decides, once
for all formats,
  - which paths are allowed (`normalize_path`) and what is a whiteout,
  - that overlay's own markers mean what they mean after containerd has unpacked them onto
    overlayfs: `trusted.*` is not taken from a layer, and `user.overlay.*` never gets further (a
    character device 0/0, which hides its name, is an entry as any other until layers are merged),
  - the device layout: regular files one behind the other, each starting on a block. A file with
    long runs of zeros becomes a map of chunks, in which every chunk of zeros is the same one, at
    the end of the device (a real one: holes corrupt data over cachefiles).

Whiteouts: Open Container Initiative image specification, layer.md.
"""

from __future__ import annotations

from array import array
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from lazyimg_formats.device_table import BLOCK_SIZE, MAX_DEVICE_SIZE, DeviceColumns, DeviceTable
from lazyimg_formats.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lazyimg_formats.device_table import Codec

MAX_NAME: Final = 255
"""Bytes of one path component: EROFS_NAME_LEN."""

MAX_PATH: Final = 4096
"""Bytes of a path or a symbolic link's target: PATH_MAX with its NUL."""

MAX_ENTRIES: Final = 4_000_000
"""Entries of one layer."""

MAX_XATTR_SIZE: Final = 65_536
"""Bytes of one extended attribute's value: XATTR_SIZE_MAX."""

MAX_XATTRS_SIZE: Final = 131_072
"""Bytes of all names and values of one entry."""

ZEROS_WORTH_A_MAP: Final = 1 << 20
"""Bytes of whole chunks of zeros from which on a file becomes a map of chunks."""

MAX_CHUNKS: Final = 1 << 22
"""Chunks of all maps of one layer."""

MAX_ID: Final = (1 << 32) - 1
"""Largest owner or group: i_uid and i_gid of an extended inode have 32 bits."""

MAX_MAJOR: Final = (1 << 12) - 1
"""Largest major part of a device number: MAJOR() of new_encode_dev has 12 bits."""

MAX_MINOR: Final = (1 << 20) - 1
"""Largest minor part of a device number."""

_MAX_MTIME: Final = (1 << 63) - 1
_CHUNK_BITS: Final = 16
_MAX_FILE_CHUNKS: Final = 65_536
_ZERO: Final = -1

_WHITEOUT: Final = b".wh."
_OPAQUE: Final = b".wh..wh..opq"
_AUFS: Final = b".wh..wh."


class Kind(IntEnum):
    """What an entry is."""

    REGULAR = 0
    DIRECTORY = 1
    SYMLINK = 2
    HARDLINK = 3
    CHARACTER = 4
    BLOCK = 5
    FIFO = 6
    WHITEOUT = 7  # `path` and all below it, of lower layers, is gone
    OPAQUE = 8  # what lower layers have in directory `path` is gone


# Looked up for each entry; a member of an enumeration takes ten times as long.
_REGULAR: Final = Kind.REGULAR
_HARDLINK: Final = Kind.HARDLINK
_SYMLINK: Final = Kind.SYMLINK
DEVICES: Final = frozenset({Kind.CHARACTER, Kind.BLOCK})
"""Kinds that have a device number."""

_MARKERS: Final = frozenset({Kind.WHITEOUT, Kind.OPAQUE})


class ChunkMap(msgspec.Struct, frozen=True):
    """Where a file's chunks lie on its device.

    Attributes:
        bits: a chunk has 2**bits bytes, the file's last one may have fewer.
        blocks: for each chunk, the device block (of `BLOCK_SIZE` bytes) that it starts at.
    """

    bits: int
    blocks: array[int]


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One path of a layer.

    Attributes:
        path: normalized: components joined by ``/``, no ``.``, no ``..``; b"" is the root.
        kind: what it is.
        mode: permission bits, 0 to 0o7777.
        uid: owner.
        gid: group.
        mtime: seconds since the epoch, may be negative.
        mtime_ns: nanoseconds added to it, 0 to 999,999,999.
        size: bytes of a regular file.
        target: a symbolic link's text; a hard link's normalized path.
        major: device number's major part.
        minor: device number's minor part.
        xattrs: (name, value) pairs, sorted by name.
        data: of a regular file that is not empty: its first byte's offset on the device (bytes, a
            multiple of `BLOCK_SIZE`), or its map of chunks.
    """

    path: bytes
    kind: Kind
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    mtime_ns: int = 0
    size: int = 0
    target: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    data: int | ChunkMap | None = None


class Piece(NamedTuple):
    """`length` bytes at `file_offset` of a file are those at `inner_offset` of decoded `span`."""

    file_offset: int
    length: int
    span: int
    inner_offset: int = 0


class LayerIndex(msgspec.Struct, frozen=True):
    """A layer: its entries in their order, and its device.

    Attributes:
        entries: in the layer's order; a later entry of a path replaces an earlier one.
        table: the device that holds the regular files' bytes.
        first: bytes at the device's start that whoever made the layer says are wanted first.
    """

    entries: list[Entry]
    table: DeviceTable
    first: int = 0


def normalize_path(raw: bytes) -> bytes:
    """Give a layer's path without leading ``/`` and ``./``, trailing ``/`` and empty parts.

    Raises:
        FormatError: a ``..`` in it, a NUL, or a part or the whole is too long.
    """
    short = raw.removeprefix(b"./")
    if (
        len(short) <= MAX_NAME
        and not short.startswith(b".")
        and b"/." not in short
        and b"//" not in short
        and b"\0" not in short
    ):
        return short.strip(b"/")  # most paths
    parts = [part for part in raw.split(b"/") if part not in {b"", b"."}]
    for part in parts:
        if part == b"..":
            raise FormatError("layer entry", f"path {raw[:80]!r} contains '..'")
        if len(part) > MAX_NAME:
            raise FormatError("layer entry", f"a part of path {raw[:80]!r}... is over 255 bytes")
    path = b"/".join(parts)
    if len(path) >= MAX_PATH or b"\0" in path:
        raise FormatError("layer entry", f"path {raw[:80]!r}... is over 4,095 bytes or has a NUL")
    return path


def has_entry(raw: bytes) -> bool:
    """Say whether a path stands for a file; else it is a marker, or aufs's own, without bytes.

    Raises:
        FormatError: as `normalize_path`.
    """
    if _WHITEOUT not in raw:
        return True
    path = normalize_path(raw)
    name = path[path.rfind(b"/") + 1 :]
    return not name.startswith(_WHITEOUT) and b"/" + _AUFS not in b"/" + path[: -len(name)]


class LayerBuilder:
    """Builds a `LayerIndex`; see the module's text.

    Every method raises FormatError when what it is given cannot be part of a layer.

    Args:
        keep: False: only check; what `finish` gives has the size of the device and nothing in it.
        placed: is given, without `keep`, where pieces go: device offset, bytes, span and inner
            offset of each extent, in their order.
    """

    def __init__(
        self, *, keep: bool = True, placed: Callable[[int, int, int, int], object] | None = None
    ) -> None:
        self._keep = keep
        self._count = 0  # of entries
        self._entries: list[Entry] = []
        self._columns = DeviceColumns()
        self._placed = self._columns.add_extent if keep else placed
        self._end = 0  # of the device so far
        self._first = 0  # bytes of it that are wanted first
        self._zero_bits = 0  # 2**bits bytes of zeros are needed at the end; 0: none
        self._maps: list[ChunkMap] = []
        self._chunks = 0

    def add_span(  # noqa: PLR0917 - see `DeviceColumns.add_span`
        self,
        blob_offset: int,
        blob_length: int,
        length: int,
        digest: bytes,
        codec: Codec,
        skip: int = 0,
        *,
        bit: int = 0,
        window: bytes | memoryview = b"",
    ) -> int:
        """Add the next span (attributes as in `Span`); gives its index for `Piece`.

        `window` is what it may refer to, as it is stored.
        """
        return self._columns.add_span(
            blob_offset, blob_length, length, digest, codec, skip, bit=bit, window=window
        )

    def add(self, entry: Entry, pieces: Sequence[Piece] = ()) -> None:
        """Add the next entry.

        Args:
            entry: `path` and a hard link's `target` as they stand in the layer; `data` is ignored.
            pieces: of a regular file, in its order. What they do not cover is zero.
        """
        if self._count >= MAX_ENTRIES:
            raise FormatError("layer", f"more than {MAX_ENTRIES} entries")
        path, kind = normalize_path(entry.path), entry.kind
        if kind in _MARKERS:
            raise FormatError("layer entry", f"{path!r}: a marker is given by its file")
        if _WHITEOUT in path:
            name = path[path.rfind(b"/") + 1 :]
            if b"/" + _AUFS in b"/" + path[: -len(name)]:
                return  # in one of aufs's own directories
            if name.startswith(_WHITEOUT):
                self._add_marker(path, name)
                return
        if not path and kind is not Kind.DIRECTORY:
            raise FormatError("layer entry", f"the root is a {kind.name.lower()}")
        self._add_entry(path, entry, pieces)

    def _add_marker(self, path: bytes, name: bytes) -> None:
        parent = path[: -len(name)]
        if name == _OPAQUE:
            self._append(Entry(parent[:-1], Kind.OPAQUE))
        elif not name.startswith(_AUFS):  # aufs's own files mean nothing here
            hidden = name[len(_WHITEOUT) :]
            if hidden in {b"", b".", b".."}:
                raise FormatError("layer entry", f"whiteout {path!r} names nothing")
            self._append(Entry(parent + hidden, Kind.WHITEOUT))

    def _append(self, entry: Entry) -> None:
        self._count += 1
        if self._keep:
            self._entries.append(entry)

    def _add_entry(self, path: bytes, entry: Entry, pieces: Sequence[Piece]) -> None:
        _check_numbers(path, entry)
        kind, target, xattrs = entry.kind, b"", entry.xattrs
        if xattrs:
            xattrs = _clean_xattrs(path, xattrs)
        size, major, minor = 0, 0, 0
        data: int | ChunkMap | None = None
        if kind is _REGULAR:
            size = entry.size
            data = self._place(path, size, pieces)
        elif pieces:
            raise FormatError("layer entry", f"{path!r}: a {kind.name.lower()} with data")
        elif kind in DEVICES:
            major, minor = entry.major, entry.minor
        else:
            target = _clean_target(path, entry)
        self._count += 1
        if not self._keep:
            return
        self._entries.append(
            Entry(
                path,
                kind,
                entry.mode & 0o7777,
                entry.uid,
                entry.gid,
                entry.mtime,
                entry.mtime_ns,
                size,
                target,
                major,
                minor,
                xattrs,
                data,
            )
        )

    def _place(self, path: bytes, size: int, pieces: Sequence[Piece]) -> int | ChunkMap | None:
        end = zeros = 0
        for piece in pieces:
            if piece.file_offset < end or piece.length <= 0:
                raise FormatError("layer entry", f"pieces of {path!r} overlap or are empty")
            zeros += piece.file_offset - end
            end = piece.file_offset + piece.length
        zeros += size - end
        if end > size or not 0 <= size <= MAX_DEVICE_SIZE - self._end - BLOCK_SIZE:
            raise FormatError("layer entry", f"{path!r}: {size} bytes, its pieces end at {end}")
        if not size:
            return None
        if zeros >= ZEROS_WORTH_A_MAP:
            chunks = self._map_chunks(size, pieces)
            if chunks is not None:
                return chunks
        start = self._end
        if self._placed is not None:
            for piece in pieces:
                self._placed(
                    start + piece.file_offset, piece.length, piece.span, piece.inner_offset
                )
        self._end = start + -(-size // BLOCK_SIZE) * BLOCK_SIZE
        return start

    def _map_chunks(self, size: int, pieces: Sequence[Piece]) -> ChunkMap | None:
        """Place a file chunk by chunk, if that saves enough; None when it does not."""
        bits = max(_CHUNK_BITS, (-(-size // _MAX_FILE_CHUNKS) - 1).bit_length())
        chunk = 1 << bits
        count = -(-size // chunk)
        if self._chunks + count > MAX_CHUNKS:
            raise FormatError("layer", f"more than {MAX_CHUNKS} chunks of sparse files")
        blocks = array("q", [_ZERO]) * count
        for piece in pieces:
            last = piece.file_offset + piece.length - 1
            for number in range(piece.file_offset >> bits, (last >> bits) + 1):
                blocks[number] = 0
        if blocks.count(_ZERO) * chunk < ZEROS_WORTH_A_MAP:
            return None
        for number, block in enumerate(blocks):
            if block != _ZERO:
                blocks[number] = self._end // BLOCK_SIZE
                present = min(chunk, size - number * chunk)
                self._end += -(-present // BLOCK_SIZE) * BLOCK_SIZE
        self._chunks += count
        self._zero_bits = max(self._zero_bits, bits)
        chunks = ChunkMap(bits, blocks)
        if self._placed is not None:
            for piece in pieces:
                self._add_piece(self._placed, piece, bits, blocks)
        if self._keep:
            self._maps.append(chunks)
        return chunks

    @staticmethod
    def _add_piece(
        placed: Callable[[int, int, int, int], object], piece: Piece, bits: int, blocks: array[int]
    ) -> None:
        offset, left, inner = piece.file_offset, piece.length, piece.inner_offset
        while left:  # chunks that follow each other in the file do so on the device
            within = offset & ((1 << bits) - 1)
            length = min(left, (1 << bits) - within)
            device_offset = blocks[offset >> bits] * BLOCK_SIZE + within
            placed(device_offset, length, piece.span, inner)
            offset, left, inner = offset + length, left - length, inner + length

    def mark_first(self) -> None:
        """Say that the files so far are wanted before those that follow."""
        self._first = self._end

    def take(self) -> list[Entry]:
        """Give the entries that were added since the last call; they are not kept."""
        entries, self._entries = self._entries, []
        return entries

    def finish(self) -> LayerIndex:
        """Give the index of everything that was added."""
        if self._zero_bits:
            zero_block = self._end // BLOCK_SIZE
            self._end += 1 << self._zero_bits
            for chunks in self._maps:
                for number, block in enumerate(chunks.blocks):
                    if block == _ZERO:
                        chunks.blocks[number] = zero_block
        table = DeviceTable(self._columns.serialize(self._end))
        return LayerIndex(self._entries, table, self._first)


def _check_numbers(path: bytes, entry: Entry) -> None:
    if not (
        0 <= entry.uid <= MAX_ID
        and 0 <= entry.gid <= MAX_ID
        and -_MAX_MTIME <= entry.mtime <= _MAX_MTIME
        and 0 <= entry.mtime_ns <= 999_999_999
        and 0 <= entry.major <= MAX_MAJOR
        and 0 <= entry.minor <= MAX_MINOR
    ):
        raise FormatError("layer entry", f"{path!r}: an owner, time or device number out of range")


def _clean_target(path: bytes, entry: Entry) -> bytes:
    """Give what an entry points to, as `Entry.target` describes it."""
    if entry.kind is _HARDLINK:
        target = normalize_path(entry.target)
        if not target:
            raise FormatError("layer entry", f"hard link {path!r} to the root")
        return target
    if entry.kind is not _SYMLINK:
        return b""
    if not 0 < len(entry.target) < MAX_PATH or b"\0" in entry.target:
        raise FormatError(
            "layer entry", f"symbolic link {path!r}: impossible target of {len(entry.target)} bytes"
        )
    return entry.target


def _clean_xattrs(
    path: bytes, xattrs: tuple[tuple[bytes, bytes], ...]
) -> tuple[tuple[bytes, bytes], ...]:
    """Give the attributes that unpacking would set, sorted."""
    kept = {}
    total = 0
    for name, value in xattrs:
        if name.startswith((b"trusted.", b"user.overlay.")):
            continue
        if not 0 < len(name) <= MAX_NAME or b"\0" in name or len(value) > MAX_XATTR_SIZE:
            raise FormatError("layer entry", f"{path!r}: impossible attribute {name[:80]!r}")
        total += len(name) + len(value)
        kept[name] = value
    if total > MAX_XATTRS_SIZE:
        raise FormatError("layer entry", f"{path!r}: {total} bytes of extended attributes")
    return tuple(sorted(kept.items()))
