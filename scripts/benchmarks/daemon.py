"""The whole daemon with a real registry beside it: cold reads, mounts, memory."""

from __future__ import annotations

import asyncio
import io
import os
import re
import tarfile
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from lazyimg.api.client import Client
from lazyimg.api.messages import MountRequest
from scripts.benchmarks.fetching import measure_fetching
from scripts.benchmarks.measure import Figure
from scripts.benchmarks.tars import tar_of_machine, tar_of_small_files
from tests.real.docker_registry import running_registry
from tests.real.lazyimg_process import Lazyimg
from tests.real.oci_layout import LayoutWriter

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

MB: Final = 1_000_000
PIECE: Final = 1 << 20
TICKS: Final = os.sysconf("SC_CLK_TCK")
FURTHER: Final = 4
"""Images mounted besides the first one."""


class Process(NamedTuple):
    """One process of the daemon: CPU seconds, its ended children's among them, and bytes."""

    name: str
    cpu: float
    memory: int


def measure_daemon(work: Path, *, rounds: int, quick: bool) -> list[Figure]:
    """Convert images into a registry, and use them as users do."""
    entries, size = (2000, 32 * MB) if quick else (10_000, 256 * MB)
    with running_registry(work) as registry:
        names = [f"many{number}" for number in range(FURTHER + 1)]
        _convert(work, registry.origin, "large", _tar_of_one_file(size))
        for number, name in enumerate(names):
            _convert(work, registry.origin, name, tar_of_small_files(entries, seed=number))
        large = f"{registry.origin}/large"
        figures = measure_fetching(work, large, rounds)
        figures += _measure_cold_reads(work, large, rounds)
        references = [f"{registry.origin}/{name}" for name in names]
        return figures + _measure_mounts(work, references, rounds, entries)


def _tar_of_one_file(size: int) -> bytes:
    """Give a tar with one file, whose bytes are those of programs."""
    target = io.BytesIO()
    data = tar_of_machine(size)[:size]
    with tarfile.open(fileobj=target, mode="w") as tar:
        info = tarfile.TarInfo("file")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return target.getvalue()


def _convert(work: Path, registry: str, name: str, tar: bytes) -> None:
    path = work / "layer.tar"
    path.write_bytes(tar)
    writer = LayoutWriter(work / f"{name}-layout")
    writer.add_image(name, [writer.add_layer(path)], ["none"])
    path.unlink()
    Lazyimg(work / "nowhere").verb(
        "convert", f"oci:{writer.directory}:{name}", f"{registry}/{name}"
    )


@contextmanager
def _daemon(work: Path) -> Iterator[tuple[Lazyimg, subprocess.Popen[bytes]]]:
    """Run a daemon with an empty directory."""
    with tempfile.TemporaryDirectory(dir=work) as directory:
        lazyimg = Lazyimg(Path(directory, "state"))
        with lazyimg.serving() as process:
            yield lazyimg, process


def _measure_cold_reads(work: Path, reference: str, rounds: int) -> list[Figure]:
    rates, clock = [], []
    for _ in range(rounds):
        with _daemon(work) as (lazyimg, process), tempfile.TemporaryDirectory() as top:
            lazyimg.verb("mount", reference, top)
            cpu, begin = _cpu(process), time.perf_counter()
            size = _read(Path(top, "file"))
            clock.append(size / MB / (time.perf_counter() - begin))
            rates.append(size / MB / (_cpu(process) - cpu))
            lazyimg.verb("umount", top)
    return [
        Figure("cold sequential read through a local registry", "MB/s per core of daemon", rates,
               150.0),
        Figure("the same, registry and reader on the same core", "MB/s by the clock", clock),
    ]  # fmt: skip


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


def _measure_mounts(work: Path, references: list[str], rounds: int, entries: int) -> list[Figure]:
    first, again, served = [], [], []
    with tempfile.TemporaryDirectory() as directory, _daemon(work) as (lazyimg, process):
        idle = {one.name: one.memory / MB for one in _processes(process)}
        tops = [Path(directory, str(number)) for number, _ in enumerate(references)]
        for number, (top, reference) in enumerate(zip(tops, references, strict=True)):
            top.mkdir()
            first.append(_time(lazyimg, "mount", reference, top))
            if number == 0:
                one = _memory(process)
        each = (_memory(process) - one) / FURTHER
        for _ in range(rounds):
            lazyimg.verb("umount", tops[0])
            again.append(_time(lazyimg, "mount", references[0], tops[0]))
            lazyimg.verb("umount", tops[0])
            served.append(asyncio.run(_ask_to_mount(lazyimg, references[0], tops[0])))
        for top in tops:
            lazyimg.verb("umount", top)
    name = f"{entries:,} entries"
    memory = [
        Figure(f"idle: {process_name}", "MB", [value], 15.0 if "supervisor" in process_name
               else 70.0, most=True)
        for process_name, value in idle.items()
    ]  # fmt: skip
    return [
        Figure(f"lazyimg mount, first time, {name}", "s", first),
        Figure(f"lazyimg mount, index local, {name}", "s", again, 0.5, most=True),
        Figure("the daemon's part of it", "s", served),
        *memory,
        Figure(f"each further mounted image of {name}", "MB", [each], 1.0, most=True),
    ]


async def _ask_to_mount(lazyimg: Lazyimg, reference: str, top: Path) -> float:
    """Mount through the API: without the start of a command."""
    client = Client(lazyimg.environment["LAZYIMG_ADDRESS"])
    begin = time.perf_counter()
    await client.mount(MountRequest(reference=reference, directory=str(top)))
    return time.perf_counter() - begin


def _time(lazyimg: Lazyimg, *arguments: str | Path) -> float:
    begin = time.perf_counter()
    lazyimg.verb(*arguments)
    return time.perf_counter() - begin


def _processes(daemon: subprocess.Popen[bytes]) -> list[Process]:
    """Give the daemon's processes: those of its session."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
            status = (directory / "status").read_text()
            command = (directory / "cmdline").read_bytes().decode().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        memory = re.search(r"VmRSS:\s*(\d+) kB", status)
        if int(fields[3]) == daemon.pid and memory is not None:
            name = "supervisor" if "supervisor" in " ".join(command) else "daemon"
            cpu = sum(map(int, fields[11:15])) / TICKS
            found.append(Process(name, cpu, int(memory[1]) * 1024))
    return found


def _cpu(daemon: subprocess.Popen[bytes]) -> float:
    return sum(one.cpu for one in _processes(daemon))


def _memory(daemon: subprocess.Popen[bytes]) -> float:
    return sum(one.memory for one in _processes(daemon)) / MB
