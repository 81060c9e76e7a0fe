"""What readers that read in order will want next: decisions only, no bytes, no waiting.

The kernel reads ahead as well, but only as far as one request, and it waits for that. Whoever reads
a large file from start to end would pay a round trip, and a request, for each of those. What is
fetched before it is asked for costs neither: the kernel does not ask for what is there.

Nobody knows whether a reader will go on. So nothing is fetched ahead before several requests have
followed each other, never more than this reader has asked for so far (the window doubles, as the
kernel's does), never more than the limit, and never past the end of the file: where the next extent
does not begin where the last one ends. A reader that stops costs what was fetched for it and
nothing more, since it is its requests that lead to the next window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from lazyimg.limits import FillLimits
    from lazyimg_formats.device_table import DeviceTable

MAX_READERS: Final = 8
"""Readers of one device that are told apart; the one that asked least recently is forgotten."""

MAX_GAP: Final = 1 << 20
"""Bytes of a device between two requests that follow each other: a request may be widened."""

MAX_EXTENTS: Final = 1024
"""Extents that one window has at most."""


@dataclass(slots=True)
class _Reader:
    """Requests that follow each other.

    Attributes:
        last: where the last one began.
        end: what was asked for, or fetched ahead, ends here.
        requests: how many there were.
        asked: bytes of all of them.
    """

    last: int
    end: int
    requests: int
    asked: int


class Readers:
    """Those who read one device.

    Args:
        table: the device.
    """

    def __init__(self, table: DeviceTable) -> None:
        self._table = table
        self._readers: list[_Reader] = []  # the one that asked last is the last one

    def note(self, start: int, stop: int, limits: FillLimits) -> range:
        """Take note of a request for a range of the device; give what to fetch ahead, or nothing.

        No byte is given twice for one reader.

        Args:
            start: the request's first byte.
            stop: its end.
            limits: `ahead` and `ahead_after`.
        """
        reader = self._find(start)
        if reader.requests and reader.last == start:
            return range(0)  # it was tried before, and failed
        reader.last = start
        reader.requests += 1
        reader.asked += stop - start
        reader.end = max(reader.end, stop)
        window = min(reader.asked, limits.ahead)
        if reader.requests <= limits.ahead_after or reader.end - stop > window // 2:
            return range(0)
        ahead = range(reader.end, find_file_end(self._table, reader.end, stop + window))
        reader.end = max(reader.end, ahead.stop)
        return ahead

    def _find(self, start: int) -> _Reader:
        """Give who makes this request; it is the last one from now on."""
        for reader in reversed(self._readers):
            if reader.last <= start <= reader.end + MAX_GAP:
                self._readers.remove(reader)
                break
        else:
            reader = _Reader(start, start, 0, 0)
            if len(self._readers) == MAX_READERS:
                del self._readers[0]
        self._readers.append(reader)
        return reader


def find_file_end(table: DeviceTable, start: int, stop: int) -> int:
    """Give the end of what belongs to the file whose bytes end at or go on at `start`.

    Args:
        table: the device.
        start: where to begin.
        stop: where to end at the latest.

    Returns:
        `start` where a file ends, else at most `stop`. Files that fill their last block, to the
        byte, are taken for one with the file behind them.
    """
    here = table.extents_in(start - 1, 1)
    if not here:
        return start
    first = table.extent(here[0])
    end = first.device_offset + first.length
    for index in range(here.stop, min(here.stop + MAX_EXTENTS, table.extent_count)):
        extent = table.extent(index)
        if end >= stop or extent.device_offset != end:
            break
        end += extent.length
    return max(start, min(end, stop))
