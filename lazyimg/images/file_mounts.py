"""Mounts from plain files: the bootstrap itself, and a file for each of its devices.

The transport says which file the kernel is to open for a device: the one in the cache, or one in a
tree of its own. Each mount is a file system of its own, so what is dead or hidden and in use is in
nobody's way; it has its devices open, and the transport must be able to serve them, or fail them,
also when it was told that no mount has them any more.

Where they are mounted by loop devices, one that becomes complete while it is mounted is switched
from the transport's file to the cache's: from then on no process is in its path.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial
from itertools import chain as chained
from typing import TYPE_CHECKING, Protocol

from lazyimg.errors import LazyimgError
from lazyimg.host.endings import Endings
from lazyimg.host.loops import FileMounter, exchange_file
from lazyimg.images.bootstrap import read_devices, verify_bootstrap

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from pathlib import Path

    from lazyimg.images.library import ChainRecord

_log = logging.getLogger(__name__)


class CacheFile(Protocol):
    """A device in the cache."""

    @property
    def path(self) -> Path:
        """Its file."""
        ...

    def on_complete(self, call: Callable[[], None]) -> None:
        """Have this called once, in any thread, when it is complete; at once if it is."""
        ...


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

    def sink(self, cookie: str) -> CacheFile | None:
        """Give the cache's file of a device that is prepared or adopted, or None."""
        ...


class FileMounts:
    """Mounts images from files; see `lazyimg.images.ports.Way`.

    Args:
        root: the daemon's directory; has bootstraps/.
        devices: the transport.
        how: see `FileMounter`.
        tree: the transport's directory of files which loop devices are to be switched from; None:
            they stay.
    """

    by_hand = None

    def __init__(
        self, root: Path, devices: Devices, how: str = "file", *, tree: Path | None = None
    ) -> None:
        self._bootstraps = root / "bootstraps"
        self._devices = devices
        self._mounter = FileMounter(how, root / "loops")
        self._tree = tree
        self._awaited: set[str] = set()  # devices that are to be switched once they are complete
        self._switching: set[asyncio.Task[None]] = set()
        self._used: dict[str, dict[str, int]] = {}  # of each fsid: (name: bytes) of its devices
        self._endings: Endings | None = None
        self._dead: dict[int, str] = {}  # fsids, by the numbers of watches
        self._lock = asyncio.Lock()  # what is prepared for one image is not released for another

    async def begin(self) -> None:
        """Begin with nothing mounted."""

    async def leave(self, fsid: str, path: Path) -> None:
        """Watch a dead mount for its end. Nothing of it is read."""
        try:
            if self._endings is None:
                self._endings = Endings()
            self._dead[self._endings.watch(str(path))] = fsid
        except OSError as error:
            _log.warning("%s: who is in it is not known: %s", path, error.strerror)

    async def adopt(self, fsids: Collection[str]) -> None:
        """Begin with images that the process before this one has mounted."""
        for fsid in sorted(fsids):
            try:
                found = await asyncio.to_thread(read_devices, self._bootstraps / fsid)
                self._used[fsid] = dict(found)
                await self._devices.adopt(self._used[fsid])
                self._await_complete(self._used[fsid])
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
        await self._mounter.mount(bootstrap, [files[name] for name, _ in devices], path)
        self._await_complete(name for name, file in files.items() if file.parent == self._tree)

    async def unmounted(self, fsid: str) -> None:
        """Give back the devices that no other image has."""
        async with self._lock:
            mine = self._used.pop(fsid, {})
            gone = mine.keys() - set(chained.from_iterable(self._used.values()))
            self._awaited -= gone
            try:
                await self._devices.release(sorted(gone))
            except LazyimgError as error:
                _log.warning("%s", error)

    def _await_complete(self, names: Iterable[str]) -> None:
        """Switch the loop devices of mounted devices, if there are any, once these are complete."""
        if self._tree is None:
            return
        loop = asyncio.get_running_loop()
        for name in names:
            file = self._devices.sink(name)
            if file is not None and name not in self._awaited:
                self._awaited.add(name)
                switch = partial(self._begin_switch, name, file.path)
                file.on_complete(partial(_tell, loop, switch))

    def _begin_switch(self, name: str, path: Path) -> None:
        self._awaited.discard(name)  # a mount from now on has to ask again
        task = asyncio.create_task(self._switch(name, path))
        self._switching.add(task)
        task.add_done_callback(self._switching.discard)

    async def _switch(self, name: str, path: Path) -> None:
        assert self._tree is not None  # noqa: S101 - for the type checker
        try:
            count = await exchange_file(self._tree / name, path)
        except LazyimgError as error:
            _log.warning("%s: is complete, and asked for on: %s", name, error)
        else:
            if count:
                _log.info("%s: complete; %d loop devices read the cache's file now", name, count)

    async def dead(self) -> tuple[str, ...]:
        """Give the fsids of dead mounts that this process detached, and somebody is in."""
        if self._endings is not None:
            for number in self._endings.ended():
                self._dead.pop(number, None)
        return tuple(self._dead.values())


def _tell(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # it is closed
        loop.call_soon_threadsafe(call)
