"""What only the fanotify transport must see to: it does not fail closed by itself."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import CacheUnsuitableError
from lazyimg.host.leases import is_open_elsewhere
from lazyimg.host.mounts import mount_erofs_files
from lazyimg.transports.fanotify.device import Group, mark_error, open_group
from tests.real.fanotify_process import FanotifyProcess
from tests.real.kernel_image import (
    Image,
    ReadFailedError,
    drop_caches,
    eventually,
    make_image,
    read_file,
    run,
    start_reader,
    unmount_below,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.real.safety import SafetyNet

MB = 1 << 20
READ_BLOCK = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
sys.stdout.buffer.write(os.pread(fd, 4096, int(sys.argv[2])))
"""


class Served:
    """An image that is mounted and served by another process."""

    def __init__(self, server: FanotifyProcess, image: Image, top: Path) -> None:
        self.server = server
        self.image = image
        self.top = top
        self.file = top / "a"
        self.data = image.files["a"]

    async def mount(self) -> None:
        """Mount the image."""
        bootstrap = self.server.directory / self.image.fsid
        bootstrap.write_bytes(self.image.bootstrap)
        devices = [self.server.paths[name] for name in self.image.devices]
        await mount_erofs_files(bootstrap, devices, self.top)

    @property
    def backing(self) -> Path:
        """The file of the only device."""
        (path,) = self.server.paths.values()
        return path

    async def refused(self, offset: int) -> int:
        """Give the errno of a read of a block."""
        with pytest.raises(ReadFailedError) as caught:
            await read_file(self.file, offset, 4096)
        code: int = caught.value.args[0]
        return code


@asynccontextmanager
async def serving(disk: Path, place: Path, *, held: bool = False) -> AsyncIterator[Served]:
    image = make_image(7, {"a": 8 * MB})
    with tempfile.TemporaryDirectory(dir=disk) as directory:
        server = FanotifyProcess(Path(directory), image.devices, held=held)
        top = place / "mounted"
        top.mkdir()
        try:
            served = Served(server, image, top)
            await served.mount()
            yield served
        finally:
            server.close()  # frees whoever waits
            await unmount_below(top)
            await eventually(lambda: not guards_of(Path(directory)))


def guards_of(directory: Path) -> list[int]:
    """Give the guards that watch over a directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended
        if b"fanotify.guard" in b" ".join(words) and os.fsencode(directory) in b" ".join(words):
            found.append(int(entry.parent.name))
    return found


async def test_killed_worker_keeps_readers_waiting_until_its_successor_fills(
    net: SafetyNet, disk: Path, tmp_path: Path
) -> None:
    """Nothing is read ahead: the kernel would not try again, and the readers have an error."""
    async with serving(disk, tmp_path, held=True) as served:
        readers = [
            net.start([sys.executable, "-c", READ_BLOCK, served.file, str(at * MB)])
            for at in range(4)
        ]
        await eventually(lambda: served.server.ask()["fills"] >= 4)
        served.server.kill()
        served.server.start(held=False)
        for at, reader in enumerate(readers):
            data, errors = await asyncio.to_thread(net.finish, reader)
            assert (data, errors) == (served.data[at * MB :][:4096], b"")
        assert await read_file(served.file) == served.data


async def test_all_killed_but_the_guard_gives_errors_and_no_zeros(
    net: SafetyNet, disk: Path, tmp_path: Path
) -> None:
    net.watch()
    async with serving(disk, tmp_path, held=True) as served:
        reader = await start_reader(served.file, 0, 4096)
        await eventually(lambda: served.server.ask()["fills"] == 1)
        served.server.forget()
        served.server.kill()
        with pytest.raises(ReadFailedError) as caught:
            await reader.result()
        assert caught.value.args == (errno.EIO,)
        await eventually(lambda: not guards_of(served.server.directory))
        assert await served.refused(MB) == errno.EIO
        served.server.start(held=False)
        assert await served.refused(MB) == errno.EIO  # in this mount, for ever
        await run("umount", "-l", str(served.top))
        await served.mount()
        assert await read_file(served.file) == served.data


async def test_guard_that_is_killed_is_replaced(net: SafetyNet, disk: Path, tmp_path: Path) -> None:
    net.watch()
    async with serving(disk, tmp_path) as served:
        (first,) = guards_of(served.server.directory)
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: guards_of(served.server.directory) not in ([], [first]))
        served.server.forget()
        served.server.kill()
        assert await served.refused(0) == errno.EIO


async def test_stop_of_what_is_mounted_gives_errors_and_no_zeros(
    net: SafetyNet, disk: Path, tmp_path: Path
) -> None:
    net.watch()
    async with serving(disk, tmp_path) as served:
        assert await read_file(served.file, 0, 4096) == served.data[:4096]
        served.server.stop()
        served.server.forget()
        assert await served.refused(4 * MB) == errno.EIO


async def test_completed_while_mounted_needs_nobody(
    net: SafetyNet, disk: Path, tmp_path: Path
) -> None:
    """Its mark is gone: no event comes, and no process is missed."""
    net.watch()
    async with serving(disk, tmp_path) as served:
        assert await read_file(served.file) == served.data
        await eventually(lambda: served.server.ask()["complete"])
        reads = served.server.ask()["reads"]
        await drop_caches()
        assert await read_file(served.file) == served.data
        assert served.server.ask()["reads"] == reads
        for guard in guards_of(served.server.directory):
            os.kill(guard, signal.SIGSTOP)
        served.server.forget()
        served.server.kill()
        for guard in guards_of(served.server.directory):
            os.kill(guard, signal.SIGKILL)
        await drop_caches()
        assert await read_file(served.file) == served.data


async def test_lease_tells_whether_a_mount_has_a_file(
    net: SafetyNet, disk: Path, tmp_path: Path
) -> None:
    """Also one that was detached while somebody is in it."""
    net.watch()
    async with serving(disk, tmp_path) as served:
        fd = os.open(served.backing, os.O_RDWR)
        assert await read_file(served.file) == served.data
        served.server.stop()
        assert is_open_elsewhere(fd)
        user = net.start(["sleep", "60"], cwd=served.top)
        await run("umount", "-l", str(served.top))
        assert is_open_elsewhere(fd)
        user.kill()
        user.wait()
        await eventually(lambda: not is_open_elsewhere(fd))
        os.close(fd)


async def test_file_system_without_such_events(net: SafetyNet, tmp_path: Path) -> None:
    net.watch()
    tmpfs = tmp_path / "tmpfs"
    tmpfs.mkdir()
    await run("mount", "-t", "tmpfs", "tmpfs", str(tmpfs))
    group = Group(open_group())
    fd = os.open(tmpfs / "file", os.O_RDWR | os.O_CREAT)
    try:
        with pytest.raises(OSError, match="not supported") as caught:
            group.mark(fd)
        assert isinstance(mark_error(tmpfs, caught.value), CacheUnsuitableError)
    finally:
        os.close(fd)
        group.close()
        await run("umount", str(tmpfs))
