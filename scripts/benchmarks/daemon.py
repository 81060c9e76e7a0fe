"""The whole daemon with a real registry beside it: cold reads."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from scripts.benchmarks.costs import count_calls, count_costs, rate_of_digests
from scripts.benchmarks.fetching import measure_fetching
from scripts.benchmarks.measure import Figure
from scripts.benchmarks.processes import cpu_of, push_image, running_daemon
from scripts.benchmarks.tars import tar_of_machine
from tests.real.docker_registry import running_registry

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

MB: Final = 1_000_000
MIB: Final = 1 << 20
PIECE: Final = MIB
WARM: Final = 8 * MB
"""Bytes of the small image."""


class Images(NamedTuple):
    """References: what is read, and what the daemon has read before, as one that runs for long."""

    large: str
    small: str


def measure_daemon(work: Path, *, rounds: int, quick: bool) -> list[Figure]:
    """Convert an image into a registry, and read it as users do."""
    with running_registry(work) as registry:
        tar = _tar_of_one_file((32 if quick else 256) * MB)
        large = push_image(work, registry.origin, "large", tar)
        small = push_image(work, registry.origin, "small", _tar_of_one_file(WARM))
        figures = measure_fetching(work, large, rounds)
        return figures + _measure_cold_reads(work, Images(large, small), rounds)


def _tar_of_one_file(size: int) -> bytes:
    """Give a tar with one file, whose bytes are those of programs."""
    target = io.BytesIO()
    data = tar_of_machine(size)[:size]
    with tarfile.open(fileobj=target, mode="w") as tar:
        info = tarfile.TarInfo("file")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return target.getvalue()


def _measure_cold_reads(work: Path, images: Images, rounds: int) -> list[Figure]:
    rates, clock, digests, calls = [], [], [], []
    counts: dict[str, list[float]] = {}
    for _ in range(rounds):
        with _cold(work, images) as (process, file):
            digests.append(rate_of_digests())
            before, cpu, begin = count_costs(process), cpu_of(process), time.perf_counter()
            size = _read(file)
            clock.append(size / MB / (time.perf_counter() - begin))
            rates.append(size / MB / (cpu_of(process) - cpu))
            for name, number in count_costs(process).items():
                counts.setdefault(name, []).append((number - before[name]) * MIB / size)
    if shutil.which("strace"):
        with _cold(work, images) as (process, file):
            calls.append(count_calls(process, partial(_read, file)) * MIB / file.stat().st_size)
    return [
        Figure("cold sequential read through a local registry", "MB/s per core of daemon", rates,
               150.0),
        *(Figure(f"its {name}", "per MiB", values) for name, values in counts.items()),
        *(Figure("its system calls, in a round of their own", "per MiB", [one]) for one in calls),
        Figure("the same, registry and reader on the same core", "MB/s by the clock", clock),
        Figure("sha256 of the same MiB again and again, before", "MB/s per core", digests),
    ]  # fmt: skip


@contextmanager
def _cold(work: Path, images: Images) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Mount an image of which nothing is local; gives the daemon, and the image's file."""
    with running_daemon(work) as (lazyimg, process), tempfile.TemporaryDirectory() as top:
        lazyimg.verb("mount", images.small, top)
        _read(Path(top, "file"))
        lazyimg.verb("umount", top)
        lazyimg.verb("mount", images.large, top)
        yield process, Path(top, "file")
        lazyimg.verb("umount", top)


def _read(path: Path) -> int:
    """Read a file in order; gives its bytes."""
    size = 0
    fd = os.open(path, os.O_RDONLY)
    try:
        while piece := os.read(fd, PIECE):
            size += len(piece)
    finally:
        os.close(fd)
    return size
