"""Images that were pulled are made ready before their first container, one after the other.

A container's Prepare has to wait for its image's bootstrap if nobody has made it yet: for the child
that merges the indexes of its layers, and for the first mount. Between a pull and the first
container there is time for that, and the credentials of the pull are there.

Nothing depends on it: what fails, or was not done when the process died, is done by the Prepare as
ever; both make a bootstrap only once (`lazyimg.images.service`). Each process begins with what was
pulled before and is not ready; where that needs a registry that refuses now, it is left.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

from lazyimg.errors import LazyimgError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lazyimg.snapshotter.lifecycle import RemoteLayer

_log = logging.getLogger(__name__)


class Readying(Protocol):
    """What makes layers ready; see `lazyimg.snapshotter.remote.RemoteLayers`."""

    async def make_ready(self, layer: RemoteLayer) -> None:
        """Have what is needed to mount layers; quick if it is there.

        Raises:
            LazyimgError: it cannot be had.
        """
        ...


class Beforehand:
    """Makes images ready.

    Args:
        images: do it.
        pulled: gives the uppermost lazily loaded layer of each image that is there.
    """

    def __init__(self, images: Readying, pulled: Callable[[], Sequence[RemoteLayer]]) -> None:
        self._images = images
        self._pulled = pulled
        self._queue: asyncio.Queue[RemoteLayer] = asyncio.Queue()

    def add(self, layer: RemoteLayer) -> None:
        """Make an image ready when those before it are; the layer is its uppermost lazy one."""
        self._queue.put_nowait(layer)

    async def run(self) -> None:
        """Work until it is cancelled."""
        try:
            for layer in await asyncio.to_thread(self._pulled):
                self.add(layer)
        except LazyimgError as error:
            _log.error("images are not made ready beforehand: %s", error)
        while True:
            layer = await self._queue.get()
            try:
                await self._images.make_ready(layer)
            except LazyimgError as error:
                _log.info("%s: is not ready before its first container: %s", layer.reference, error)
