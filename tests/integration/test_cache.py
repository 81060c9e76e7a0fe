"""Our own cache on real file systems: processes killed, power cut, disks full."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import random
import re
import select
import signal
import subprocess
import sys
import threading
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Final

import pytest

from lazyimg.cache.device_cache import DeviceCache
from lazyimg.cache.file_system import check_directory
from lazyimg.errors import CacheUnsuitableError, KernelError, StorageError
from lazyimg.host.mounts import mount_erofs_files
from lazyimg.host.space import CacheLimits
from tests.integration.test_erofs_files import Image
from tests.real.cache_writer import BLOCK, BLOCKS, FREE, NAMES, SIZE, content, wrong_blocks
from tests.real.safety import PROJECT, loop_disk
from tests.real.scale import scaled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from lazyimg.cache.device_file import DeviceFile

KILLS: Final = scaled(200, least=8)
CUTS: Final = scaled(200, least=8)
SEED: Final = 3
LINES: Final = 3000
"""How many lines a writer says before it is killed, at most."""

FICLONE: Final = 0x40049409  # include/uapi/linux/fs.h
DISK: Final = 512 << 20
WAIT: Final = 60.0

kinds: Final = pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])


@asynccontextmanager
async def opened(
    directory: Path, boot: str = "boot", limits: CacheLimits = FREE
) -> AsyncIterator[DeviceCache]:
    check_directory(directory)
    cache = DeviceCache(directory, limits, boot=boot)
    try:
        cache.load()
        yield cache
    finally:
        await cache.close()


class Writing:
    """A process that writes to a cache, and what is known of its devices by its words."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self._process = process
        self._pipe = process.stdout.fileno()
        self._rest = b""
        self._lines: list[bytes] = []
        os.set_blocking(self._pipe, False)
        self.written: dict[str, set[int]] = {}
        self.synced: dict[str, set[int]] = {}

    def _receive(self, timeout: float) -> bool:
        """Take what was said; tells whether there was anything."""
        if not select.select([self._pipe], [], [], timeout)[0]:
            return False
        said = os.read(self._pipe, 1 << 16)
        *lines, self._rest = (self._rest + said).split(b"\n")
        self._lines += lines
        return bool(said)

    def hear(self, count: int) -> None:
        """Wait for so many lines, and believe them."""
        while len(self._lines) < count:
            assert self._receive(WAIT)
        self._believe(self._lines[:count])
        del self._lines[:count]

    def hear_all(self) -> set[str]:
        """Believe what was said until now; gives the devices that may have been removed."""
        while self._receive(0):
            pass
        removed = {words.split()[1].decode() for words in self._lines if words[:1] == b"r"}
        self._believe(self._lines)
        self._lines = []
        return removed

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Let it do nothing in the block, and believe all that it said before."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)
        self.hear_all()
        yield
        self._process.send_signal(signal.SIGCONT)

    def _believe(self, lines: list[bytes]) -> None:
        for line in lines:
            what, name, *blocks = line.decode().split()
            if what in {"made", "removing"}:
                self.written[name], self.synced[name] = set(), set()
            elif what == "complete":
                self.written[name] = self.synced[name] = set(range(BLOCKS))
            else:
                known = self.written if what == "written" else self.synced
                known[name] |= set(range(int(blocks[0]), int(blocks[1])))

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.kill()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def writing(directory: Path, boot: str, seed: int) -> Iterator[Writing]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.real.cache_writer", directory, boot, str(seed)],
        stdout=subprocess.PIPE,
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": ".:formats"},
    )
    writer = Writing(process)
    try:
        yield writer
    finally:
        writer.close()


def check(cache: DeviceCache, expected: dict[str, set[int]]) -> int:
    """Compare what is present with the reference and with what must be; gives how much it is."""
    count = 0
    for name in cache.names():
        file = cache.find(name)
        assert file is not None
        assert wrong_blocks(file) == []
        count += sum(map(len, file.present())) // BLOCK
    for name, blocks in expected.items():
        file = cache.find(name)
        if blocks:
            assert file is not None, name
            absent = {number // BLOCK for run in file.absent(0, SIZE) for number in run[::BLOCK]}
            assert blocks & absent == set(), name
    return count


@kinds
async def test_killed_writers(tmp_path: Path, kind: str) -> None:
    chance = random.Random(SEED)  # noqa: S311 - moments
    present = 0
    with loop_disk(tmp_path, size=DISK, kind=kind) as top:
        for number in range(KILLS):
            with writing(top, "boot", number) as writer:
                writer.hear(chance.randint(0, LINES))
                writer.kill()
                writer.hear_all()
                async with opened(top) as cache:
                    present += check(cache, writer.written)
    assert present


@kinds
async def test_power_cuts(tmp_path: Path, kind: str) -> None:
    """A disk's image is cloned, in one moment, while it is written to; that is what is left."""
    chance = random.Random(SEED)  # noqa: S311 - moments
    present = kept = 0
    with (
        loop_disk(tmp_path, size=8 * DISK, kind="xfs") as outer,
        loop_disk(outer, size=DISK, kind=kind) as top,
        writing(top, "boot", 1) as writer,
    ):
        for number in range(CUTS):
            writer.hear(chance.randint(1, LINES))
            synced = cut(outer, kind, writer, idle=number % 2 == 1)
            with after_cut(outer, kind) as after:
                async with opened(after, boot=f"boot {number}") as cache:
                    present += check(cache, synced)
            kept += sum(map(len, synced.values()))
    assert present >= kept > 0


def cut(outer: Path, kind: str, writer: Writing, *, idle: bool) -> dict[str, set[int]]:
    """Clone the disk; gives which blocks must be there, of devices that cannot be gone.

    When the writer is idle at that moment, more is known.
    """
    with (
        (outer / f"{kind}.img").open("rb") as image,
        (outer / "cut.img").open("wb") as clone,
        writer.stopped() if idle else nullcontext(),
    ):
        writer.hear_all()
        synced = {name: set(blocks) for name, blocks in writer.synced.items()}
        fcntl.ioctl(clone, FICLONE, image.fileno())
        removed = writer.hear_all()
    return {name: blocks for name, blocks in synced.items() if name not in removed}


@contextmanager
def after_cut(outer: Path, kind: str) -> Iterator[Path]:
    """Mount what was cloned."""
    top = outer / "after"
    top.mkdir()
    options = "loop,nouuid" if kind == "xfs" else "loop"
    subprocess.run(["mount", "-o", options, outer / "cut.img", top], check=True, timeout=WAIT)
    try:
        yield top
    finally:
        subprocess.run(["umount", top], check=True, timeout=WAIT)
        top.rmdir()


@contextmanager
def nearly_full(top: Path, left: int) -> Iterator[None]:
    """Leave so many bytes of a file system free."""
    space = os.statvfs(top)
    filler = top / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - left)
    yield
    filler.unlink()
    os.sync()


def fill(file: DeviceFile) -> None:
    reference = memoryview(content(file.name, 0, BLOCKS))
    for start in range(0, SIZE, 10 * BLOCK):
        file.write_now(start, [reference[start : start + 10 * BLOCK]])
        file.sync()


@kinds
async def test_full_disk(tmp_path: Path, kind: str) -> None:
    name = NAMES[0]
    with loop_disk(tmp_path, size=DISK, kind=kind) as top:
        async with opened(top) as cache:
            file = cache.open(name, SIZE)
            with nearly_full(top, SIZE // 2), pytest.raises(StorageError) as raised:
                fill(file)
            assert re.search("No space left|has no room for|has no space left", str(raised.value))
            assert wrong_blocks(file) == []
            for run in file.absent(0, SIZE):
                first, last = run.start // BLOCK, run.stop // BLOCK
                file.write_now(run.start, [memoryview(content(name, first, last))])
            file.sync()
            assert file.complete
        async with opened(top, "another") as cache:
            found = cache.open(name, SIZE)
            assert found.complete
            assert wrong_blocks(found) == []


async def test_disk_below_its_limits(tmp_path: Path) -> None:
    limits = CacheLimits(bstop=40, bcull=50, brun=60, fstop=0)
    data = memoryview(content(NAMES[0], 0, BLOCKS))
    with loop_disk(tmp_path, size=128 << 20) as top:
        async with opened(top, limits=limits) as cache:
            used = cache.open("used", SIZE)
            used.write_now(0, [data])
            names = [f"device{number:02}" for number in range(100)]
            with pytest.raises(StorageError) as raised:  # noqa: PT012 - whichever it is
                for name in names:
                    cache.open(name, SIZE).write_now(0, [data])
            assert str(raised.value) == (
                f"cache: {top} has no room for {SIZE} bytes if 40 % stay free;"
                " free some, or lower the cache's limits"
            )
            assert cache.is_tight()
            before = cache.names()
            for age, name in enumerate(before):
                cache.release(name)
                os.utime(top / name, (0, age))
            cache.open("used", SIZE)
            cache.start_culling()
            deadline = threading.Event()
            while cache.is_tight():
                assert not deadline.wait(0.05)
            left = cache.names()
            assert 0 < len(left) < len(before)
            assert left == [*before[-len(left) :]]
            assert "used" in left
            assert cache.shortage() is None
            cache.open("more", SIZE).write_now(0, [data])
            assert used.path.read_bytes() == data


@kinds
async def test_pages_that_are_dropped(tmp_path: Path, kind: str) -> None:
    with loop_disk(tmp_path, size=DISK, kind=kind) as top:
        async with opened(top) as cache:
            file = cache.open(NAMES[0], SIZE)
            file.write_now(0, [memoryview(content(NAMES[0], 0, BLOCKS))])
            assert pages_in_memory(file.path) == BLOCKS
            file.sync()
            file.drop_pages(0, SIZE // 2)
            assert pages_in_memory(file.path) < BLOCKS  # large pages across the end stay
            file.drop_pages()
            assert pages_in_memory(file.path) == 0
            assert wrong_blocks(file) == []


def pages_in_memory(path: Path) -> int:
    """Count a file's pages that the kernel has, as mincore(2) does."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        length = len(mapped)
        vector = (ctypes.c_ubyte * (length // mmap.PAGESIZE))()
        address = ctypes.c_char.from_buffer(mapped)
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mincore(
            ctypes.c_void_p(ctypes.addressof(address)), ctypes.c_size_t(length), vector
        )
        del address
        assert not failed
        return sum(byte & 1 for byte in vector)


@contextmanager
def mounted(top: Path, kind: str, options: str) -> Iterator[Path]:
    top.mkdir()
    subprocess.run(["mount", "-t", kind, "-o", options, kind, top], check=True, timeout=WAIT)
    try:
        yield top
    finally:
        subprocess.run(["umount", top], check=True, timeout=WAIT)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("tmpfs", "EROFS cannot be mounted from files in memory"),
        ("overlay", "EROFS cannot be mounted from files of an overlay"),
    ],
)
async def test_file_systems_that_erofs_is_not_mounted_from(
    tmp_path: Path, kind: str, reason: str
) -> None:
    """Such directories are refused; and the kernel would refuse them."""
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    options = "size=1M"
    if kind == "overlay":
        options = ",".join(f"{name}dir={tmp_path / name}" for name in ("lower", "upper", "work"))
    with mounted(tmp_path / "top", kind, options) as top:
        with pytest.raises(CacheUnsuitableError) as raised:
            check_directory(top)
        assert str(raised.value) == (
            f"{top}: it lies on {kind}: {reason}; put it on ext4, xfs or btrfs"
        )
        image = Image(top, 1)
        with pytest.raises(KernelError):
            await mount_erofs_files(image.bootstrap, image.devices, image.target)
