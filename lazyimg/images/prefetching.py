"""Prefetch of images: mount them out of sight if need be, and fill what is missing.

The kernel hands out a device's fd only when an image that has it is mounted, so an image is held
mounted while it is filled.
"""

from __future__ import annotations

import asyncio
import fnmatch
import os
import stat
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lazyimg.errors import CorruptError, NotFoundError, StorageError
from lazyimg.fill.prefetch import prefetch, union_blocks
from lazyimg_formats.erofs.reader import Image as ErofsImage
from lazyimg_formats.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from lazyimg.fill.engine import Engine
    from lazyimg.images.catalog import Catalog
    from lazyimg.images.library import ChainRecord
    from lazyimg.images.mounts import Mounts
    from lazyimg.images.service import Image
    from lazyimg.transports.cachefiles.transport import CachefilesTransport


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a prefetch is, in bytes: of devices, and compressed ones that were fetched for it."""

    present: int
    total: int
    fetched: int


class Prefetcher:
    """Makes images local.

    Args:
        root: the daemon's directory.
        mounts: holds them.
        catalog: opens devices.
        engine: fills them.
        transport: has their sinks.
    """

    def __init__(
        self,
        root: Path,
        mounts: Mounts,
        catalog: Catalog,
        engine: Engine,
        transport: CachefilesTransport,
    ) -> None:
        self._root = root
        self._mounts = mounts
        self._catalog = catalog
        self._engine = engine
        self._transport = transport

    async def prefetch(
        self, image: Image, paths: list[str], progress: Callable[[Progress], None]
    ) -> Progress:
        """Make an image local, or the regular files of it that match a glob; gives the end.

        Args:
            image: ready to be mounted.
            paths: globs for absolute paths in the image; none: everything.
            progress: called with each step.

        Raises:
            LazyimgError: the first failure; what was filled stays.
        """
        async with self._mounts.hold(image):
            return await self._fill(image, paths, progress)

    async def _fill(
        self, image: Image, paths: list[str], report: Callable[[Progress], None]
    ) -> Progress:
        wanted = await self._wanted(image, paths)
        tables = {device: await self._catalog.device(device) for device in wanted}
        fetched_before = self._fetched(wanted)
        done = dict.fromkeys(wanted, 0)
        total = sum(len(part) for ranges in wanted.values() for part in ranges)

        def now() -> Progress:
            return Progress(sum(done.values()), total, self._fetched(wanted) - fetched_before)

        for device, ranges in wanted.items():

            def progress(present: int, _: int, device: str = device) -> None:
                done[device] = present
                report(now())

            sink = await self._transport.opened(device)
            present = await asyncio.to_thread(self._transport.present, device)
            await prefetch(
                self._engine,
                tables[device],
                sink,
                partial(list, present or []),
                ranges,
                progress=progress,
            )
        return now()

    def _fetched(self, devices: Iterable[str]) -> int:
        return sum(map(self._engine.fetched, devices))

    async def _wanted(self, image: Image, paths: list[str]) -> dict[str, list[range]]:
        chain = image.chain
        if not paths:
            return {
                layer.device: [range(layer.device_size)]
                for layer in chain.layers
                if layer.device_size
            }
        bootstrap = self._root / "bootstraps" / chain.fsid
        wanted = await asyncio.to_thread(_matching_ranges, bootstrap, chain, paths)
        if wanted is None:
            raise NotFoundError(image.reference, f"no regular file matches {' or '.join(paths)}")
        return wanted


def _matching_ranges(
    bootstrap: Path, chain: ChainRecord, paths: list[str]
) -> dict[str, list[range]] | None:
    """Give the device ranges of the regular files whose absolute path matches one of the globs.

    None when no file matches; files without data have no ranges.
    """
    sizes = {layer.device: layer.device_size for layer in chain.layers}
    patterns = [f"/{path.lstrip('/')}" for path in paths]
    found: dict[str, list[range]] = {}
    matched = False
    try:
        image = ErofsImage(bootstrap.read_bytes())
        for path, inode in image.walk():
            name = f"/{os.fsdecode(path)}"
            if not stat.S_ISREG(inode.mode) or not any(
                fnmatch.fnmatchcase(name, pattern) for pattern in patterns
            ):
                continue
            matched = True
            for extent in image.extents(inode):
                if extent.device:  # 0 is the bootstrap itself
                    device = image.slots[extent.device - 1].tag.decode()
                    ranges = found.setdefault(device, [])
                    ranges.append(range(extent.position, extent.position + extent.length))
    except FormatError as error:
        raise CorruptError(str(bootstrap), str(error)) from error
    except OSError as error:
        raise StorageError(str(bootstrap), f"cannot be read: {error.strerror}") from error
    if not matched:
        return None
    return {device: union_blocks(ranges, sizes[device]) for device, ranges in found.items()}
