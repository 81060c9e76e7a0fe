"""The transport as the rest of the daemon sees it."""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Literal

from lazyimg.errors import KernelError
from lazyimg.host.open_files import raise_open_files
from lazyimg.transports.counters import Counters
from lazyimg.transports.following import NEAR
from lazyimg.transports.fuse.device import (
    Device,
    ask_again,
    mount_tree,
    open_device,
    unmount_tree,
)
from lazyimg.transports.fuse.protocol import Protocol
from lazyimg.transports.fuse.server import Server
from lazyimg.transports.fuse.taken import NAME, Taken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from lazyimg.cache.device_cache import DeviceCache
    from lazyimg.cache.device_file import DeviceFile
    from lazyimg.errors import StorageError
    from lazyimg.transports.ports import Filler, Keeper

START_DEADLINE: Final = 30.0
"""Seconds that the kernel may take for its first request."""

PATIENCE: Final = 10
"""How many times the deadline of a read the kernel waits until it gives the connection up: when
both processes of the daemon are stuck, nobody else would free those who wait."""

_LEAST_PATIENCE: Final = 600  # seconds
_MOST_PATIENCE: Final = 65_535  # seconds


class FuseTransport:
    """Serves devices as files of a FUSE tree, for EROFS to be mounted from.

    Args:
        filler: knows every device.
        cache: has their bytes; loaded.
        read_deadline: seconds within which a fill ends; None: it does not.
        passthrough: give a complete device as a file of the tree, which the kernel reads by itself,
            not as the plain file.
        max_stack_depth: with passthrough: 2 if the cache lies on a stacked file system.
        ahead: bytes ahead of a reader in order that may be filled, see `Following`.
        lost: called in the event loop when the kernel has ended the connection, as an administrator
            can have it do: what is mounted over it is dead.
        keeper: keeps what was taken from the kernel, for the next process.
    """

    name: Literal["fuse"] = "fuse"

    def __init__(
        self,
        filler: Filler,
        cache: DeviceCache,
        *,
        read_deadline: float | None = None,
        passthrough: bool = False,
        max_stack_depth: int = 1,
        ahead: int = NEAR,
        lost: Callable[[], None] | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        self._keeper = keeper
        self._filler = filler
        self._ahead = ahead
        self._cache = cache
        self._patience = 0
        if read_deadline is not None:
            patience = max(int(PATIENCE * read_deadline), _LEAST_PATIENCE)
            self._patience = min(patience, _MOST_PATIENCE)
        self._passthrough = passthrough
        self._stack_depth = max_stack_depth
        self._lost = lost
        self._server: Server | None = None
        self._directory: Path | None = None
        self._files: dict[str, DeviceFile] = {}
        self._adopted: set[str] = set()
        self.counters = Counters()
        """What was done since the start."""
        self.control_fd = -1
        """While it is started: what another process needs to take over, see `start`."""

    async def start(
        self, directory: Path, *, control_fd: int | None = None, taken_fd: int | None = None
    ) -> None:
        """Mount the tree and begin to serve.

        Args:
            directory: where; exists, absolute. What is left there of a process that died without
                leaving its fd to anybody is aborted and detached.
            control_fd: the connection of the tree that is mounted there, kept from a process that
                died; owned from now on. Its readers have waited, and are served.
            taken_fd: what it had taken, with `control_fd`; owned from now on.

        Raises:
            KernelError: the connection has ended, or nobody knows what was taken from it: what
                was mounted over it is dead, or has to be.
            LazyimgError: see `open_device`, `mount_tree`, `ask_again`. Nothing is left open.
        """
        if self._server is not None:
            raise RuntimeError("the transport was started already")
        raise_open_files()
        device = Device(open_device() if control_fd is None else control_fd)
        taken: Taken | None = None
        server: Server | None = None
        try:
            if control_fd is None:
                taken = self._keep_taken()
                await asyncio.to_thread(_mount, device, directory)
                server = self._serve(device, taken)
                await _wait_for_kernel(server, directory)
            else:
                taken, again = self._take_over(device, taken_fd)
                server = self._serve(device, taken, again=again)
        except BaseException:
            if server is None:
                device.close()
                if taken is not None:
                    taken.close()
            else:
                await self._stop(server, directory)
            raise
        self._directory = directory
        self._server = server
        self.control_fd = device.fd

    def _take_over(self, device: Device, taken_fd: int | None) -> tuple[Taken, bool]:
        """Give where to take requests to, and whether what is there has to be answered."""
        with ExitStack() as stack:
            if taken_fd is not None:
                stack.callback(os.close, taken_fd)
            if ask_again(device):
                return self._keep_taken(), False
            if taken_fd is None:
                raise KernelError("fuse", "nobody knows what was asked of the process that died")
            stack.pop_all()
            return Taken(taken_fd), True

    def _keep_taken(self) -> Taken:
        taken = Taken()
        if self._keeper is not None:
            self._keeper.forget(NAME)
            self._keeper.keep(NAME, taken.fd)
        return taken

    def _serve(self, device: Device, taken: Taken, *, again: bool = False) -> Server:
        protocol = Protocol(
            passthrough=self._passthrough,
            max_stack_depth=self._stack_depth,
            request_timeout=self._patience,
        )
        server = Server(
            device,
            protocol,
            self._cache.find_node,
            filler=self._filler,
            counters=self.counters,
            taken=taken,
            ahead=self._ahead,
            lost=self._note_lost,
        )
        server.start(again=again)
        return server

    def _note_lost(self) -> None:
        if self._server is not None and self._lost is not None:
            self._lost()

    async def stop(self) -> None:
        """Fail what is pending, unmount the tree, give the device back.

        Mounts of EROFS that are left only give EIO.
        """
        server, self._server = self._server, None
        if server is not None and self._directory is not None:
            self.control_fd = -1
            await self._stop(server, self._directory)
            if self._keeper is not None:
                self._keeper.forget(NAME)
            self._files.clear()
            self._adopted.clear()

    @staticmethod
    async def _stop(server: Server, directory: Path) -> None:
        server.begin_stop()
        try:
            await asyncio.to_thread(unmount_tree, directory)
        finally:
            await server.end_stop()

    async def prepare(self, devices: Mapping[str, int]) -> dict[str, Path]:
        """Get devices ready to be mounted; gives where EROFS shall find each.

        Args:
            devices: name and size in bytes.

        Raises:
            StorageError: the cache cannot be used.
            KernelError: the transport has stopped.
        """
        server, directory = self._server, self._directory
        if server is None or directory is None:
            raise KernelError("fuse", "nothing can be mounted: the transport has stopped")
        found: dict[str, Path] = {}
        for name, file in (await asyncio.to_thread(self._open, devices)).items():
            self._files[name] = file
            if file.complete and not self._passthrough:
                found[name] = file.path
            else:
                server.add(file, backed=file.complete and name not in self._adopted)
                found[name] = directory / name
        return found

    def _open(self, devices: Mapping[str, int]) -> dict[str, DeviceFile]:
        files = {name: self._cache.open(name, size) for name, size in devices.items()}
        for file in files.values():
            if not file.complete and not file.absent(0, file.size):
                file.sync()
        return files

    async def adopt(self, devices: Mapping[str, int]) -> None:
        """Take note of devices that are mounted, since before this process.

        Args:
            devices: name and size in bytes.

        Raises:
            StorageError: the cache cannot be used.
            KernelError: the transport has stopped.
        """
        if self._server is None:
            raise KernelError("fuse", "nothing can be adopted: the transport has stopped")
        for name, file in (await asyncio.to_thread(self._open, devices)).items():
            self._adopted.add(name)  # if the kernel has its file, it was another one's to give
            self._files[name] = file
            self._server.add(file)

    async def release(self, names: Iterable[str]) -> None:
        """Take note of devices that no mount has any more."""
        gone = [name for name in names if name in self._files]
        for name in gone:
            file = self._files.pop(name)
            self._adopted.discard(name)
            if self._server is not None:
                self._server.remove(file)
        await asyncio.to_thread(self._release, gone)

    def _release(self, names: Iterable[str]) -> None:
        for name in names:
            self._cache.release(name)

    # What the daemon asks of any transport.

    def sink(self, cookie: str) -> DeviceFile | None:
        """Give the sink of a device that is prepared or adopted, or None."""
        return self._files.get(cookie)

    async def opened(self, cookie: str) -> DeviceFile:
        """Give the sink of a device that is prepared or adopted.

        Raises:
            KernelError: it is not.
        """
        file = self._files.get(cookie)
        if file is None:
            raise KernelError(cookie, "is not served: no mount has it")
        return file

    def present(self, cookie: str) -> list[range] | None:
        """Give the ranges, in bytes, that a prepared or adopted device has; None if it is none."""
        file = self._files.get(cookie)
        return None if file is None else file.present()

    def present_on_disk(self, cookie: str) -> list[range] | None:
        """Give the ranges, in bytes, that a device has; None if there is none. Blocks.

        Raises:
            StorageError: the disk fails.
        """
        file = self._cache.find(cookie)
        return None if file is None else file.present()

    def backing_path(self, cookie: str) -> Path | None:
        """Give the file of a device that is in the cache, or None. Blocks.

        Raises:
            StorageError: the disk fails.
        """
        file = self._cache.find(cookie)
        return None if file is None else file.path

    def shortage(self) -> StorageError | None:
        """Say why nothing is stored now; None if there is room. Blocks; raises OSError."""
        return self._cache.shortage()

    def is_tight(self) -> bool:
        """Tell whether only what is read should be stored. Blocks; raises OSError."""
        return self._cache.is_tight()


def _mount(device: Device, directory: Path) -> None:
    unmount_tree(directory)
    mount_tree(device.fd, directory)


async def _wait_for_kernel(server: Server, directory: Path) -> None:
    try:
        async with asyncio.timeout(START_DEADLINE):
            started = await server.started
    except TimeoutError:
        started = False
    if not started:
        raise KernelError(str(directory), "the kernel does not take the tree into use")
