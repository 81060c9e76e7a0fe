"""A zTOC's parts: what it says of itself, its points of entry, the members of the tar.

Checked here, beside that nothing lies outside: the version; that there are as many points as
digests; that each point lies behind the one before, in the blob and in the tar.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from lazyimg_formats.device_table import MAX_BLOB_SIZE, MAX_DEVICE_SIZE, MAX_SPANS, MAX_WINDOW
from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import MAX_ENTRIES, Entry, Kind
from lazyimg_formats.soci.flatbuffers import OFFSET, Buffer, TableReader
from lazyimg_formats.zstd_chunked.entries import parse_sha256, parse_time

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_ZTOC: Final = 256 << 20
"""Bytes of a zTOC."""

VERSION: Final = b"0.9"

GZIP: Final = 1
PLAIN: Final = 2

WHAT: Final = "zTOC"
POINT: Final = struct.Struct(f"<qqB{MAX_WINDOW}s")
"""A point of entry: where in the blob its first whole byte is, where in the tar it is, bits of the
byte before that belong to it, the window."""

POINTS: Final = struct.Struct("<iq")
"""What comes before the points: their number, and the bytes of tar between them, at least."""

KINDS: Final = {
    b"reg": Kind.REGULAR,
    b"dir": Kind.DIRECTORY,
    b"symlink": Kind.SYMLINK,
    b"hardlink": Kind.HARDLINK,
    b"char": Kind.CHARACTER,
    b"block": Kind.BLOCK,
    b"fifo": Kind.FIFO,
}

ZTOC: Final = f"{OFFSET}{OFFSET}qq{OFFSET}{OFFSET}"
TOC: Final = OFFSET
METADATA: Final = f"{OFFSET}{OFFSET}qq{OFFSET}qII{OFFSET}{OFFSET}{OFFSET}qq{OFFSET}"
XATTR: Final = f"{OFFSET}{OFFSET}"
COMPRESSION: Final = f"bi{OFFSET}{OFFSET}"
PLAIN_POINTS: Final = "iqq"

_XATTR: Final = b"SCHILY.xattr."
_SPARSE: Final = b"GNU.sparse."
_POINT_HEAD: Final = struct.Struct("<qqB")
_MAX_BITS: Final = 7
_GZIP_HEADER: Final = 10  # bytes, of the first point that old zTOCs leave out
_REGULAR: Final = Kind.REGULAR


class Point(NamedTuple):
    """Where a stream can be entered.

    Attributes:
        offset: of the blob's first byte that has bits of it.
        bit: how many of that byte's bits belong to what comes before.
        position: in the tar.
        window: what comes before it in the tar, `MAX_WINDOW` bytes; of a plain tar none.
    """

    offset: int
    bit: int
    position: int
    window: memoryview

    @property
    def first(self) -> int:
        """The blob's first byte that has no bit of what comes before."""
        return self.offset + bool(self.bit)


class Ztoc:
    """A zTOC.

    Args:
        data: its bytes.

    Attributes:
        algorithm: how the layer is compressed: `GZIP` or `PLAIN`.
        blob_size: bytes of the layer's blob.
        tar_size: bytes of its tar, as far as it says anything.
        points: of entry, in order; the first one is where the tar begins.
        digests: for each point, the sha256 of the blob's bytes up to the next one, or to its end.

    Raises:
        FormatError: it is none.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) > MAX_ZTOC:
            raise FormatError(WHAT, f"{len(data)} bytes, the limit is {MAX_ZTOC}")
        buffer = self._buffer = Buffer(WHAT, data)
        root = buffer.root()
        version, _, self.blob_size, self.tar_size, toc, compression = TableReader(
            buffer, ZTOC
        ).read(root)
        found = buffer.text(root + version) if version else b""
        if found != VERSION:
            raise FormatError(WHAT, f"version {found[:20]!r}, expected {VERSION!r}")
        if not 0 <= self.blob_size <= MAX_BLOB_SIZE or not 0 <= self.tar_size <= MAX_DEVICE_SIZE:
            raise FormatError(WHAT, f"a blob of {self.blob_size} bytes, {self.tar_size} of tar")
        self._members = range(0)
        if toc:
            (members,) = TableReader(buffer, TOC).read(root + toc)
            if members:
                self._members = buffer.targets(root + toc + members)
        if len(self._members) > MAX_ENTRIES:
            raise FormatError(WHAT, f"{len(self._members)} entries, the limit is {MAX_ENTRIES}")
        self.algorithm = GZIP
        self.digests: list[bytes] = []
        self.points: list[Point] = []
        if not compression:
            raise FormatError(WHAT, "it does not say how the layer is compressed")
        self._read_compression(root + compression)

    def _read_compression(self, at: int) -> None:
        buffer = self._buffer
        algorithm, last, digests, stored = TableReader(buffer, COMPRESSION).read(at)
        self.algorithm = algorithm or GZIP  # which is left out
        if self.algorithm not in {GZIP, PLAIN}:
            raise FormatError(WHAT, f"unknown compression {algorithm}")
        places = buffer.targets(at + digests) if digests else range(0)
        if not 0 < len(places) == last + 1 <= MAX_SPANS:
            raise FormatError(WHAT, f"{len(places)} digests of spans, the last span is {last}")
        points = buffer.view(at + stored) if stored else memoryview(b"")
        count = last + 1
        if self.algorithm == GZIP:
            self.points = _read_points(points, count)
        else:
            self.points = _divide(points.tobytes(), count)
        self._check_points()
        self.digests = [_parse_digest(buffer.text(buffer.follow(place))) for place in places]

    def _check_points(self) -> None:
        first, position = -1, -1
        for point in self.points:
            if not (first < point.first <= self.blob_size and position < point.position):
                raise FormatError(
                    WHAT,
                    f"byte {point.position} of the tar at byte {point.first} of"
                    f" {self.blob_size}, behind {position} at {first}",
                )
            first, position = point.first, point.position
        if self.points[0].position:
            raise FormatError(WHAT, f"it begins at byte {self.points[0].position} of the tar")

    def members(self) -> Iterator[tuple[Entry, int]]:
        """Give each member of the tar as it stands there, and where its bytes begin.

        Raises:
            FormatError: one is impossible, or cannot be said in this format.
        """
        buffer = self._buffer
        follow, text = buffer.follow, buffer.text
        read, read_xattr = TableReader(buffer, METADATA).read, TableReader(buffer, XATTR).read
        left = len(buffer.data)  # no two strings lie in the same place
        for place in self._members:
            at = follow(place)
            (
                name, kind, offset, size, target, mode, uid, gid, _, _, time, major, minor, records,
            ) = read(at)  # fmt: skip
            path = text(at + name) if name else b""
            link = text(at + target) if target else b""
            left -= len(path) + len(link)
            found = KINDS.get(text(at + kind) if kind else b"")
            if found is None:
                raise FormatError(WHAT, f"{path[:80]!r} is of an unknown kind")
            xattrs: list[tuple[bytes, bytes]] = []
            if records:
                for record in buffer.targets(at + records):
                    pair = follow(record)
                    key_at, value_at = read_xattr(pair)
                    key = text(pair + key_at) if key_at else b""
                    if key.startswith(_XATTR):
                        value = text(pair + value_at) if value_at else b""
                        xattrs.append((key[len(_XATTR) :], value))
                        left -= len(value)
                    elif key.startswith(_SPARSE):
                        raise FormatError(
                            WHAT,
                            f"{path[:80]!r} is a sparse file, whose bytes it gives wrongly",
                        )
                    left -= len(key)
            if left < 0:
                raise FormatError(WHAT, "it has the same strings again and again")
            seconds, nanoseconds = _parse_time(text(at + time) if time else b"")
            yield (
                Entry(
                    path, found, mode, uid, gid, seconds, nanoseconds,
                    size if found is _REGULAR else 0, link, major, minor, tuple(xattrs),
                ),
                offset,
            )  # fmt: skip


def _read_points(stored: memoryview, count: int) -> list[Point]:
    """Give the points of a gzip stream."""
    if len(stored) < POINTS.size:
        raise FormatError(WHAT, f"{len(stored)} bytes of points of entry")
    said, _ = POINTS.unpack_from(stored)
    written, rest = divmod(len(stored) - POINTS.size, POINT.size)
    if said != count or rest or written not in {count, count - 1}:
        raise FormatError(WHAT, f"{said} points of entry in {len(stored)} bytes, expected {count}")
    points = []
    if written < count:
        points.append(Point(_GZIP_HEADER, 0, 0, memoryview(bytes(MAX_WINDOW))))
    for at in range(POINTS.size, len(stored), POINT.size):
        first, position, bits = _POINT_HEAD.unpack_from(stored, at)
        if bits > _MAX_BITS:
            raise FormatError(WHAT, f"a point of entry at {bits} bits")
        window = stored[at + _POINT_HEAD.size : at + POINT.size]
        points.append(Point(first - bool(bits), -bits % 8, position, window))
    return points


def _divide(stored: bytes, count: int) -> list[Point]:
    """Give the points of a tar that is not compressed."""
    buffer = Buffer(WHAT, stored)
    _, step, size = TableReader(buffer, PLAIN_POINTS).read(buffer.root())
    if step <= 0 or not 0 < size <= MAX_BLOB_SIZE or -(-size // step) != count:
        raise FormatError(WHAT, f"{count} spans of {step} bytes in {size}")
    return [Point(at, 0, at, memoryview(b"")) for at in range(0, size, step)]


def _parse_digest(text: bytes) -> bytes:
    try:
        return parse_sha256(text.decode("ascii"))
    except (FormatError, UnicodeDecodeError) as error:
        raise FormatError(WHAT, f"expected a sha256 digest, got {text[:80]!r}") from error


@lru_cache(maxsize=65_536)
def _parse_time(text: bytes) -> tuple[int, int]:
    try:
        return parse_time(text.decode("ascii"))
    except (FormatError, UnicodeDecodeError) as error:
        raise FormatError(WHAT, f"a time that it cannot say: {text[:80]!r}") from error
