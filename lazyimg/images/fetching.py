"""The indexes of an image's layers are brought to this node, without filling its memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar

from lazyimg.errors import CorruptError, NotFoundError
from lazyimg.layers.fetch import fetch_index, find_index
from lazyimg.limits import MIB

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence
    from pathlib import Path

    from lazyimg.layers.locate import IndexLocation
    from lazyimg.registry.ports import ImageSource
    from lazyimg_formats.oci.documents import Descriptor

T = TypeVar("T")

INDEX_MEMORY: Final = 32 * MIB
"""Bytes of layers' indexes that are fetched at the same time; one that is larger comes alone."""

MAX_INDEXES: Final = 512 * MIB
"""Bytes of all indexes of an image: they are kept on the disk, and decoded to build it."""


class MissingIndexError(NotFoundError):
    """An index is not where it was said to be; `loose` as in its `IndexLocation`."""

    def __init__(self, error: NotFoundError, *, loose: bool) -> None:
        super().__init__(error.what, error.problem, error.remedy)
        self.loose = loose


class IndexFetcher:
    """Fetches indexes when there is room for them in memory.

    Args:
        directory: where they are kept, by name.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fetching = 0  # bytes that are on their way
        self._fetched = asyncio.Condition()

    async def complete(
        self,
        what: str,
        source: ImageSource,
        layers: Sequence[Descriptor],
        locations: Sequence[IndexLocation],
    ) -> list[IndexLocation]:
        """Give where indexes are, in full; see `lazyimg.layers.fetch.find_index`.

        Args:
            what: what an error calls the image.
            source: its repository.
            layers: those that the indexes are of.
            locations: what the image says of where they are.

        Raises:
            CorruptError: a blob does not say where its index is; all are too large.
            LazyimgError: as `find_index`.
        """
        found = await _gather(
            find_index(source, layer, location)
            for layer, location in zip(layers, locations, strict=True)
        )
        total = sum({location.digest: location.length for location in found}.values())
        if total > MAX_INDEXES:
            raise CorruptError(
                what, f"its indexes have {total} bytes, at most {MAX_INDEXES} allowed"
            )
        return found

    async def fetch(
        self,
        source: ImageSource,
        layers: Sequence[Descriptor],
        locations: Sequence[IndexLocation],
    ) -> list[Path]:
        """Give the files that hold indexes; see `lazyimg.layers.fetch.fetch_index`.

        Args and Raises: as `complete`, the locations in full; and
            MissingIndexError: one is not where it was said to be.
        """
        return await _gather(
            self._fetch_one(source, layer, location)
            for layer, location in zip(layers, locations, strict=True)
        )

    async def _fetch_one(
        self, source: ImageSource, layer: Descriptor, location: IndexLocation
    ) -> Path:
        size = location.length
        async with self._fetched:
            await self._fetched.wait_for(
                lambda: not self._fetching or self._fetching + size <= INDEX_MEMORY
            )
            self._fetching += size
        try:
            return await fetch_index(source, layer, location, self._directory)
        except NotFoundError as error:
            if location.artifact:
                raise MissingIndexError(error, loose=location.loose) from error
            raise
        finally:
            async with self._fetched:
                self._fetching -= size
                self._fetched.notify_all()


async def _gather(calls: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """Give what all of them give; the first failure ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures
    return [task.result() for task in tasks]
