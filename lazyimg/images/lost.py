"""Mounts that a process before this one had, and that could not be made again: tried later.

A pause between two rounds of tries, doubled up to `MAX_PAUSE`; and a try whenever somebody wants to
mount on the directory. Unmounting it gives it up.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lazyimg.errors import LazyimgError
from lazyimg.logs import Repeats

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from lazyimg.images.mounted import Mounted

PAUSE: Final = 1.0
"""Seconds before the first round of tries."""

MAX_PAUSE: Final = 60.0
"""Seconds between two rounds, at most."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lost:
    """A mount that is not there, and why."""

    mounted: Mounted
    problem: str


class LostMounts:
    """Makes lost mounts again.

    Args:
        put: makes one; raises LazyimgError.
        locks: of directories; held while one is made.
    """

    def __init__(
        self, put: Callable[[Mounted], Awaitable[None]], locks: Mapping[str, asyncio.Lock]
    ) -> None:
        self._put = put
        self._locks = locks
        self._lost: dict[str, Lost] = {}
        self._task: asyncio.Task[None] | None = None
        self._said = Repeats()

    def list(self) -> list[Lost]:
        """Give all of them."""
        return list(self._lost.values())

    def find(self, directory: str) -> Mounted | None:
        """Give the one of a directory, if there is one."""
        lost = self._lost.get(directory)
        return None if lost is None else lost.mounted

    def add(self, mounted: Mounted, error: LazyimgError) -> None:
        """Make a mount later that cannot be made now."""
        self._lost[mounted.directory] = Lost(mounted, str(error))
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    def give_up(self, directory: str) -> None:
        """Try it no more. The caller has the directory's lock."""
        del self._lost[directory]

    async def make(self, directory: str) -> None:
        """Try it now. The caller has the directory's lock.

        Raises:
            LazyimgError: it is still not possible.
        """
        mounted = self._lost[directory].mounted
        try:
            await self._put(mounted)
        except LazyimgError as error:
            self._lost[directory] = Lost(mounted, str(error))
            more = self._said.due(directory)
            if more is not None:
                name = mounted.image.reference
                _log.warning("%s: %s is not mounted again: %s%s", directory, name, error, more)
            raise
        del self._lost[directory]
        _log.warning("%s: %s is mounted again", directory, mounted.image.reference)

    async def close(self) -> None:
        """Stop trying."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        pause = PAUSE
        while self._lost:
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE)
            for directory in list(self._lost):
                async with self._locks[directory]:
                    if directory in self._lost:
                        await self._try(directory)
        self._task = None

    async def _try(self, directory: str) -> None:
        try:
            await self.make(directory)
        except LazyimgError:
            pass  # said already
        except Exception:
            _log.exception("%s: cannot be mounted again", directory)
