"""The images of containers, one after the other, are completed; those that lie are quarantined.

The queue is in the records (`queue`), so it outlives the process: what was under way is begun anew.
What fails, because of a registry that is away for instance, rests, and others go on. What leaves
the queue while it is worked on, since its last snapshot was removed, is given up at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final, Protocol

from lazyimg.errors import LazyimgError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lazyimg.images.completion import Counters, Lie
    from lazyimg.snapshotter.queue import Pending
    from lazyimg.snapshotter.records import Records

_log = logging.getLogger(__name__)

FIRST_REST: Final = 60.0
"""Seconds after which an image is tried again that failed; twice as many each further time."""

LONGEST_REST: Final = 3600.0


class Completing(Protocol):
    """What completes an image; see `lazyimg.images.completion.Completer`."""

    counters: Counters
    tight: bool

    async def complete(self, reference: str, platform: str, depth: int) -> Lie | None:
        """Make layers local and check them; gives the one that is not what its image says.

        Raises:
            LazyimgError: it may be tried again.
        """
        ...


class Completion:
    """Works on the queue.

    Args:
        records: have the queue.
        completer: makes an image local, and checks it.
        clock: seconds, never going back.

    Attributes:
        current: what is worked on.
        completer: see above; has counters.
        failures: why images rest, by their references.
    """

    def __init__(
        self,
        records: Records,
        completer: Completing,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.current: Pending | None = None
        self.failures: dict[str, str] = {}
        self._records = records
        self.completer = completer
        self._clock = clock
        self._rests: dict[int, tuple[float, float]] = {}  # by number: until when, and how long
        self._changed = asyncio.Event()

    def look(self) -> None:
        """Look at the queue again: it has changed."""
        self._changed.set()

    async def waiting(self) -> int:
        """Give how many images are in the queue."""
        return len(await asyncio.to_thread(self._records.pending))

    async def run(self) -> None:
        """Work until it is cancelled."""
        while True:
            self._changed.clear()
            try:
                pending = await asyncio.to_thread(self._records.pending)
            except LazyimgError as error:
                _log.error("images are not completed: %s", error)
                await self._wait(FIRST_REST)
                continue
            self._forget_others(pending)
            now = self._clock()
            due = [one for one in pending if self._rests.get(one.number, (now, 0))[0] <= now]
            if due:
                await self._work(due[0])
            else:
                ends = [until for until, _ in self._rests.values()]
                await self._wait(min(ends) - now if ends else None)

    def _forget_others(self, pending: list[Pending]) -> None:
        """Forget what left the queue."""
        numbers = {one.number for one in pending}
        self._rests = {number: rest for number, rest in self._rests.items() if number in numbers}
        names = {one.reference for one in pending}
        self.failures = {name: text for name, text in self.failures.items() if name in names}

    async def _wait(self, seconds: float | None) -> None:
        """Wait for a change, for so many seconds at most."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _work(self, image: Pending) -> None:
        """Complete an image as long as it is in the queue."""
        self.current = image
        task = asyncio.create_task(self._complete(image))
        try:
            while not task.done():
                changed = asyncio.create_task(self._changed.wait())
                await asyncio.wait([task, changed], return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                if self._changed.is_set():
                    self._changed.clear()
                    if not await asyncio.to_thread(self._is_pending, image):
                        return
        finally:
            self.current = None
            task.cancel()
            await asyncio.wait([task])

    def _is_pending(self, image: Pending) -> bool:
        try:
            return image in self._records.pending()
        except LazyimgError as error:
            _log.warning("%s: %s", image.reference, error)
            return True

    async def _complete(self, image: Pending) -> None:
        try:
            lie = await self.completer.complete(image.reference, image.platform, image.depth)
            if lie is None:
                await asyncio.to_thread(self._records.finish, image)
                _log.info("%s is local, and what it says", image.reference)
            else:
                await self._quarantine(image, lie)
        except LazyimgError as error:
            self._rest(image, str(error))
            _log.warning("%s is not completed: %s", image.reference, error)
        except Exception:
            self._rest(image, "an error of its own; the log has the details")
            _log.exception("%s is not completed", image.reference)
        else:
            self.failures.pop(image.reference, None)

    async def _quarantine(self, image: Pending, lie: Lie) -> None:
        chains = await asyncio.to_thread(self._records.quarantine, image, lie.number, lie.problem)
        _log.error(
            "%s is not what it says: %s; nothing new may stand on its chains %s; containers that"
            " run go on; remove its snapshots, and pull again",
            image.reference, lie.problem, ", ".join(chains),
        )  # fmt: skip

    def _rest(self, image: Pending, problem: str) -> None:
        _, last = self._rests.get(image.number, (0.0, FIRST_REST / 2))
        rest = min(2 * last, LONGEST_REST)
        self._rests[image.number] = self._clock() + rest, rest
        self.failures[image.reference] = problem
