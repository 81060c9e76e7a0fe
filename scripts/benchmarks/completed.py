"""Ways to read a device over FUSE that became complete while it was mounted.

EROFS opens a device once, when it is mounted. So whatever makes it read the complete file is either
below that open file, or another mount.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from scripts.benchmarks.measure import Figure, ratio
from scripts.benchmarks.read_image import make_read_image
from scripts.benchmarks.transport_server import LEFT
from scripts.benchmarks.transports import (
    LIMIT,
    LOADS,
    QUICK,
    SIZE,
    SPAN,
    Bench,
    Round,
    Server,
    Way,
    drop_caches,
)
from tests.real.safety import guarded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

LOOP_CHANGE_FD: Final = 0x4C06

ASKED: Final = "the daemon is asked"
ANEW: Final = "mounted anew"
STORED: Final = "FUSE keeps pages, stored"
LOOP: Final = "loop device, file changed"
LOOP_PLAIN: Final = "loop device from the start"
PLAIN: Final = "plain file from the start"
MEASURED: Final = tuple(load for load in LOADS if load.readers == 1)


class Opened(NamedTuple):
    """What is read.

    Attributes:
        path: the file in EROFS.
        server: the daemon, if there is one.
        below: other files that may have pages of it.
    """

    path: Path
    server: Server | None
    below: tuple[Path, ...]


def measure_completed(work: Path, *, rounds: int, quick: bool) -> list[Figure]:
    """Read one image in each way, `rounds` times, with nothing in EROFS's pages at first."""
    image = make_read_image(work / "image", (QUICK if quick else SIZE) + 2 * LEFT, SPAN)
    runs: dict[tuple[str, str], list[Round]] = {}
    memory: dict[str, list[float]] = {}
    with guarded(work) as guard:
        bench = Bench(work, image, guard)
        for bench.seed in range(rounds):
            for name, open_way in WAYS.items():
                for load in MEASURED:
                    guard.limit(LIMIT)
                    with open_way(bench) as opened:
                        run = bench.read(opened.path, load, opened.server)
                        runs.setdefault((name, load.name), []).append(run)
                        if load.kind == "sequential":
                            files = (opened.path, *opened.below)
                            used = sum(map(bytes_in_memory, files)) / bench.size
                            memory.setdefault(name, []).append(used)
                    guard.limit(0)
    return list(describe(runs, memory))


def describe(
    runs: dict[tuple[str, str], list[Round]], memory: dict[str, list[float]]
) -> Iterator[Figure]:
    """Give rates, what they are of a plain file's, requests, and memory."""
    for (name, load), found in runs.items():
        unit = next(one.unit for one in LOADS if one.name == load)
        yield Figure(f"{name} | {load}", unit, [run.rate for run in found])
    for name, used in memory.items():
        yield Figure(f"{name} | memory", "of the bytes read", used)
    for (name, load), found in runs.items():
        if name != PLAIN:
            plain = [run.rate for run in runs[PLAIN, load]]
            yield ratio(f"{name}, {load}, to {PLAIN}", [run.rate for run in found], plain)
        yield Figure(f"{name}, {load}: requests", "", [run.requests for run in found])
        costs = [1e3 * run.cpu for run in found]
        yield Figure(f"{name}, {load}: the daemon's CPU", "ms", costs)


def bytes_in_memory(file: Path) -> int:
    """Give the bytes of a file, or of a block device, that the kernel has in memory: mincore(2)."""
    with file.open("rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        flags = mmap.PROT_READ | mmap.PROT_WRITE  # of this mapping: nothing is written to the file
        mapped = mmap.mmap(opened.fileno(), size, mmap.MAP_PRIVATE, flags)
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    where = ctypes.c_char.from_buffer(mapped)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mincore(ctypes.byref(where), ctypes.c_size_t(size), pages):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return sum(page & 1 for page in bytes(pages)) * mmap.PAGESIZE


@contextmanager
def asked(bench: Bench) -> Iterator[Opened]:
    """Go on as before."""
    with completing(bench) as server, bench.mounted(Path(server.path)) as path:
        finish(server)
        yield Opened(path, server, (Path(server.path), data_of(bench)))


@contextmanager
def mounted_anew(bench: Bench) -> Iterator[Opened]:
    """Mount the image a second time, from the cache's file; the first mount has been read."""
    with completing(bench) as server, bench.mounted(Path(server.path)) as old:
        finish(server)
        bench.read(old, SEQUENTIAL, server)
        with bench.mounted(data_of(bench)) as path:
            yield Opened(path, server, (old, data_of(bench)))


@contextmanager
def stored(bench: Bench) -> Iterator[Opened]:
    """Give all bytes to FUSE, whose pages EROFS reads then."""
    with completing(bench, pages=True) as server, bench.mounted(Path(server.path)) as path:
        finish(server)
        server.ask("store")
        yield Opened(path, server, (Path(server.path), data_of(bench)))


@contextmanager
def loop_changed(bench: Bench) -> Iterator[Opened]:
    """Mount over a loop device of FUSE's file, and give it the cache's file."""
    with completing(bench) as server, ExitStack() as stack:
        bootstrap = stack.enter_context(loop_device(bench.image.bootstrap))
        device = stack.enter_context(loop_device(Path(server.path)))
        path = stack.enter_context(bench.mounted(device, bootstrap))
        finish(server)
        with device.open("rb") as loop, data_of(bench).open("rb") as data:
            fcntl.ioctl(loop, LOOP_CHANGE_FD, data.fileno())
        drop_caches()
        yield Opened(path, server, (device, Path(server.path), data_of(bench)))


@contextmanager
def loop_plain(bench: Bench) -> Iterator[Opened]:
    """Mount over a loop device of the complete file: what loop devices cost."""
    with ExitStack() as stack:
        bootstrap = stack.enter_context(loop_device(bench.image.bootstrap))
        device = stack.enter_context(loop_device(bench.image.content))
        path = stack.enter_context(bench.mounted(device, bootstrap))
        drop_caches()
        yield Opened(path, None, (device, bench.image.content))


@contextmanager
def plain(bench: Bench) -> Iterator[Opened]:
    """Mount from the complete file."""
    with bench.mounted(bench.image.content) as path:
        drop_caches()
        yield Opened(path, None, (bench.image.content,))


@contextmanager
def completing(bench: Bench, *, pages: bool = False) -> Iterator[Server]:
    """Serve a device that is all present, but for its end."""
    with bench.serving_device(Way("", "fuse", state="present", pages=pages)) as server:
        yield server


def finish(server: Server) -> None:
    """Complete the device; nothing of it is in memory then."""
    server.ask("finish")
    drop_caches()


def data_of(bench: Bench) -> Path:
    """Give the device's file in the cache."""
    (data,) = (path for path in bench.work.glob("cache/**/data") if path.is_file())
    return data


@contextmanager
def loop_device(file: Path) -> Iterator[Path]:
    """Have a loop device of a file, as `fuse.mount = "loop"` makes them."""
    options = ["--read-only", "--direct-io=on", "--sector-size=4096"]
    command: list[str | Path] = ["losetup", *options, "--show", "--find", file]
    made = subprocess.run(command, check=True, capture_output=True, text=True, timeout=LIMIT)
    device = Path(made.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True, timeout=LIMIT)


SEQUENTIAL: Final = MEASURED[0]
WAYS: Final[dict[str, Callable[[Bench], AbstractContextManager[Opened]]]] = {
    ASKED: asked,
    ANEW: mounted_anew,
    STORED: stored,
    LOOP: loop_changed,
    LOOP_PLAIN: loop_plain,
    PLAIN: plain,
}
