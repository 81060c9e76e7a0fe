"""Readers in order, where the daemon also sees reads of what is present: they find it present.

The fill engine fetches ahead of a reader by the requests that it is given (`lazyimg.fill.ahead`),
and those are for what is absent: a reader that comes to the end of what was fetched ahead waits
there for a round trip. A transport that also answers reads of present ranges knows better: it has
what lies a little ahead of such a reader filled while that one has still something to read.

Nothing is done for who reads less than a mebibyte in order, and never more than such a reader has
read so far: a program's start reads small files whole, and parts of large ones.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from lazyimg.errors import LazyimgError
from lazyimg.fill.ports import Sink
from lazyimg.host.mutex import Mutex

if TYPE_CHECKING:
    from lazyimg.transports.ports import Filler

NEAR: Final = 4 << 20
"""Bytes ahead of a reader that should be present, at most."""

GAP: Final = 1 << 20
"""Bytes between two reads that follow each other, at most."""

AFTER: Final = 1 << 20
"""Bytes that are read in order before anything is done for a reader."""

READERS: Final = 8
"""Readers of one device that are told apart; the one that read least recently is forgotten."""

_log = logging.getLogger(__name__)


class Followed(Sink, Protocol):
    """A device, as far as it matters here."""

    name: str
    size: int

    def absent(self, offset: int, length: int) -> list[range]:
        """Give what of a range is absent; in any thread."""
        ...


@dataclass(slots=True)
class _Reader:
    """Reads that follow each other.

    Attributes:
        last: where the last one began.
        end: where it ended.
        read: bytes of all of them.
        seen: what lies before is present, or was asked for.
    """

    last: int
    end: int
    read: int
    seen: int


class Followers:
    """Those who read one device. Decides only.

    Args:
        near: bytes ahead of a reader that should be present, at most.
    """

    def __init__(self, near: int = NEAR) -> None:
        self._near = near
        self._readers: list[_Reader] = []  # the one that read last is the last one

    def note(self, start: int, stop: int, size: int) -> range:
        """Take note of a read; give the range to look at, which should be present, or nothing.

        No byte is given twice for one reader.

        Args:
            start: the read's first byte.
            stop: its end.
            size: bytes of the device.
        """
        reader = self._find(start)
        reader.last, reader.end = start, max(reader.end, stop)
        reader.read += stop - start
        window = min(reader.read, self._near)
        if reader.read < AFTER or reader.seen >= stop + window // 2:
            return range(0)
        begin = max(stop, reader.seen)
        reader.seen = max(begin, min(stop + window, size))
        return range(begin, reader.seen)

    def _find(self, start: int) -> _Reader:
        readers = self._readers
        for index in range(len(readers) - 1, -1, -1):
            reader = readers[index]
            if reader.last <= start <= reader.end + GAP:
                if index < len(readers) - 1:
                    readers.append(readers.pop(index))
                return reader
        if len(readers) == READERS:
            del readers[0]
        readers.append(_Reader(start, start, 0, start))
        return readers[-1]


class Following:
    """Follows the readers of all devices of a transport.

    Args:
        filler: fills what lies ahead of them.
        ahead: bytes ahead of a reader that may be filled; never more than `NEAR`. 0: none.
    """

    def __init__(self, filler: Filler, ahead: int = NEAR) -> None:
        self._filler = filler
        self._near = min(ahead, NEAR)
        self._lock = Mutex()  # of the next one
        self._followers: dict[str, Followers] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Use the running event loop from now on."""
        self._loop = asyncio.get_running_loop()

    def note(self, device: Followed, start: int, length: int) -> None:
        """Take note of a read, whether its range is present or not; any thread may call."""
        with self._lock:
            followers = self._followers.get(device.name)
            if followers is None:
                followers = self._followers[device.name] = Followers(self._near)
            ahead = followers.note(start, start + length, device.size)
        if ahead and (absent := device.absent(ahead.start, len(ahead))) and self._loop is not None:
            wanted = range(absent[0].start, absent[-1].stop)
            try:
                self._loop.call_soon_threadsafe(self._launch, device, wanted)
            except RuntimeError:
                _log.debug("the event loop is closed")

    def forget(self, name: str) -> None:
        """Forget who read a device."""
        with self._lock:
            self._followers.pop(name, None)

    async def stop(self) -> None:
        """End what is under way."""
        self._loop = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _launch(self, device: Followed, wanted: range) -> None:
        if self._loop is not None:
            task = self._loop.create_task(self._fill(device, wanted))
            self._tasks.add(task)
            task.add_done_callback(partial(self._tasks.discard))

    async def _fill(self, device: Followed, wanted: range) -> None:
        try:
            await self._filler.fill(device.name, wanted.start, len(wanted), device)
        except LazyimgError as error:  # the reader will be told, when it comes there
            _log.debug("ahead of a reader: %s", error)
