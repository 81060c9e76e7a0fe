"""Fills for requests of the kernel: from a transport's threads to the event loop, and back."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lazyimg.errors import LazyimgError, StorageError
from lazyimg.host.mutex import Mutex
from lazyimg.logs import Repeats

if TYPE_CHECKING:
    from collections.abc import Callable

    from lazyimg.transports.counters import Counters
    from lazyimg.transports.following import Followed
    from lazyimg.transports.ports import Filler

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Wish:
    """A range of a device that a request of the kernel wants present.

    Attributes:
        file: the device.
        offset: first byte.
        length: bytes.
        done: is called exactly once, in the event loop, or in the thread that submitted it when
            that has ended: whether the range is present now. Does not block.
    """

    file: Followed
    offset: int
    length: int
    done: Callable[[bool], None]


class Filling:
    """Has absent ranges filled, each wish in a task of its own.

    Joining fills of one range is the filler's business.

    Args:
        filler: knows the devices.
        counters: get the failures.
    """

    def __init__(self, filler: Filler, counters: Counters) -> None:
        self._filler = filler
        self._counters = counters
        self._loop: asyncio.AbstractEventLoop
        self._lock = Mutex()  # of the next two
        self._wishes: list[Wish] = []
        self._stopping = False
        self._tasks: set[asyncio.Task[bool]] = set()
        self._failures = Repeats()

    def start(self) -> None:
        """Use the running event loop from now on."""
        self._loop = asyncio.get_running_loop()

    def submit(self, wish: Wish) -> None:
        """Have a range filled; any thread may call."""
        with self._lock:
            stopping = self._stopping
            if not stopping:
                self._wishes.append(wish)
            first = len(self._wishes) == 1
        if stopping:
            wish.done(False)  # noqa: FBT003 - positional only
        elif first:  # waking the loop costs more than all else here: once for all that wait
            try:
                self._loop.call_soon_threadsafe(self._take)
            except RuntimeError:  # it is closed
                self._refuse()

    async def stop(self) -> None:
        """End every wish, as one that failed, and take no more."""
        with self._lock:
            self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._refuse()

    def _refuse(self) -> None:
        with self._lock:
            wishes, self._wishes = self._wishes, []
        for wish in wishes:
            wish.done(False)  # noqa: FBT003 - positional only

    def _take(self) -> None:
        with self._lock:
            if self._stopping:
                return
            wishes, self._wishes = self._wishes, []
        for wish in wishes:
            task = self._loop.create_task(self._fill(wish))
            self._tasks.add(task)
            task.add_done_callback(partial(self._end, wish))

    def _end(self, wish: Wish, task: asyncio.Task[bool]) -> None:
        self._tasks.discard(task)
        wish.done(not task.cancelled() and task.result())

    async def _fill(self, wish: Wish) -> bool:
        try:
            await self._make_present(wish)
        except LazyimgError as error:
            self._note(wish, error)
        except Exception:
            _log.exception("read of %s failed", wish.file.name)
        else:
            return True
        return False

    async def _make_present(self, wish: Wish) -> None:
        file = wish.file
        absent = file.absent(wish.offset, wish.length)
        if absent:
            start, stop = absent[0].start, absent[-1].stop
            await self._filler.fill(file.name, start, stop - start, file)
            if file.absent(wish.offset, wish.length):  # what was written is lost already
                raise StorageError(file.name, "what was fetched is not in the cache")

    def _note(self, wish: Wish, error: LazyimgError) -> None:
        self._counters.failure = str(error)
        more = self._failures.due((wish.file.name, error.kind))
        if more is not None:
            _log.warning(
                "read of %d bytes at %d failed: %s%s", wish.length, wish.offset, error, more
            )
