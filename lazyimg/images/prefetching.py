"""Prefetch of images: mount them out of sight if need be, and fill what is missing.

The kernel hands out a device's fd only when an image that has it is mounted, so an image is held
mounted while it is filled. Of a mount that this process took over from one that died, the kernel
hands the fd out again when it misses something: then a byte that is absent is read, by a child.
There, what belongs only to files that upper layers hide is not fetched: nobody can read it.
"""

from __future__ import annotations

import asyncio
import fnmatch
import logging
import os
import stat
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from lazyimg.errors import CorruptError, NotFoundError, StorageError
from lazyimg.fill.budget import Priority
from lazyimg.fill.prefetch import prefetch, subtract, union_blocks
from lazyimg.host.mounts import read_byte
from lazyimg_formats.erofs.reader import Image as ErofsImage
from lazyimg_formats.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from lazyimg.fill.engine import Engine
    from lazyimg.fill.ports import Sink
    from lazyimg.images.catalog import Catalog
    from lazyimg.images.image import Image
    from lazyimg.images.library import ChainRecord
    from lazyimg.images.mounts import Mounts
    from lazyimg.transports.ports import Transport


OPEN_SOON: Final = 3.0
"""Seconds in which the kernel has opened the devices of an image that was just mounted."""

_log = logging.getLogger(__name__)


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
        transport: Transport,
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
        async with self._mounts.held(image) as top:
            wanted = await self._wanted(image, paths)
            return await self._fill(image, top, wanted, progress, Priority.BACKGROUND)

    async def prefetch_first(self, image: Image, most: int) -> None:
        """Make local what whoever made the image says is wanted first.

        Args:
            image: ready to be mounted.
            most: bytes; of the lowest layers first.

        Raises:
            LazyimgError: the first failure; what was filled stays.
        """
        wanted: dict[str, list[range]] = {}
        for layer in image.chain.layers:
            length = min(layer.first, most)
            if length and layer.device not in wanted:
                wanted[layer.device] = [range(length)]
                most -= length
        if wanted:
            async with self._mounts.held(image) as top:
                await self._fill(image, top, wanted, lambda _: None, Priority.TRACED)

    async def _fill(
        self,
        image: Image,
        top: Path,
        wanted: dict[str, list[range]],
        report: Callable[[Progress], None],
        priority: Priority,
    ) -> Progress:
        tables = {device: await self._catalog.device(device) for device in wanted}
        fetched_before = self._fetched(wanted)
        done = dict.fromkeys(wanted, 0)
        totals = {device: sum(map(len, ranges)) for device, ranges in wanted.items()}
        soon = asyncio.get_running_loop().time() + OPEN_SOON

        def now() -> Progress:
            fetched = self._fetched(wanted) - fetched_before
            return Progress(sum(done.values()), sum(totals.values()), fetched)

        for device, ranges in wanted.items():

            def progress(present: int, _: int, device: str = device) -> None:
                done[device] = present
                report(now())

            sink, missing = await self._open(image, top, device, ranges, soon)
            if sink is None:
                totals[device] -= sum(map(len, missing))
                progress(totals[device], 0)
                continue
            present = await asyncio.to_thread(self._transport.present, device)
            await prefetch(
                self._engine,
                tables[device],
                sink,
                partial(list, present or []),
                ranges,
                progress=progress,
                priority=priority,
            )
        return now()

    async def open_device(self, image: Image, top: Path, device: str, size: int) -> Sink | None:
        """Give where a device of a mounted image is written to; None if it lacks nothing.

        Args:
            image: which is mounted.
            top: where.
            device: the device's name.
            size: its bytes.

        Raises:
            LazyimgError: the kernel does not open it.
        """
        soon = asyncio.get_running_loop().time() + OPEN_SOON
        sink, _ = await self._open(image, top, device, [range(size)], soon)
        return sink

    async def _open(
        self, image: Image, top: Path, device: str, ranges: list[range], soon: float
    ) -> tuple[Sink | None, list[range]]:
        """Give the sink of a device; else what is missing of it and cannot be read in the image."""
        sink = await self._opened_by(soon, device)
        if sink is not None:
            return sink, []
        # The process before this one had it open.
        missing = await asyncio.to_thread(self._missing, device, ranges)
        return await self._open_by_read(image, top, device, missing), missing

    async def _opened_by(self, moment: float, device: str) -> Sink | None:
        try:
            async with asyncio.timeout_at(moment):
                return await self._transport.opened(device)
        except TimeoutError:
            return None

    def _missing(self, device: str, ranges: list[range]) -> list[range]:
        """Give what a device that is not open lacks of `ranges`."""
        try:
            local = self._transport.present_on_disk(device)
        except OSError as error:
            raise StorageError(str(error.filename), f"cannot be read: {error.strerror}") from error
        return list(subtract(ranges, local or []))

    async def _open_by_read(
        self, image: Image, top: Path, device: str, missing: list[range]
    ) -> Sink | None:
        """Have the kernel open a device; None if no file of the image holds a missing byte."""
        if not missing:
            return None
        bootstrap = self._root / "bootstraps" / image.chain.fsid
        place = await asyncio.to_thread(_find_file, bootstrap, device, missing)
        if place is None:
            _log.info(
                "%s: what is missing of device %s cannot be read in it", image.reference, device
            )
            return None
        reading = asyncio.create_task(read_byte(top / os.fsdecode(place[0]), place[1]))
        try:
            sink = await self._transport.opened(device)
            await asyncio.wait([reading])
        except BaseException:
            reading.cancel()
            await asyncio.wait([reading])
            raise
        finally:
            if not reading.cancelled() and (error := reading.exception()):
                _log.warning("%s", error)
        return sink

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


def _find_file(bootstrap: Path, device: str, missing: list[range]) -> tuple[bytes, int] | None:
    """Give (path, offset) of a byte that lies in one of the ranges of a device; None if none is."""
    try:
        image = ErofsImage(bootstrap.read_bytes())
        for path, inode in image.walk():
            if not stat.S_ISREG(inode.mode):
                continue
            for extent in image.extents(inode):
                if not extent.device or image.slots[extent.device - 1].tag.decode() != device:
                    continue
                for part in missing:
                    start = max(part.start, extent.position)
                    if start < min(part.stop, extent.position + extent.length):
                        return path, extent.offset + start - extent.position
    except FormatError as error:
        raise CorruptError(str(bootstrap), str(error)) from error
    except OSError as error:
        raise StorageError(str(bootstrap), f"cannot be read: {error.strerror}") from error
    return None


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
