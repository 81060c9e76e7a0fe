"""Indexes that a first use has made are pushed to the image's repository, in the background.

That they cannot be, since whoever mounts an image seldom may write to its repository, is said in
the log, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

from lazyimg.errors import LazyimgError
from lazyimg.images.readers import repository_of
from lazyimg_formats.oci.reference import RegistryLocation, parse_location

if TYPE_CHECKING:
    from lazyimg.images.image import Image
    from lazyimg.registry.ports import Access

_log = logging.getLogger(__name__)


class Pushes(Protocol):
    """What pushes the indexes of an image; see `lazyimg.images.publishing.Publisher`."""

    async def push(self, text: str, platform_text: str, access: Access) -> object:
        """Push the indexes that this node has of an image's layers; raises LazyimgError."""
        ...


class Sharing:
    """Pushes, one image after the other.

    Args:
        publisher: does it.
    """

    def __init__(self, publisher: Pushes) -> None:
        self._publisher = publisher
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, image: Image, access: Access) -> None:
        """Push the indexes of an image's layers soon, if it is in a registry.

        Args:
            image: whose first use has made some.
            access: how to reach its registry.
        """
        location = parse_location(image.reference)
        if not isinstance(location, RegistryLocation):
            return
        reference = f"{repository_of(location)}@{image.digest}"
        task = asyncio.create_task(self._push(reference, image.platform, access))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _push(self, reference: str, platform: str, access: Access) -> None:
        async with self._turn:
            try:
                await self._publisher.push(reference, platform, access)
            except LazyimgError as error:
                _log.warning("%s: its indexes were not pushed: %s", reference, error)
            else:
                _log.info("%s: its indexes were pushed", reference)

    async def close(self) -> None:
        """Give up what was not pushed yet."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
