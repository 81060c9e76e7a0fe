"""The transport as the rest of the daemon sees it."""

from __future__ import annotations

import asyncio
import logging
import os
import weakref
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

from lazyimg.errors import KernelError, LazyimgError, StorageError
from lazyimg.host.leases import is_open_elsewhere
from lazyimg.host.open_files import raise_open_files
from lazyimg.transports.counters import Counters
from lazyimg.transports.fanotify.device import MAX_FDS, Group, mark_error, open_group
from lazyimg.transports.fanotify.guarding import Guarded, wait_for_guards
from lazyimg.transports.fanotify.journal import Journal
from lazyimg.transports.fanotify.server import Server
from lazyimg.transports.following import NEAR
from lazyimg_formats.device_table import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from lazyimg.cache.device_cache import DeviceCache
    from lazyimg.cache.device_file import DeviceFile
    from lazyimg.transports.ports import Filler, Keeper

JOURNAL: Final = "waiting"
"""The journal's name in the transport's directory."""

_log = logging.getLogger(__name__)


class FanotifyTransport:
    """Serves the devices of `filler` from the files of `cache`.

    Args:
        filler: knows every device.
        cache: loaded; closed by its owner, after `stop`.
        keeper: keeps fds for the next process. With one there is a guard, see the package: a
            process that gives up what is mounted when all who have its fd are gone.
        lost: called in the event loop when the kernel let reads pass: why, and the devices that
            may have been read. Whatever mounts them must go: it may show zeros.
        ahead: bytes ahead of a reader in order that may be filled, see `Following`.
    """

    name: Literal["fanotify"] = "fanotify"

    def __init__(
        self,
        filler: Filler,
        cache: DeviceCache,
        *,
        keeper: Keeper | None = None,
        lost: Callable[[str, frozenset[str]], None] | None = None,
        ahead: int = NEAR,
    ) -> None:
        self._filler = filler
        self._ahead = ahead
        self._cache = cache
        self._keeper = keeper
        self._lost = lost
        self._group: Group | None = None
        self._server: Server | None = None
        self._devices: dict[str, DeviceFile] = {}
        self._marked: dict[str, DeviceFile] = {}
        self._counters = Counters()
        self._sealing: asyncio.Task[None] | None = None
        self._guarded: Guarded | None = None
        self.control_fd = -1
        """While it is started: the group's fd, which another process must hold as well."""

    async def start(
        self, directory: Path, *, control_fd: int | None = None, guard_fd: int | None = None
    ) -> None:
        """Begin to serve.

        Args:
            directory: exists; for the transport's own files.
            control_fd: the group of a process that died; owned from now on. Its readers have
                waited, and are served.
            guard_fd: the fd that its guard watches, with `control_fd`; owned from now on.

        Raises:
            LazyimgError: see `open_group`, `wait_for_guards` and `start_guard`; or the directory
                cannot be used. Nothing is left open.
        """
        if self._server is not None:
            raise RuntimeError("the transport was started already")
        raise_open_files(MAX_FDS)
        if self._keeper is not None and control_fd is None:
            await wait_for_guards(directory)
        group = Group(open_group() if control_fd is None else control_fd)
        guarded = None
        if self._keeper is not None:
            guarded = Guarded(self._keeper, group.fd, self._cache.directory, directory)
        try:
            if guarded is not None:
                await guarded.start(guard_fd)
            journal = _open_journal(directory / JOURNAL, fresh=control_fd is None)
            server = Server(
                group,
                self._filler,
                journal,
                find=self._cache.find_node,
                lose=self._lose,
                ahead=self._ahead,
            )
            if control_fd is not None:
                await asyncio.to_thread(server.take_over)
            server.start()
        except BaseException:
            group.close()
            if guarded is not None:
                await guarded.stop()
            raise
        self._counters = server.counters
        self._group, self._server, self._guarded = group, server, guarded
        self.control_fd = group.fd

    async def stop(self) -> None:
        """Fail what is pending and close the group; mounts that are left give EIO for the rest."""
        server = self._server
        if server is None:
            return
        server.begin_stop()
        if self._sealing is not None:
            await asyncio.wait([self._sealing])
        await asyncio.to_thread(self._seal)
        self._server = self._group = None
        await server.end_stop()
        if self._guarded is not None:
            await self._guarded.stop()
        self._devices.clear()

    @property
    def counters(self) -> Counters:
        """What was done since the start."""
        return self._counters

    async def prepare(self, devices: Mapping[str, int]) -> dict[str, Path]:
        """Make devices ready to be mounted, and give the files to mount them from.

        Args:
            devices: their names, and how many bytes they have.

        Raises:
            StorageError: see `DeviceCache.open`.
            CacheUnsuitableError: the cache's file system has no such events.
            KernelError: a file cannot be marked, or the transport has stopped.
        """
        return {name: await self._prepare(name, size) for name, size in devices.items()}

    async def adopt(self, devices: Mapping[str, int]) -> None:
        """After a takeover: these devices are mounted. Raises as `prepare` does."""
        await self.prepare(devices)

    async def _prepare(self, name: str, size: int) -> Path:
        group, server = self._group, self._server
        if group is None or server is None:
            raise KernelError(name, "is not served: the transport has stopped")
        whole = -(-size // BLOCK_SIZE) * BLOCK_SIZE
        device = await asyncio.to_thread(self._cache.open, name, whole)
        if not device.complete:
            try:
                await asyncio.to_thread(group.mark, device.fd)
            except OSError as error:
                raise mark_error(device.path, error) from error
            await server.own(device)
            if name not in self._marked:
                self._marked[name] = device
                device.on_complete(partial(self._completed, weakref.ref(device)))
        self._devices[name] = device
        self._counters.opens += 1
        return device.path

    def _completed(self, reference: weakref.ref[DeviceFile]) -> None:
        device = reference()
        if device is not None:
            self._unmark(device)

    def _unmark(self, device: DeviceFile) -> None:
        """Let reads of a device raise no events any more. In any thread."""
        group = self._group
        if group is None:
            return
        try:
            group.unmark(device.fd)
        except OSError as error:  # then its readers go on asking
            _log.warning("%s: its mark cannot be removed: %s", device.name, error.strerror)

    async def release(self, names: Iterable[str]) -> None:
        """Take note that no mount of ours has these devices any more.

        What is still open elsewhere, below a mount that was detached while in use, is served on.
        """
        gone = [name for name in names if self._devices.pop(name, None) is not None]
        await asyncio.to_thread(self._forget_unused, gone)

    def _forget_unused(self, gone: list[str]) -> None:
        for name in gone:
            if name not in self._marked:  # it was complete
                self._cache.release(name)
        for name, device in list(self._marked.items()):
            if name in self._devices or _is_open_elsewhere(device):
                continue
            self._unmark(device)
            if self._server is not None:
                self._server.remove(device)
            del self._marked[name]
            self._cache.release(name)

    # Objects, as the rest of the daemon has them.

    def sink(self, cookie: str) -> DeviceFile | None:
        """Give where the bytes of a device go that is mounted, or None."""
        return self._devices.get(cookie)

    async def opened(self, cookie: str) -> DeviceFile:
        """Give the sink of a device of a mount.

        Raises:
            KernelError: it is not mounted, or the transport has stopped.
        """
        device = self._devices.get(cookie)
        if device is None or self._server is None:
            raise KernelError(cookie, "is not mounted, or the transport has stopped")
        return device

    def present(self, cookie: str) -> list[range] | None:
        """Give the ranges, in bytes, that a mounted device has; None if it is not mounted."""
        device = self._devices.get(cookie)
        return None if device is None else device.present()

    def present_on_disk(self, cookie: str) -> list[range] | None:
        """Give the ranges, in bytes, that a device has, mounted or not; None if there is none.

        Call it in a thread. Raises StorageError.
        """
        device = self._cache.find(cookie)
        return None if device is None else device.present()

    def backing_path(self, cookie: str) -> Path | None:
        """Give the file of a device, or None. Call it in a thread. Raises StorageError."""
        device = self._cache.find(cookie)
        return None if device is None else device.path

    def shortage(self) -> StorageError | None:
        """Say why nothing is stored now; None if there is room. Blocks; raises OSError."""
        return self._cache.shortage()

    def is_tight(self) -> bool:
        """Tell whether only what is read should come. Blocks; raises OSError."""
        return self._cache.is_tight()

    # When nobody will answer any more.

    def _lose(self, problem: str) -> None:
        """Seal what may have been read without an answer, and tell whoever mounted it."""
        _log.critical("reads may have given wrong data: %s; mounts are given up", problem)
        if self._sealing is None:
            self._sealing = asyncio.get_running_loop().create_task(self._give_up(problem))

    async def _give_up(self, problem: str) -> None:
        names = frozenset(self._marked)
        await asyncio.to_thread(self._seal)
        if self._lost is not None:
            self._lost(problem, names)

    def _seal(self) -> None:
        """Let reads of incomplete devices give EIO, whoever answers: see the package."""
        for name, device in list(self._marked.items()):
            if device.complete or not _is_open_elsewhere(device):
                continue
            try:
                os.ftruncate(device.fd, 0)
                self._cache.release(name)
                self._cache.remove(name)
            except (OSError, LazyimgError) as error:
                _log.critical("%s: reads may give zeros: %s", name, error)
            else:
                _log.warning("%s: is incomplete and still mounted: it is given up", name)


def _is_open_elsewhere(device: DeviceFile) -> bool:
    try:
        return is_open_elsewhere(device.fd)
    except OSError as error:
        _log.warning("%s: nobody knows whether it is open: %s", device.name, error.strerror)
        return True


def _open_journal(path: Path, *, fresh: bool) -> Journal:
    try:
        if fresh:
            path.unlink(missing_ok=True)
        return Journal(path, MAX_FDS)
    except OSError as error:
        raise StorageError(str(path), f"cannot be made: {error.strerror}") from error
