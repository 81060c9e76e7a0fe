"""Finds the members of a tar archive that arrives in pieces.

Every state waits for a number of bytes and has one method that takes them:

| state | waits for | leads to |
|---|---|---|
| header | one block | header, extension, sparse block, sparse map, second zero block |
| extension | the payload of an extended header or long name | header |
| sparse block | one more block of an old GNU map | itself, header |
| sparse map | one block of a map before the payload | itself, header |
| second zero block | one block | ended |
| ended | nothing | - |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from lazyimg_formats.device_table import MAX_DEVICE_SIZE
from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import DEVICES, MAX_ID, MAX_MAJOR, MAX_MINOR, Entry, Kind
from lazyimg_formats.tar.header import BLOCK, ZERO_BLOCK, Header, parse_header, parse_number
from lazyimg_formats.tar.pax import SPARSE_MAP, parse_integer, parse_records, parse_time
from lazyimg_formats.tar.sparse import (
    MAX_MAP_SIZE,
    MAX_REGIONS,
    Region,
    check_regions,
    count_lines,
    parse_leading,
    parse_listed,
    parse_old_entries,
)

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_EXTENSION: Final = 1 << 20
"""Bytes of one extended header or long name: what Go's archive/tar takes."""

_XATTR: Final = b"SCHILY.xattr."
_KINDS: Final = {
    b"0": Kind.REGULAR,
    b"S": Kind.REGULAR,
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHARACTER,
    b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
}
_PAX_FLAGS: Final = b"xg"
_TIMES: Final = frozenset({b"mtime", b"atime", b"ctime"})
_SPARSE: Final = frozenset({SPARSE_MAP, b"GNU.sparse.major", b"GNU.sparse.minor"})
_GLOBAL: Final = b"g"
_EXTENSIONS: Final = frozenset({b"x", b"g", b"L", b"K"})
_REGULAR: Final = Kind.REGULAR
_NO_RECORDS: Final[dict[bytes, bytes]] = {}
_NO_LONG: Final[dict[bytes, bytes]] = {b"L": b"", b"K": b""}


class Member(msgspec.Struct, frozen=True, gc=False):
    """One member and where its bytes are.

    Attributes:
        entry: what it is; `path`, `mode` and `size` as they stand in the archive, for every kind.
        header_offset: of the first block that belongs to it, extended headers included.
        data_offset: of its payload.
        data_size: bytes of its payload; less than `entry.size` in a sparse file.
        regions: of a sparse file: which parts of it the payload holds, in order, none empty.
        accessed: seconds and nanoseconds since the epoch, if given.
        changed: likewise.
        has_globals: a global extended header stands before it.
    """

    entry: Entry
    header_offset: int
    data_offset: int
    data_size: int = 0
    regions: tuple[Region, ...] | None = None
    accessed: tuple[int, int] | None = None
    changed: tuple[int, int] | None = None
    has_globals: bool = False

    @property
    def has_data(self) -> bool:
        """Whether the file has bytes, in its payload or as holes."""
        return self.data_size > 0 or self.regions is not None


class TarScanner:
    """Takes an archive piece by piece, copies no payload.

    Args:
        taken: is given each piece of the archive that a state takes, one after the other: what
            `replay` takes.

    Attributes:
        position: bytes taken so far.
        ended: the two blocks of zeros were there; further bytes mean nothing.
    """

    def __init__(self, taken: Callable[[bytes], object] | None = None) -> None:
        self.position = 0
        self.ended = False
        self._taken = taken
        self._next = 0  # offset of the byte that the state waits for
        self._want = BLOCK
        self._take: Callable[[TarScanner, bytes], Member | None] = TarScanner._take_header
        self._held: list[bytes] = []
        self._held_size = 0
        self._payload_end = 0
        self._start = 0
        self._records = _NO_RECORDS
        self._has_globals = False
        self._long = _NO_LONG
        self._flag = b""
        self._header: Header | None = None
        self._regions: list[Region] = []
        self._real_size = 0
        self._map = bytearray()
        self._map_lines = 0

    def feed(self, data: bytes) -> list[Member]:
        """Take the next bytes; give the members whose headers end in them.

        Raises:
            FormatError: they are no tar archive.
        """
        base = self.position
        self.position += len(data)
        members: list[Member] = []
        try:
            self._scan(data, base, members)
        except FormatError as error:
            raise FormatError(error.what, f"{error.problem} (at byte {self._next})") from error
        return members

    def _scan(self, data: bytes, base: int, members: list[Member]) -> None:
        end = len(data)
        while not self.ended:
            want = self._want
            if self._held_size:
                block = data[: want - self._held_size]
            else:
                at = self._next - base
                if at >= end and want:
                    return
                block = data[at : at + want]
            size = self._held_size + len(block)
            if size < want:
                self._held.append(block)
                self._held_size = size
                return
            if self._held_size:
                block = b"".join((*self._held, block))
                self._held.clear()
                self._held_size = 0
            self._next += want
            if self._taken is not None:
                self._taken(block)
            member = self._take(self, block)
            if member is not None:
                members.append(member)

    def replay(self, data: bytes) -> list[Member]:
        """Take what another scanner has `taken` of an archive; give the members in it.

        Raises:
            FormatError: as `feed`; or there is more than a scanner takes.
        """
        members: list[Member] = []
        at = 0
        while not self.ended:
            want = self._want
            block = data[at : at + want - self._held_size]
            at += len(block)
            self._held.append(block)
            self._held_size += len(block)
            if self._held_size < want:
                return members
            block = b"".join(self._held)
            self._held.clear()
            self._held_size = 0
            self._next += want
            self.position = self._next
            member = self._take(self, block)
            if member is not None:
                members.append(member)
        if at < len(data):
            raise FormatError("tar", f"{len(data) - at} bytes of headers behind its end")
        return members

    def finish(self) -> None:
        """Tell that there are no more bytes.

        Raises:
            FormatError: a header or payload is cut short.
        """
        if self.ended:
            return
        if self._held_size or self.position < self._payload_end or self._header is not None:
            raise FormatError("tar", f"cut short after {self.position} bytes")

    def _wait(self, take: Callable[[TarScanner, bytes], Member | None], want: int = BLOCK) -> None:
        self._take = take
        self._want = want

    def _take_header(self, block: bytes) -> Member | None:
        if block == ZERO_BLOCK:
            self._wait(TarScanner._take_second_zero)
            return None
        header = parse_header(block)
        if header.flag in _EXTENSIONS:
            self._begin_extension(header)
            return None
        return self._begin_member(header, block)

    def _take_second_zero(self, block: bytes) -> None:
        if block != ZERO_BLOCK:
            raise FormatError("tar", "one block of zeros is followed by something else")
        self.ended = True

    def _begin_extension(self, header: Header) -> None:
        if not 0 <= header.size <= MAX_EXTENSION:
            raise FormatError(
                "tar", f"extended header of {header.size} bytes, the limit is {MAX_EXTENSION}"
            )
        self._flag = header.flag
        self._payload_end = self._next + header.size
        self._wait(TarScanner._take_extension, header.size)

    def _take_extension(self, data: bytes) -> None:
        if self._flag in _PAX_FLAGS:
            self._records = parse_records(data)
            if self._flag == _GLOBAL:
                self._forget()
                self._has_globals = True
        else:
            self._long = self._long | {self._flag: data.partition(b"\0")[0]}
        self._skip_payload()

    def _skip_payload(self) -> None:
        self._next = -(-self._payload_end // BLOCK) * BLOCK
        self._wait(TarScanner._take_header)

    def _forget(self) -> None:
        self._start = -(-self._payload_end // BLOCK) * BLOCK
        self._records = _NO_RECORDS
        self._long = _NO_LONG

    def _begin_member(self, header: Header, block: bytes) -> Member | None:
        kind = _KINDS.get(header.flag)
        if kind is None:
            if header.flag != b"\0":
                raise FormatError("tar", f"member of unknown type {header.flag!r}")
            name = self._long[b"L"] or self._records.get(b"path") or header.name
            kind = Kind.DIRECTORY if name.endswith(b"/") else Kind.REGULAR
        records = self._records
        size = header.size
        if records and records.get(b"size"):
            size = parse_integer(records[b"size"])
        if kind is not _REGULAR:
            if records and _is_sparse(records):
                raise FormatError("tar", "a sparse member that is no regular file")
            return self._end_member(header, kind, max(size, 0), 0)
        if not 0 <= size <= MAX_DEVICE_SIZE:
            raise FormatError("tar", f"impossible size {size}")
        self._payload_end = self._next + size
        if header.flag == b"S":
            return self._begin_old_sparse(header, block)
        if records and _is_sparse(records):
            return self._begin_pax_sparse(header, size)
        return self._end_member(header, kind, size, size)

    def _begin_old_sparse(self, header: Header, block: bytes) -> Member | None:
        if not header.gnu:
            raise FormatError("tar", "a sparse file that is not in the GNU format")
        self._header = header
        self._real_size = parse_number(block[483:495])
        self._regions, more = parse_old_entries(block, is_header=True)
        return self._go_on_old_sparse(header, more=more)

    def _take_sparse_block(self, block: bytes) -> Member | None:
        regions, more = parse_old_entries(block, is_header=False)
        self._regions += regions
        self._payload_end += BLOCK  # the map is not part of the size
        if len(self._regions) > MAX_REGIONS:
            raise FormatError("sparse file", f"more than {MAX_REGIONS} regions")
        return self._go_on_old_sparse(self._pending, more=more)

    def _go_on_old_sparse(self, header: Header, *, more: bool) -> Member | None:
        if more:
            self._wait(TarScanner._take_sparse_block)
            return None
        return self._end_sparse(header)

    def _begin_pax_sparse(self, header: Header, size: int) -> Member | None:
        records = self._records
        real = records.get(b"GNU.sparse.size") or records.get(b"GNU.sparse.realsize")
        self._real_size = parse_integer(real) if real else size
        if records.get(b"GNU.sparse.major") == b"1":
            self._header = header
            self._map.clear()
            self._map_lines = 0
            self._wait(TarScanner._take_map_block)
            return None
        self._regions = parse_listed(records)
        return self._end_sparse(header)

    def _take_map_block(self, block: bytes) -> Member | None:
        self._map += block
        self._map_lines += block.count(b"\n")
        if self._next > self._payload_end or len(self._map) > MAX_MAP_SIZE:
            raise FormatError("sparse file", "its map does not end")
        lines = count_lines(self._map[:BLOCK])
        if not lines or self._map_lines < lines:
            return None
        self._regions = parse_leading(bytes(self._map))
        return self._end_sparse(self._pending)

    @property
    def _pending(self) -> Header:
        assert self._header is not None  # noqa: S101 - set by what leads to these states
        return self._header

    def _end_sparse(self, header: Header) -> Member:
        size = self._real_size
        data_size = self._payload_end - self._next
        regions = check_regions(self._regions, size, data_size)
        self._regions = []
        if size > MAX_DEVICE_SIZE:
            raise FormatError("sparse file", f"impossible size {size}")
        return self._end_member(header, Kind.REGULAR, size, data_size, regions)

    def _end_member(
        self,
        header: Header,
        kind: Kind,
        size: int,
        data_size: int,
        regions: tuple[Region, ...] | None = None,
    ) -> Member:
        path, target, uid, gid = header.name, header.target, header.uid, header.gid
        mtime, mtime_ns = header.mtime, 0
        accessed = None if header.accessed is None else (header.accessed, 0)
        changed = None if header.changed is None else (header.changed, 0)
        xattrs: tuple[tuple[bytes, bytes], ...] = ()
        records = self._records
        if records:
            path, target = records.get(b"path") or path, records.get(b"linkpath") or target
            uid, gid, times, xattrs = _parse_attributes(records, uid, gid)
            mtime, mtime_ns = times.get(b"mtime", (mtime, 0))
            accessed = times.get(b"atime", accessed)
            changed = times.get(b"ctime", changed)
        if self._long is not _NO_LONG:
            path, target = self._long[b"L"] or path, self._long[b"K"] or target
        if regions is not None and records:
            path = records.get(b"GNU.sparse.name") or path
        major, minor = header.major, header.minor
        if kind in DEVICES or not 0 <= uid <= MAX_ID or not 0 <= gid <= MAX_ID:
            _check_numbers(kind, uid, gid, major, minor)
        entry = Entry(
            path, kind, header.mode, uid, gid, mtime, mtime_ns, size, target, major, minor, xattrs
        )
        start = self._next
        member = Member(
            entry, self._start, start, data_size, regions, accessed, changed, self._has_globals
        )
        self._has_globals = False
        self._header = None
        self._payload_end = start + data_size
        self._forget()
        self._next = self._start
        self._take = TarScanner._take_header
        self._want = BLOCK
        return member


def _parse_attributes(
    records: dict[bytes, bytes], uid: int, gid: int
) -> tuple[int, int, dict[bytes, tuple[int, int]], tuple[tuple[bytes, bytes], ...]]:
    """Give owner, group, times by their keys, and extended attributes, where records say them."""
    times: dict[bytes, tuple[int, int]] = {}
    xattrs: list[tuple[bytes, bytes]] = []
    for key, value in records.items():
        if key in _TIMES:
            if value:
                times[key] = parse_time(value)
        elif key[:13] == _XATTR:
            xattrs.append((key[13:], value))  # may be empty
        elif value:
            if key == b"uid":
                uid = parse_integer(value)
            elif key == b"gid":
                gid = parse_integer(value)
    return uid, gid, times, tuple(sorted(xattrs))


def _is_sparse(records: dict[bytes, bytes]) -> bool:
    if _SPARSE.isdisjoint(records):
        return False
    major, minor = records.get(b"GNU.sparse.major"), records.get(b"GNU.sparse.minor")
    if not major and not minor:
        return bool(records.get(SPARSE_MAP))
    return (major == b"0" and minor in {b"0", b"1"}) or (major, minor) == (b"1", b"0")


def _check_numbers(kind: Kind, uid: int, gid: int, major: int, minor: int) -> None:
    if not 0 <= uid <= MAX_ID or not 0 <= gid <= MAX_ID:
        raise FormatError("tar", f"owner {uid}:{gid} is over 32 bits")
    if kind in DEVICES and not (0 <= major <= MAX_MAJOR and 0 <= minor <= MAX_MINOR):
        raise FormatError("tar", f"impossible device number {major}:{minor}")
