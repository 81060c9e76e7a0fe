"""Compares a tar, as it arrives, with the index that is said to describe it.

They agree if they have the same entries in the same order, each with the same kind, mode, owner,
time, attributes, target and device number, and if each file's bytes are those that the index's
spans give: the sha256 of every span is the one of the tar's bytes there, and what no span gives is
zero. What an index does not have, because it means nothing to anybody who unpacks the tar, is not
compared either: see `lazyimg_formats.layer`.

A span may belong to one file only. That is so where each chunk of a file has a digest of its own.
Where spans are stretches of the tar, it is enough that each file is said to lie where it does: what
they decode to is checked elsewhere.

stargz-snapshotter's indexes do not list the files that are there for its own sake, and know times
to the second only, rounded.
"""

from __future__ import annotations

import hashlib
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec.structs import replace

from lazyimg_formats.device_table import BLOCK_SIZE
from lazyimg_formats.errors import FormatError
from lazyimg_formats.estargz.location import TOC_NAME
from lazyimg_formats.estargz.toc import LANDMARKS
from lazyimg_formats.layer import ChunkMap, Entry, Kind, LayerBuilder, normalize_path
from lazyimg_formats.tar.scanner import TarScanner

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lazyimg_formats.device_table import DeviceTable
    from lazyimg_formats.layer import LayerIndex
    from lazyimg_formats.tar.scanner import Member

_WHAT: Final = "index"
_NO_SPAN: Final = -1
_ZEROS: Final = memoryview(bytes(1 << 20))
_HALF: Final = 500_000_000
_STARGZ_FILES: Final = LANDMARKS | {TOC_NAME}
_FIELDS: Final = [name for name in Entry.__struct_fields__ if name != "data"]


class _Stretch(NamedTuple):
    """The next bytes of a file: a part of a span, or zeros (`_NO_SPAN`)."""

    length: int
    span: int
    inner_offset: int


class TarComparison:
    """Takes a tar piece by piece.

    Every method raises FormatError at the first difference, or when it is no tar.

    Args:
        index: what is said of the tar.
        stargz: it was made by stargz-snapshotter.
        starts: where in the tar each span of the index's device begins; None: spans are no
            stretches of the tar.
    """

    def __init__(
        self, index: LayerIndex, *, stargz: bool = False, starts: Sequence[int] | None = None
    ) -> None:
        self._stargz = stargz
        self._starts = starts
        self._table = index.table
        self._entries = iter(index.entries)
        self._number = 0
        self._scanner = TarScanner()
        self._builder = LayerBuilder()
        self._file: _File | None = None  # whose payload is still to come

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        base = self._scanner.position
        members = self._scanner.feed(data)
        view = memoryview(data)
        self._take_payload(view)
        for member in members:
            self._begin(member)
            self._take_payload(view[member.data_offset - base :])

    def finish(self) -> None:
        """Tell that there are no more bytes."""
        self._scanner.finish()
        further = next(self._entries, None)
        if further is not None:
            raise FormatError(_WHAT, f"has {further.path[:80]!r}, which its tar does not have")

    def _begin(self, member: Member) -> None:
        entry = member.entry
        if self._stargz:
            if normalize_path(entry.path) in _STARGZ_FILES:
                return
            entry = replace(entry, mtime=_round_time(entry), mtime_ns=0)
        for cleaned in self._clean(entry):
            expected = next(self._entries, None)
            self._number += 1
            if expected is None:
                raise FormatError(_WHAT, f"does not have {cleaned.path[:80]!r} of its tar")
            self._compare(cleaned, expected)
            if not expected.size:
                continue
            if self._starts is None:
                self._file = _File(self._table, expected, member)
            else:
                self._check_place(self._starts, expected, member)

    def _clean(self, entry: Entry) -> list[Entry]:
        """Give what an index has for a tar's entry: at most one, without data."""
        size = entry.size if entry.kind is Kind.REGULAR else 0
        self._builder.add(replace(entry, size=0) if size else entry)
        cleaned = self._builder.take()
        if size and cleaned and cleaned[0].kind is Kind.REGULAR:
            return [replace(cleaned[0], size=size)]
        return cleaned

    def _compare(self, entry: Entry, expected: Entry) -> None:
        for name in _FIELDS:
            ours, theirs = getattr(entry, name), getattr(expected, name)
            if ours != theirs:
                raise FormatError(
                    _WHAT,
                    f"entry {self._number}, {expected.path[:80]!r}: {name} {_show(theirs)},"
                    f" in its tar {_show(ours)}",
                )

    def _check_place(self, starts: Sequence[int], entry: Entry, member: Member) -> None:
        """Check that a file's bytes are said to be where the tar has them."""
        stretches = _list_stretches(self._table, entry)
        at = member.data_offset
        for length, span, inner in stretches:
            if span == _NO_SPAN or starts[span] + inner != at or member.regions is not None:
                raise FormatError(
                    _WHAT, f"{entry.path[:80]!r} is not at byte {at} of its tar, or is sparse"
                )
            at += length

    def _take_payload(self, view: memoryview) -> None:
        if self._file is not None:
            self._file.feed(view)
            if not self._file.left:
                self._file.finish()
                self._file = None


class _File:
    """Compares one file's bytes.

    Attributes:
        left: bytes of its payload that are still to come.
    """

    def __init__(self, table: DeviceTable, entry: Entry, member: Member) -> None:
        self.left = member.data_size
        self._table = table
        self._entry = entry
        self._stretches = _list_stretches(table, entry)
        self._stretch = _Stretch(0, _NO_SPAN, 0)
        self._regions = iter(member.regions or ([(0, entry.size)] if self.left else []))
        self._region_left = 0
        self._position = 0  # in the file
        self._span = _NO_SPAN
        self._span_left = 0
        self._hash = hashlib.sha256()

    def feed(self, view: memoryview) -> None:
        """Take the next bytes of the payload; what follows it is passed over."""
        view = view[: self.left]
        self.left -= len(view)
        while view:
            if not self._region_left:
                offset, self._region_left = next(self._regions)
                self._take_hole(offset)
            part = view[: self._region_left]
            view = view[len(part) :]
            self._region_left -= len(part)
            self._take(part)

    def finish(self) -> None:
        """Tell that there is no more of it."""
        self._take_hole(self._entry.size)
        if self._span_left:
            raise self._differs("a span belongs to several files")

    def _take(self, data: memoryview) -> None:
        while data:
            part = data[: self._want(min(len(data), len(_ZEROS)))]
            data = data[len(part) :]
            if self._stretch.span != _NO_SPAN:
                self._hash.update(part)
            elif bytes(part) != _ZEROS[: len(part)]:
                raise self._differs("zeros, in its tar other bytes")
            self._advance(len(part))

    def _take_hole(self, end: int) -> None:
        """Take zeros that the tar does not hold, up to an offset in the file."""
        while self._position < end:
            length = self._want(end - self._position)
            if self._stretch.span != _NO_SPAN:
                length = min(length, len(_ZEROS))
                self._hash.update(_ZEROS[:length])
            self._advance(length)

    def _want(self, most: int) -> int:
        """Give how many bytes are taken at once: of one stretch."""
        if not self._stretch.length:
            self._begin_stretch(next(self._stretches))
        return min(most, self._stretch.length)

    def _begin_stretch(self, stretch: _Stretch) -> None:
        self._stretch = stretch
        if stretch.span == _NO_SPAN:
            return
        if not self._span_left:
            self._span, self._span_left = stretch.span, self._table.span_length(stretch.span)
            self._hash = hashlib.sha256()
        done = self._table.span_length(stretch.span) - self._span_left
        if (stretch.span, stretch.inner_offset) != (self._span, done):
            raise self._differs("a span is not used in its order")

    def _advance(self, length: int) -> None:
        self._position += length
        self._stretch = self._stretch._replace(length=self._stretch.length - length)
        if self._stretch.span == _NO_SPAN:
            return
        self._span_left -= length
        if self._span_left:
            return
        if self._hash.digest() != self._table.span(self._span).digest:
            raise self._differs("not the bytes of its tar")

    def _differs(self, problem: str) -> FormatError:
        return FormatError(
            _WHAT, f"{self._entry.path[:80]!r}, before byte {self._position}: {problem}"
        )


def _list_stretches(table: DeviceTable, entry: Entry) -> Iterator[_Stretch]:
    """Give what a file consists of, in its order."""
    data, size = entry.data, entry.size
    if not isinstance(data, ChunkMap):
        return _list_range(table, data or 0, size)
    chunk = 1 << data.bits
    return chain.from_iterable(
        _list_range(table, block * BLOCK_SIZE, min(chunk, size - number * chunk))
        for number, block in enumerate(data.blocks)
    )


def _list_range(table: DeviceTable, start: int, length: int) -> Iterator[_Stretch]:
    position = start
    for number in table.extents_in(start, length):
        extent = table.extent(number)
        if extent.device_offset > position:
            yield _Stretch(extent.device_offset - position, _NO_SPAN, 0)
        yield _Stretch(extent.length, extent.span, extent.inner_offset)
        position = extent.device_offset + extent.length
    if position < start + length:
        yield _Stretch(start + length - position, _NO_SPAN, 0)


def _round_time(entry: Entry) -> int:
    """Give the time that stargz-snapshotter has: to the nearest second, of 1970's first none."""
    return entry.mtime + (entry.mtime_ns >= _HALF) if entry.mtime else 0


def _show(value: object) -> str:
    return (value.name.lower() if isinstance(value, Kind) else repr(value))[:80]
