"""The transport as the rest of the daemon sees it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Literal

from lazyimg.errors import KernelError, StorageError
from lazyimg.host.open_files import raise_open_files
from lazyimg.host.space import REMEDY, CacheLimits, CacheSpace, find_top
from lazyimg.transports.cachefiles.backing import (
    find_backing_file,
    find_linked,
    find_strays,
    move_strays,
    other_domains,
    present_on_disk,
)
from lazyimg.transports.cachefiles.device import Device, bind_cache, open_device, restore_cache
from lazyimg.transports.cachefiles.object_file import when_ready
from lazyimg.transports.cachefiles.server import Server
from lazyimg.transports.cachefiles.staging import StagedDevices
from lazyimg.transports.counters import Counters

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from lazyimg.transports.cachefiles.sink import ObjectSink
    from lazyimg.transports.ports import Filler

TAG: Final = "lazyimg"
"""What the cache is called in the kernel (/proc/fs/fscache/caches)."""

OPEN_DEADLINE: Final = 30.0
"""Seconds that the kernel may take to open an object of an image that is mounted."""


class CachefilesTransport:
    """Serves the objects of `filler` through /dev/cachefiles; see `lazyimg.transports.ports`.

    Args:
        filler: knows every object.
        domain_id: the first of the EROFS domains that `sink`, `present` and `backing_path` are
            about, see `use_domain`; objects of any other mount are served just as well.
    """

    name: Literal["cachefiles"] = "cachefiles"

    def __init__(self, filler: Filler, *, domain_id: str) -> None:
        self._filler = filler
        self._first_domain = domain_id
        self.use_domain(domain_id)
        self._server: Server | None = None
        self._space: CacheSpace | None = None
        self._counters = Counters()
        self.staged: StagedDevices | None = None
        """Once it was started: devices on their way into the cache."""
        self.control_fd = -1
        """While it is started: what another process needs to take over, see `start`."""

    def use_domain(self, domain_id: str) -> None:
        """Be about the objects of a domain, from now on."""
        self._domain_id = domain_id
        self._volume = f"erofs,{domain_id}"

    async def start(
        self,
        directory: Path,
        *,
        tag: str = TAG,
        limits: CacheLimits | None = None,
        control_fd: int | None = None,
    ) -> None:
        """Bind the cache in `directory` and begin to serve.

        Args:
            directory: exists, absolute, on ext4 or xfs; the kernel makes `cache` in it.
            tag: names the cache; one word.
            limits: when to cull and when to stop; the kernel's defaults if None.
            control_fd: a control fd that is bound to `directory` already, by a process that died;
                owned from now on. Its readers have waited, and are served.

        Raises:
            LazyimgError: see `open_device`, `bind_cache`, `restore_cache`. Nothing is left open.
        """
        if self._server is not None:
            raise RuntimeError("the transport was started already")
        limits = limits or CacheLimits()
        raise_open_files()
        device = Device(open_device() if control_fd is None else control_fd)
        try:
            if control_fd is None:
                bind_cache(device.fd, directory, tag, limits)
            else:
                restore_cache(device.fd)
            self._space = CacheSpace(directory, limits, find_top(directory))
            self.staged = StagedDevices(self._space)
            server = Server(device, self._filler, self._space)
            server.start()
        except BaseException:
            device.close()
            raise
        self._counters = server.counters
        self._server = server
        self.control_fd = device.fd

    async def stop(self) -> None:
        """Fail what is pending and give the device back. Mounts that are left only give EIO."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop()

    @property
    def counters(self) -> Counters:
        """What was done since the start."""
        return self._counters

    def sink(self, cookie: str) -> ObjectSink | None:
        """Give the sink of an object that the kernel has open, or None."""
        found = self._server.find(self._volume, cookie) if self._server is not None else None
        return None if found is None or self._server is None else self._server.sink(*found)

    async def opened(self, cookie: str) -> ObjectSink:
        """Give the sink of an object of a mount; waits until the kernel has opened it.

        Raises:
            KernelError: the kernel does not open it in time, or the transport has stopped.
        """
        server = self._server
        if server is None:
            raise KernelError(cookie, "is not served: the transport has stopped")
        try:
            async with asyncio.timeout(OPEN_DEADLINE):
                return server.sink(*await server.opened(self._volume, cookie))
        except TimeoutError as error:
            raise KernelError(
                cookie, f"was not opened by the kernel within {OPEN_DEADLINE:g} s"
            ) from error

    def present(self, cookie: str) -> list[range] | None:
        """Give the ranges, in bytes, that an open object has; None if it is not open.

        Reads metadata from the disk: call it in a thread.

        Raises:
            StorageError: the disk is full, or fails.
            KernelError: the object was closed meanwhile.
        """
        if self._server is None or self._space is None:
            return None
        found = self._server.find(self._volume, cookie)
        if found is None:
            return None
        opened, file = found
        return when_ready(lambda: file.present(opened.size), cookie, self._space)

    def backing_path(self, cookie: str) -> Path | None:
        """Give the file of an object that was open once, or None. Call it in a thread."""
        if self._space is None:
            return None
        directory, domain = self._space.directory, self._domain_id
        domains = [domain, *other_domains(directory, domain, self._first_domain)]
        found = (find_backing_file(directory, each, cookie) for each in domains)
        return next(filter(None, found), None)

    def linked(self, cookies: Iterable[str]) -> set[str]:
        """Give those objects that have a file with a name in the cache.

        The file of an object that is open for the first time has none, and is lost in a power cut.
        Call it in a thread. Raises OSError.
        """
        if self._space is None:
            return set()
        return find_linked(self._space.directory, self._domain_id, cookies)

    def strays(self, cookies: Iterable[str]) -> set[str]:
        """Give those objects that have a file in a domain that was used before.

        Call it in a thread. Raises OSError.
        """
        if self._space is None:
            return set()
        directory = self._space.directory
        return find_strays(directory, self._domain_id, self._first_domain, cookies)

    def move_strays(self, cookies: Iterable[str]) -> None:
        """Let those files take the place of ones that are linked, and not open.

        Call it in a thread. Raises OSError.
        """
        if self._space is not None:
            directory = self._space.directory
            move_strays(directory, self._domain_id, self._first_domain, cookies)

    async def bring_staged(self, cookies: Iterable[str]) -> None:
        """Write devices into the cache that were made here; of objects of a mount.

        Raises:
            LazyimgError: one cannot be written, or the kernel does not open it.
        """
        for cookie in cookies:
            if self.staged is not None and self.staged.has(cookie):
                sink = await self.opened(cookie)
                present = await asyncio.to_thread(self.present, cookie)
                await self.staged.copy(cookie, sink, present or [])

    def shortage(self) -> StorageError | None:
        """Say why the kernel stores nothing now; None if there is room. Blocks; raises OSError."""
        said = "" if self._space is None else self._space.shortage()
        return StorageError("cache", said, REMEDY) if said else None

    def is_tight(self) -> bool:
        """Tell whether the kernel culls, or is about to, so that only what is read should come.

        Blocks; raises OSError.
        """
        return self._space is not None and self._space.below_run()

    def present_on_disk(self, cookie: str) -> list[range] | None:
        """Give the ranges, in bytes, that an object's file has; None if there is none.

        For objects that are not open. Call it in a thread. Raises OSError.
        """
        path = self.backing_path(cookie)
        return None if path is None else present_on_disk(path)
