"""Compares what a device has with what its table says of it. Pure reading; blocks."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from lazyimg.errors import StorageError
from lazyimg_formats.device_table import BLOCK_SIZE, INPUTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lazyimg.cache.device_file import DeviceFile
    from lazyimg_formats.device_table import DeviceTable, Extent

STEP: Final = 16 << 20
"""Bytes that one step looks at, roughly."""

_PIECE: Final = 1 << 20
_ZEROS: Final = memoryview(bytes(_PIECE))


class DeviceCheck:
    """One check of one device, in steps; what is absent is passed over.

    A span is checked when all that the device has of it is present. Where that is not all of the
    span, the rest may be zeros that the device need not hold; else the digest says nothing. One of
    what the span is decoded from says nothing of it, either.

    Args:
        file: the device.
        table: its table.

    Attributes:
        checked: bytes that are right.
        unchecked: bytes that are present, but cannot be checked by themselves.
        wrong: ranges, in bytes, of whole blocks with something wrong; in order, disjoint.
    """

    def __init__(self, file: DeviceFile, table: DeviceTable) -> None:
        self.checked = 0
        self.unchecked = 0
        self.wrong: list[range] = []
        self._file = file
        self._table = table
        self._walk = self._check()

    def step(self) -> bool:
        """Go on for a while; tells whether there is more to do. Blocks."""
        looked = 0
        for size in self._walk:
            looked += size
            if looked >= STEP:
                return True
        return False

    def _check(self) -> Iterator[int]:
        """Look at spans, and at the zeros before each extent; gives the bytes of each look."""
        with suppress(OSError):  # what is read shows it
            self._file.drop_pages()  # it is the disk that is asked
        end = 0
        for span in range(self._table.span_count):
            extents = [self._table.extent(i) for i in self._table.extents_of(range(span, span + 1))]
            for extent in extents:
                yield from self._check_zeros(end, extent.device_offset)
                end = extent.device_offset + extent.length
            yield self._check_span(span, extents)
        yield from self._check_zeros(end, self._table.size)

    def _check_span(self, number: int, extents: Sequence[Extent]) -> int:
        size = sum(extent.length for extent in extents)
        if any(self._file.absent(extent.device_offset, extent.length) for extent in extents):
            present = (self._present(one.device_offset, one.length) for one in extents)
            self.unchecked += sum(sum(map(len, ranges)) for ranges in present)
            return 0
        span = self._table.span(number)
        data = bytearray(span.length)
        readable, covered = self._collect(extents, data)
        if readable and span.hash.digest(data) == span.digest:
            self.checked += size
        elif readable and (covered < span.length or span.codec in INPUTS):
            self.unchecked += size
        else:
            for extent in extents:
                self._note_wrong(extent.device_offset, extent.length)
        return size

    def _collect(self, extents: Sequence[Extent], data: bytearray) -> tuple[bool, int]:
        """Put the bytes of a span together.

        Gives whether they could be read and do not contradict each other, and how many there are.
        """
        known = bytearray(len(data))
        for extent in extents:
            found = self._read(extent.device_offset, extent.length)
            place = slice(extent.inner_offset, extent.inner_offset + extent.length)
            if found is None:
                return False, 0
            if known.find(1, place.start, place.stop) >= 0 and any(
                mine != other
                for mine, other, seen in zip(found, data[place], known[place], strict=True)
                if seen
            ):
                return False, 0
            data[place] = found
            known[place] = b"\1" * extent.length
        return True, known.count(1)

    def _check_zeros(self, start: int, stop: int) -> Iterator[int]:
        for piece in range(start, stop, _PIECE):
            for part in self._present(piece, min(_PIECE, stop - piece)):
                found = self._read(part.start, len(part))
                if found is None or found != _ZEROS[: len(part)]:
                    self._note_wrong(part.start, len(part))
                else:
                    self.checked += len(part)
                yield len(part)

    def _present(self, offset: int, length: int) -> list[range]:
        """Give what is present of a range, in bytes."""
        found = []
        end = offset + length
        for run in self._file.absent(offset, length):
            if offset < run.start:
                found.append(range(offset, run.start))
            offset = run.stop
        if offset < end:
            found.append(range(offset, end))
        return found

    def _read(self, offset: int, length: int) -> bytes | None:
        """Read a range from the disk; None if that fails."""
        data = bytearray(length)
        try:
            if self._file.read_into(offset, memoryview(data)) != length:
                return None
        except StorageError:
            return None
        return bytes(data)

    def _note_wrong(self, offset: int, length: int) -> None:
        start = offset - offset % BLOCK_SIZE
        stop = offset + length + -(offset + length) % BLOCK_SIZE
        if self.wrong and start <= self.wrong[-1].stop:
            self.wrong[-1] = range(self.wrong[-1].start, max(stop, self.wrong[-1].stop))
        else:
            self.wrong.append(range(start, stop))
