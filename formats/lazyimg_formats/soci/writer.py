"""Writes zTOCs and SOCI indexes.

A zTOC is made of an index that a node has made of a layer (`lazyimg_formats.stream_index`): its
spans become the zTOC's. The buffer is written from its beginning, each table before what its
offsets lead to, and behind a vtable that all tables of its kind share.

Source: as `ztoc`, and the FlatBuffers documentation, "Internals".
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from lazyimg_formats.device_table import MAX_WINDOW, Codec
from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import DEVICES, Kind
from lazyimg_formats.soci.ztoc import GZIP, KINDS, PLAIN, POINT, POINTS, VERSION, WHAT
from lazyimg_formats.stream_index import HEADER_SIZE, iterate_members, iterate_spans, parse_header
from lazyimg_formats.tar.header import BLOCK
from lazyimg_formats.zstd_chunked.entries import format_time
from lazyimg_formats.zstd_frames import decode_frame

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lazyimg_formats.layer import Entry

TOOL: Final = b"lazyimg"
"""What a zTOC says has made it."""

_XATTR: Final = b"SCHILY.xattr."
_TYPES: Final = {kind: name for name, kind in KINDS.items()}
_U32: Final = struct.Struct("<I")
_POINTS_VERSION: Final = 2


class _Kind(NamedTuple):
    """How tables of one kind are written.

    Attributes:
        pack: where the vtable is, then the fields.
        vtable: its bytes.
    """

    pack: struct.Struct
    vtable: bytes


def _make_kind(pattern: str, *places: int) -> _Kind:
    """Give the kind whose fields, in the order of the schema, stand at these places; 0: nowhere."""
    pack = struct.Struct(f"<i{pattern}")
    numbers = (4 + 2 * len(places), pack.size, *places)
    return _Kind(pack, struct.pack(f"<{len(numbers)}H", *numbers))


# Fields that are offsets come first. Of a member, uname and gname are not known.
_ROOT: Final = _make_kind("5Iqq", 4, 8, 24, 32, 12, 16)
_TOC: Final = _make_kind("I", 4)
_MEMBER: Final = _make_kind("7I5q", 4, 8, 32, 40, 12, 48, 24, 28, 0, 0, 16, 56, 64, 20)
_PAIR: Final = _make_kind("2I", 4, 8)
_COMPRESSION: Final = _make_kind("2Iib3x", 16, 12, 4, 8)
_PLAIN_POINTS: Final = _make_kind("iqq", 4, 8, 16)


class _Writer:
    """A buffer that is written from its beginning."""

    def __init__(self) -> None:
        self.data = bytearray(8)  # where the root is, and nothing
        self._vtables: dict[bytes, int] = {}

    def add_table(self, kind: _Kind, *fields: int) -> int:
        """Add a table; offsets in it are to be linked. Gives where it is."""
        vtable = self._vtables.get(kind.vtable)
        if vtable is None:
            vtable = self._vtables[kind.vtable] = len(self.data)
            self.data += kind.vtable
        self._align(8)
        at = len(self.data)
        self.data += kind.pack.pack(at - vtable, *fields)
        return at

    def add_vector(self, elements: bytes, count: int) -> int:
        """Add a vector; strings are such, too. Gives where it is."""
        self._align(4)
        at = len(self.data)
        self.data += _U32.pack(count)
        self.data += elements
        return at

    def add_text(self, text: bytes) -> int:
        """Add a string. Gives where it is."""
        return self.add_vector(text + b"\0", len(text))

    def add_offsets(self, count: int) -> int:
        """Add a vector of offsets; each, 4 bytes behind the one before, is to be linked."""
        return self.add_vector(bytes(4 * count), count)

    def link(self, at: int, target: int) -> None:
        """Have the offset at `at` lead to what was added behind it."""
        _U32.pack_into(self.data, at, target - at)

    def _align(self, size: int) -> None:
        self.data += bytes(-len(self.data) % size)


class WrittenPoint(NamedTuple):
    """A point of entry; as in `lazyimg_formats.soci.ztoc.Point`, its window of any length."""

    offset: int
    bit: int
    position: int
    window: bytes


def make_ztoc(index: bytes, digests: Sequence[bytes], spacing: int) -> bytes:
    """Give the zTOC of a layer.

    Args:
        index: as `lazyimg_formats.stream_index` has it.
        digests: for each of its spans, the sha256 of the blob's bytes from where it begins to
            where the next one does, whose first byte is among them if it begins inside it; of the
            last one, to the blob's end. Not looked at where the layer is not compressed.
        spacing: bytes of tar between points, at least.

    Raises:
        FormatError: the index is none, or the layer has something that no zTOC can say.
    """
    header = parse_header(index)
    if header.codec is Codec.ZSTD:
        raise FormatError(WHAT, "a layer compressed with zstd has none")
    members = []
    end = 0
    for member in iterate_members(index):
        if member.regions is not None:
            raise FormatError(WHAT, f"{member.entry.path[:80]!r} is a sparse file")
        members.append((member.entry, member.data_offset))
        end = member.data_offset + -(-member.data_size // BLOCK) * BLOCK
    size = min(end + 2 * BLOCK, header.tar_size)  # soci reads no further than two blocks of zeros
    spans = list(iterate_spans(index))
    if not spans:
        raise FormatError(WHAT, "a layer without bytes has none")
    if header.codec is Codec.RAW:
        points = _serialize_plain_points(spans[0].length, header.blob_size)
        stored = [span.digest for span in spans]
        return serialize_ztoc(header.blob_size, size, members, PLAIN, points, stored)
    found = []
    window_at, position = HEADER_SIZE, 0
    for span in spans:
        end = window_at + span.window_length
        window = decode_frame(index[window_at:end], MAX_WINDOW) if span.window_length else b""
        found.append(WrittenPoint(span.blob_offset, span.bit, position, window))
        window_at, position = end, position + span.length
    points = serialize_points(found, spacing)
    return serialize_ztoc(header.blob_size, size, members, GZIP, points, digests)


def serialize_points(points: Sequence[WrittenPoint], spacing: int) -> bytes:
    """Give the points of entry of a gzip stream."""
    parts = [POINTS.pack(len(points), spacing)]
    parts += [
        POINT.pack(
            point.offset + bool(point.bit), point.position, -point.bit % 8,
            point.window.rjust(MAX_WINDOW, b"\0"),
        )
        for point in points
    ]  # fmt: skip
    return b"".join(parts)


def _serialize_plain_points(step: int, size: int) -> bytes:
    writer = _Writer()
    root = writer.add_table(_PLAIN_POINTS, _POINTS_VERSION, step, size)
    writer.link(0, root)
    return bytes(writer.data)


def serialize_ztoc(  # noqa: PLR0917 - what a zTOC has
    blob_size: int,
    tar_size: int,
    members: Iterable[tuple[Entry, int]],
    algorithm: int,
    points: bytes,
    digests: Sequence[bytes],
) -> bytes:
    """Give a zTOC.

    Args:
        blob_size: bytes of the layer's blob.
        tar_size: bytes of its tar.
        members: of the tar as they stand there, with where their bytes begin.
        algorithm: `GZIP` or `PLAIN`.
        points: of entry, as they are stored.
        digests: sha256 of each span's bytes in the blob.

    Raises:
        FormatError: it cannot say a time.
    """
    writer = _Writer()
    root = writer.add_table(_ROOT, 0, 0, 0, 0, 0, blob_size, tar_size)
    writer.link(0, root)
    writer.link(root + 4, writer.add_text(VERSION))
    writer.link(root + 8, writer.add_text(TOOL))
    toc = writer.add_table(_TOC, 0)
    writer.link(root + 12, toc)
    listed = list(members)
    vector = writer.add_offsets(len(listed))
    writer.link(toc + 4, vector)
    for number, (entry, offset) in enumerate(listed, 1):
        writer.link(vector + 4 * number, _add_member(writer, entry, offset))
    compression = writer.add_table(_COMPRESSION, 0, 0, len(digests) - 1, algorithm)
    writer.link(root + 16, compression)
    writer.link(compression + 8, writer.add_vector(points, len(points)))
    vector = writer.add_offsets(len(digests))
    writer.link(compression + 4, vector)
    for number, digest in enumerate(digests, 1):
        text = f"sha256:{digest.hex()}".encode()
        writer.link(vector + 4 * number, writer.add_text(text))
    return bytes(writer.data)


def _add_member(writer: _Writer, entry: Entry, offset: int) -> int:
    time = format_time(entry.mtime, entry.mtime_ns)
    if time is None:
        raise FormatError(WHAT, f"{entry.path[:80]!r} has a time of year 0 or beyond 9999")
    device = (entry.major, entry.minor) if entry.kind in DEVICES else (0, 0)
    size = entry.size if entry.kind is Kind.REGULAR else 0
    at = writer.add_table(
        _MEMBER, 0, 0, 0, 0, 0, entry.uid, entry.gid, offset, size, entry.mode, *device
    )
    texts = (entry.path, _TYPES[entry.kind], entry.target, time.encode())
    for number, text in enumerate(texts, 1):
        writer.link(at + 4 * number, writer.add_text(text))
    vector = writer.add_offsets(len(entry.xattrs))
    writer.link(at + 20, vector)
    for number, (name, value) in enumerate(entry.xattrs, 1):
        pair = writer.add_table(_PAIR, 0, 0)
        writer.link(vector + 4 * number, pair)
        writer.link(pair + 4, writer.add_text(_XATTR + name))
        writer.link(pair + 8, writer.add_text(value))
    return at
