"""What whoever made an image says is wanted first is fetched when the image is mounted.

It is a hint: nothing waits for it, readers go first, a failure is only noted, and no more than the
configuration allows is fetched. It ends when nobody uses the image any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING

from lazyimg.errors import LazyimgError

if TYPE_CHECKING:
    from lazyimg.images.image import Image
    from lazyimg.images.prefetching import Prefetcher

_log = logging.getLogger(__name__)


class Hints:
    """Follows them.

    Args:
        prefetcher: makes ranges local.
        most: bytes of devices for each image; 0: nothing.
    """

    def __init__(self, prefetcher: Prefetcher, most: int) -> None:
        self._prefetcher = prefetcher
        self._most = most
        self._users: Counter[str] = Counter()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def begin(self, image: Image) -> None:
        """Note that an image is used by one more; begins to fetch what it wants first."""
        fsid = image.chain.fsid
        self._users[fsid] += 1
        wanted = self._most and any(layer.first for layer in image.chain.layers)
        if not wanted or self._users[fsid] > 1 or fsid in self._tasks:
            return
        task = asyncio.create_task(self._follow(image))
        self._tasks[fsid] = task
        task.add_done_callback(lambda _: self._tasks.pop(fsid, None))

    def end(self, image: Image) -> None:
        """Note that an image is used by one less."""
        fsid = image.chain.fsid
        self._users[fsid] -= 1
        if self._users[fsid] > 0:
            return
        del self._users[fsid]  # one that a process before this one mounted was not counted
        if task := self._tasks.get(fsid):
            task.cancel()

    async def close(self) -> None:
        """Give up what is being fetched."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, image: Image) -> None:
        try:
            await self._prefetcher.prefetch_first(image, self._most)
        except LazyimgError as error:
            _log.info("%s: what it wants first is not fetched: %s", image.reference, error)
        except Exception:
            _log.exception("%s: what it wants first is not fetched", image.reference)
