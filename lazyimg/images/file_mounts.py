"""Mounts from plain files: the bootstrap itself, and a file for each of its devices.

The transport says which file the kernel is to open for a device: the one in the cache, or one in a
tree of its own. Each mount is a file system of its own, so what is dead or hidden and in use is in
nobody's way; it has its devices open, and the transport must be able to serve them, or fail them,
also when it was told that no mount has them any more.
"""

from __future__ import annotations

import asyncio
import logging
from itertools import chain as chained
from typing import TYPE_CHECKING, Protocol

from lazyimg.errors import LazyimgError
from lazyimg.host import mounts as host
from lazyimg.images.bootstrap import read_devices, verify_bootstrap

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from lazyimg.images.library import ChainRecord

_log = logging.getLogger(__name__)


class Devices(Protocol):
    """What is needed of a transport."""

    async def prepare(self, devices: Mapping[str, int]) -> dict[str, Path]:
        """Give the file to mount for each device (name: bytes); from now on it is served.

        Raises LazyimgError.
        """
        ...

    async def adopt(self, devices: Mapping[str, int]) -> None:
        """Take note of devices that are mounted already. Raises LazyimgError."""
        ...

    async def release(self, names: Iterable[str]) -> None:
        """Take note of devices that no mount of ours has any more. Raises LazyimgError."""
        ...


class FileMounts:
    """Mounts images from files; see `lazyimg.images.ports.Way`.

    Args:
        root: the daemon's directory; has bootstraps/.
        devices: the transport.
    """

    by_hand = None

    def __init__(self, root: Path, devices: Devices) -> None:
        self._bootstraps = root / "bootstraps"
        self._devices = devices
        self._used: dict[str, dict[str, int]] = {}  # of each fsid: (name: bytes) of its devices
        self._lock = asyncio.Lock()  # what is prepared for one image is not released for another

    async def begin(self) -> None:
        """Begin with nothing mounted."""

    async def adopt(self, fsids: Collection[str]) -> None:
        """Begin with images that the process before this one has mounted."""
        for fsid in sorted(fsids):
            try:
                found = await asyncio.to_thread(read_devices, self._bootstraps / fsid)
                self._used[fsid] = dict(found)
                await self._devices.adopt(self._used[fsid])
            except LazyimgError as error:
                _log.error("%s: mounted, and what was not read of it may fail: %s", fsid, error)

    async def mount(self, chain: ChainRecord, path: Path) -> None:
        """Mount an image on an empty directory.

        Raises:
            LazyimgError: the bootstrap is not what it should be, a device has no room, or the
                kernel refuses.
        """
        bootstrap = self._bootstraps / chain.fsid
        await asyncio.to_thread(verify_bootstrap, bootstrap)
        devices = await asyncio.to_thread(read_devices, bootstrap)
        async with self._lock:
            self._used[chain.fsid] = dict(devices)
            files = await self._devices.prepare(self._used[chain.fsid])
        await host.mount_erofs_files(bootstrap, [files[name] for name, _ in devices], path)

    async def unmounted(self, fsid: str) -> None:
        """Give back the devices that no other image has."""
        async with self._lock:
            mine = self._used.pop(fsid, {})
            gone = mine.keys() - set(chained.from_iterable(self._used.values()))
            try:
                await self._devices.release(sorted(gone))
            except LazyimgError as error:
                _log.warning("%s", error)

    async def dead(self) -> tuple[str, ...]:
        """Give nothing: a dead mount that somebody is in is in nobody's way."""
        return ()
