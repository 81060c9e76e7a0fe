"""What our own cache holds of devices: how much, whether it is right, and its repair."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from lazyimg.cache.check import DeviceCheck
from lazyimg.errors import LazyimgError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lazyimg.cache.device_cache import DeviceCache
    from lazyimg.cache.device_file import DeviceFile
    from lazyimg.fill.ports import Sink
    from lazyimg.images.library import SourceRecord
    from lazyimg_formats.device_table import DeviceTable

_PIECE: Final = 4 << 20
"""Bytes that a repair fills at once."""

_log = logging.getLogger(__name__)


class Tables(Protocol):
    """What knows the devices: the catalog."""

    def load_table(self, name: str, file: str) -> DeviceTable:
        """Give the table of a device that is in a file. Blocks; raises LazyimgError."""
        ...

    async def fill(self, cookie: str, offset: int, length: int, sink: Sink) -> None:
        """Write a range of a device, whole blocks, to `sink`; raises LazyimgError."""
        ...


class Sources(Protocol):
    """What knows where devices come from: the library."""

    def sources(self, device: str) -> list[SourceRecord]:
        """Give the sources of a device; each names a table's file. Blocks."""
        ...


@dataclass(frozen=True, slots=True)
class CachedDevice:
    """A device in the cache: its bytes, those of them that are present, whether it is in use."""

    name: str
    size: int
    present: int
    used: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check has found in a device, in bytes.

    Attributes:
        checked: right.
        unchecked: present, but without the rest of their span nothing can be said of them.
        wrong: in blocks that are not what the image says, or cannot be read.
        repaired: of these; they were fetched again, or will be when they are read.
        problem: why not all was checked or repaired; may be empty.
    """

    checked: int
    unchecked: int
    wrong: int
    repaired: int = 0
    problem: str = ""


class CachedDevices:
    """Looks after the cache of a transport.

    Args:
        cache: the devices.
        tables: says what they should be, and fetches it.
        sources: says where the tables are.
    """

    def __init__(self, cache: DeviceCache, tables: Tables, sources: Sources) -> None:
        self._cache = cache
        self._tables = tables
        self._sources = sources

    async def describe(self) -> list[CachedDevice]:
        """Give all devices, by name.

        Raises:
            StorageError: the disk fails.
        """
        return await asyncio.to_thread(self._describe)

    def _describe(self) -> list[CachedDevice]:
        found = []
        for name in self._cache.names():
            file = self._cache.find(name)
            if file is not None:  # it was there just now
                present = sum(map(len, file.present()))
                found.append(CachedDevice(name, file.size, present, self._cache.is_used(name)))
        return found

    async def check(self, name: str, *, repair: bool) -> Verdict:
        """Compare what is present of a device with what its image says.

        Args:
            name: the device's.
            repair: have what is wrong fetched again: now, where the device is mounted and complete,
                so that nobody would ask for it; else when it is read.

        Raises:
            NotFoundError: it is not in the cache.
            StorageError: the disk fails.
        """
        file = await asyncio.to_thread(self._cache.find, name)
        if file is None:
            raise NotFoundError(f"device {name}", "is not in the cache")
        table = await asyncio.to_thread(self._find_table, name)
        if table is None or table.size != file.size:
            present = sum(map(len, file.present()))
            return Verdict(0, present, 0, problem="no image that is known here has it")
        check = DeviceCheck(file, table)
        while await asyncio.to_thread(check.step):
            pass
        wrong = sum(map(len, check.wrong))
        if wrong:
            _log.error("%d bytes of device %s in the cache are wrong", wrong, name)
        repaired, problem = 0, ""
        if wrong and repair:
            repaired, problem = await self._repair(file, check.wrong)
        return Verdict(check.checked, check.unchecked, wrong, repaired, problem)

    def _find_table(self, name: str) -> DeviceTable | None:
        for source in self._sources.sources(name):
            try:
                return self._tables.load_table(name, source.table)
            except LazyimgError as error:  # another one may do
                _log.warning("%s", error)
        return None

    async def _repair(self, file: DeviceFile, wrong: Sequence[range]) -> tuple[int, str]:
        """Give how many bytes were repaired, and why not all were."""
        if await asyncio.to_thread(self._cache.discard, file.name, wrong):
            return sum(map(len, wrong)), ""
        repaired = 0
        try:
            for run in wrong:
                for start in range(run.start, run.stop, _PIECE):
                    length = min(_PIECE, run.stop - start)
                    await self._tables.fill(file.name, start, length, file)
                    repaired += length
            await asyncio.to_thread(file.sync)
        except LazyimgError as error:
            return repaired, f"it is mounted, and is not fetched: {error}"
        return repaired, ""
