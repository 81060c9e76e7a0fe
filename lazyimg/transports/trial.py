"""Does a transport work on this machine? Tried with a tiny image, in a directory of its own.

A trial does what the daemon does: it starts the transport, mounts an image of one file, has a child
read a byte of it, which is filled on the way, and takes all of it back. What this process may wait
for is bounded: mounts and reads are children's, and stopping a transport fails what is pending.
"""

from __future__ import annotations

import asyncio
import hashlib
import stat
import tempfile
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lazyimg.cache.device_cache import DeviceCache
from lazyimg.errors import KernelBusyError, KernelError, LazyimgError, StorageError
from lazyimg.host.loops import FileMounter
from lazyimg.host.mounts import mount_erofs, mount_erofs_files, read_byte, unmount
from lazyimg.host.preflight import Check, Machine, check_holders
from lazyimg.host.removal import remove_tree
from lazyimg_formats.erofs.tree import Device, FlatData, Node
from lazyimg_formats.erofs.writer import serialize_image

if TYPE_CHECKING:
    from lazyimg.fill.ports import Sink
    from lazyimg.transports.fanotify.transport import FanotifyTransport
    from lazyimg.transports.fuse.transport import FuseTransport

BLOCK: Final = 4096
"""Bytes of the device."""

DOMAIN: Final = "lazyimg-try"
"""The EROFS domain, and the tag of the kernel's cache, of a trial."""

DONE: Final = "an image was mounted and read"
"""What is found where a transport works."""

TIMEOUT: Final = 20.0
"""Seconds for a trial, after which it has failed."""


class TrialImage:
    """An image of one file on one device; a `lazyimg.transports.ports.Filler` of it.

    Attributes:
        device: the device's name.
        fsid: the bootstrap's name.
        bootstrap: its bytes.
    """

    def __init__(self) -> None:
        content = b"lazyimg " * (BLOCK // 8)
        self.device = hashlib.sha256(content).hexdigest()
        file = Node(stat.S_IFREG | 0o444, size=BLOCK, data=FlatData(0, 0))
        root = Node(stat.S_IFDIR | 0o755, children={b"file": file})
        self.bootstrap = serialize_image(root, [Device(self.device, 1)])
        self.fsid = hashlib.sha256(self.bootstrap).hexdigest()
        self._bytes = {self.device: content, self.fsid: self.bootstrap}

    @staticmethod
    def empty() -> bytes:
        """Give the bootstrap of an image without anything in it."""
        return serialize_image(Node(stat.S_IFDIR | 0o755, children={}))

    def size(self, cookie: str) -> int | None:
        """Give an object's bytes, or None if there is no such object."""
        found = self._bytes.get(cookie)
        return None if found is None else len(found)

    def read_local(self, cookie: str, offset: int, _length: int, buffer: memoryview) -> int | None:
        """Put the bytes of a range into `buffer`."""
        found = self._bytes[cookie][offset : offset + len(buffer)]
        buffer[: len(found)] = found
        return len(found)

    async def fill(self, cookie: str, offset: int, length: int, sink: Sink) -> None:
        """Write a range to `sink`."""
        found = self._bytes[cookie][offset : offset + length]
        await sink.write(offset, memoryview(found.ljust(length, b"\0")))


async def try_transports(directory: Path) -> list[Check]:
    """Try each transport below a directory; gives a finding for each.

    Args:
        directory: on the file system where the cache is, or will be.
    """
    return [await _try_aside(name, directory) for name in TRIALS]


async def _try_aside(name: str, directory: Path) -> Check:
    """Try one in a new directory."""
    try:
        made = await asyncio.to_thread(tempfile.mkdtemp, prefix=".lazyimg-try-", dir=directory)
    except OSError as error:
        detail = f"{directory}: no directory can be made in it: {error.strerror}"
        return Check(title(name), ok=False, detail=detail, remedy="check --root", needed=False)
    aside = Path(made)
    try:
        return await try_transport(name, aside)
    finally:
        with suppress(OSError):  # what is still mounted is not looked into
            await asyncio.to_thread(remove_tree, aside)


def title(name: str) -> str:
    """Give the name of the finding about a transport."""
    return f"transport {name}"


async def try_transport(name: str, directory: Path) -> Check:
    """Try one transport; gives a finding.

    Args:
        name: one of `TRIALS`.
        directory: empty, on the file system where the cache is; what is left in it may be removed.
    """
    named = title(name)
    try:
        async with asyncio.timeout(TIMEOUT), AsyncExitStack() as stack:
            detail = await TRIALS[name](TrialImage(), directory, stack)
    except KernelBusyError:
        return replace(check_holders(Machine(directory)), name=named, needed=False)
    except LazyimgError as error:
        detail, remedy = f"{error.what}: {error.problem}", error.remedy
    except TimeoutError:
        detail, remedy = f"no image could be read within {TIMEOUT:g} s", ""
    except OSError as error:
        detail, remedy = f"{error.filename or name}: {error.strerror}", ""
    else:
        return Check(named, ok=True, detail=detail, needed=False)
    return Check(
        named, ok=False, detail=detail, remedy=remedy or "use another transport", needed=False
    )


async def try_file_mount(root: Path, how: str) -> None:
    """Check that the kernel mounts EROFS from a file in the daemon's directory.

    Args:
        root: that directory.
        how: see `FileMounter`.

    Raises:
        KernelError: it does not.
        StorageError: the file cannot be written.
    """
    bootstrap, target = root / "bootstraps" / ".try", root / "mnt" / ".try"
    try:
        await asyncio.to_thread(bootstrap.write_bytes, TrialImage.empty())
        target.mkdir(exist_ok=True)
        await FileMounter(how, root / "loops").mount(bootstrap, (), target)
        await unmount(target)
        target.rmdir()
        bootstrap.unlink()
    except OSError as error:
        raise StorageError(
            str(root), f"cannot be used: {error.strerror}", "check --root"
        ) from error
    except LazyimgError as error:
        raise KernelError("EROFS", error.problem, error.remedy) from error


async def _try_cachefiles(image: TrialImage, directory: Path, stack: AsyncExitStack) -> str:
    from lazyimg.transports.cachefiles.transport import CachefilesTransport  # noqa: PLC0415

    cache = _make(directory / "cache")
    transport = CachefilesTransport(image, domain_id=DOMAIN)
    await transport.start(cache, tag=DOMAIN)
    stack.push_async_callback(transport.stop)
    target = _make(directory / "mnt")
    await mount_erofs(image.fsid, DOMAIN, target)
    await _read(target, stack)
    return DONE


async def _try_fuse(image: TrialImage, directory: Path, stack: AsyncExitStack) -> str:
    from lazyimg.transports.fuse.transport import FuseTransport  # noqa: PLC0415

    tree = _make(directory / "fuse")
    transport = FuseTransport(image, await _open_cache(directory, stack))
    await transport.start(tree)
    stack.push_async_callback(transport.stop)
    mounter = FileMounter("auto", directory / "loops")
    await _mount_files(transport, image, directory, stack, mounter)
    return f"{DONE}, by loop devices" if mounter.loops else DONE


async def try_fanotify(image: TrialImage, directory: Path, stack: AsyncExitStack) -> str:
    """Try fanotify: the kernel must ask, and say so where a file ends too early.

    Raises:
        LazyimgError: it does not.
    """
    from lazyimg.transports.fanotify.transport import FanotifyTransport  # noqa: PLC0415

    await _try_short_file(image, directory, stack)
    transport = FanotifyTransport(image, await _open_cache(directory, stack))
    await transport.start(_make(directory / "fanotify"))
    stack.push_async_callback(transport.stop)
    await _mount_files(transport, image, directory, stack, FileMounter("file", directory))
    if not transport.counters.reads:
        raise KernelError("fanotify", "the kernel has read a file without asking")
    return DONE


async def _try_short_file(image: TrialImage, directory: Path, stack: AsyncExitStack) -> None:
    """Check that a device that is cut to nothing gives errors, not zeros."""
    bootstrap, short = directory / "bootstrap-of-short", directory / "short"
    await asyncio.to_thread(bootstrap.write_bytes, image.bootstrap)
    await asyncio.to_thread(short.touch)
    target = _make(directory / "mnt-of-short")
    await mount_erofs_files(bootstrap, [short], target)
    try:
        await _read(target, stack)
    except LazyimgError:
        return
    raise KernelError("EROFS", "this kernel reads what lies behind the end of a file")


async def _open_cache(directory: Path, stack: AsyncExitStack) -> DeviceCache:
    cache = await asyncio.to_thread(DeviceCache, _make(directory / "devices"))
    await asyncio.to_thread(cache.load)
    stack.push_async_callback(cache.close)
    return cache


async def _mount_files(
    transport: FanotifyTransport | FuseTransport,
    image: TrialImage,
    directory: Path,
    stack: AsyncExitStack,
    mounter: FileMounter,
) -> None:
    bootstrap = directory / "bootstrap"
    await asyncio.to_thread(bootstrap.write_bytes, image.bootstrap)
    files = await transport.prepare({image.device: BLOCK})
    target = _make(directory / "mnt")
    await mounter.mount(bootstrap, [files[image.device]], target)
    await _read(target, stack)


async def _read(target: Path, stack: AsyncExitStack) -> None:
    stack.push_async_callback(unmount, target, lazy=True)
    await read_byte(target / "file", 0)


def _make(directory: Path) -> Path:
    directory.mkdir()
    return directory


TRIALS: Final = {
    "cachefiles": _try_cachefiles,
    "fuse": _try_fuse,
    "fanotify": try_fanotify,
}
