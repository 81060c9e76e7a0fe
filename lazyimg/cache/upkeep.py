"""What a cache does beside its callers: syncing, removing, and writes for the event loop."""

from __future__ import annotations

import logging
import time
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Final

from lazyimg.errors import StorageError
from lazyimg.host.space import REMEDY
from lazyimg.host.workers import Workers
from lazyimg.logs import Repeats

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lazyimg.cache.device_file import DeviceFile
    from lazyimg.host.space import CacheSpace

WRITE_THREADS: Final = 4
"""How many writes of the event loop go to the disk at a time."""

SYNC_PERIOD: Final = 5.0
"""Seconds until what was written is synced: what a power cut may cost."""

ROOM: Final = 64 << 20
"""Bytes that may be stored, at most, until the disk is asked for its free space again."""

_log = logging.getLogger(__name__)


class Upkeep:
    """Implements `ports.Keeper` with a thread for syncing, and a few for writing.

    Args:
        space: of the cache's directory.
        remove: makes room where space is short; called in the thread now and then.
        drop: lets the kernel forget pages that it has twice; called there every few seconds.
    """

    def __init__(
        self, space: CacheSpace, remove: Callable[[], None], drop: Callable[[], None]
    ) -> None:
        self._space = space
        self._remove = remove
        self._drop = drop
        self._room = 0  # bytes; what threads take at once may be counted wrong
        self._writers = Workers(WRITE_THREADS, "cache-write")
        self._failures = Repeats()
        self._unsynced: set[DeviceFile] = set()
        self._jobs: SimpleQueue[DeviceFile | None] = SimpleQueue()
        self._looking = False
        self._ending = False
        self._thread = Thread(target=self._run, name="cache-sync", daemon=True)
        self._thread.start()

    def admit(self, length: int) -> None:
        """See `Keeper`; raises StorageError."""
        self._room -= length
        if self._room >= 0:
            return
        try:
            room = self._space.room()
            if room < length:
                self.look_for_room()
                raise StorageError("cache", self._space.shortage() or self._refusal(length), REMEDY)
        except OSError as error:
            raise StorageError("cache", f"cannot ask for its space: {error.strerror}") from error
        self._room = min(room // 4, ROOM)

    def _refusal(self, length: int) -> str:
        kept = self._space.limits.bstop
        return f"{self._space.directory} has no room for {length} bytes if {kept} % stay free"

    def note(self, file: DeviceFile, *, whole: bool) -> None:
        """See `Keeper`."""
        self._unsynced.add(file)
        if whole:
            self._jobs.put(file)

    async def write(self, file: DeviceFile, offset: int, parts: Sequence[memoryview]) -> None:
        """See `Keeper`."""
        await self._writers.run(file.write_now, offset, parts)

    def look_for_room(self) -> None:
        """Have `remove` called soon."""
        if not self._looking:
            self._looking = True
            self._jobs.put(None)

    def close(self) -> None:
        """Sync everything and end the threads; nothing may be written any more. Blocks."""
        self._writers.close()
        self._ending = True
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic() + SYNC_PERIOD
        while not self._ending:
            try:
                file = self._jobs.get(timeout=max(0.0, due - time.monotonic()))
            except Empty:
                self._sync_all()
                self._try(self._drop, "its pages cannot be dropped")
                self._make_room()
                due = time.monotonic() + SYNC_PERIOD
                continue
            if file is None:
                self._make_room()
            else:
                self._sync(file)
            del file  # it is closed when nobody else refers to it
        self._sync_all()

    def _sync_all(self) -> None:
        for file in list(self._unsynced):
            self._sync(file)

    def _sync(self, file: DeviceFile) -> None:
        self._unsynced.discard(file)  # first: it may be noted again meanwhile
        try:
            file.sync()
        except StorageError as error:
            self._warn(error)
        except Exception:
            _log.exception("%s: what waited for it to be complete has failed", file.name)

    def _make_room(self) -> None:
        self._looking = False
        self._try(self._remove, "no room can be made")

    def _try(self, call: Callable[[], None], problem: str) -> None:
        try:
            call()
        except OSError as error:
            self._warn(StorageError("cache", f"{problem}: {error.strerror}"))

    def _warn(self, error: StorageError) -> None:
        more = self._failures.due(str(error))
        if more is not None:
            _log.warning("%s%s", error, more)
