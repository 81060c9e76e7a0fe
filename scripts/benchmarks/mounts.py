"""Mounting: how long it takes, the command and the daemon's part apart, and what it costs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lazyimg.api.client import Client
from lazyimg.api.messages import MountRequest
from scripts.benchmarks.measure import Figure
from scripts.benchmarks.processes import processes_of, push_image, running_daemon
from scripts.benchmarks.tars import tar_of_small_files
from tests.real.docker_registry import running_registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.real.lazyimg_process import Lazyimg

MB: Final = 1_000_000
ENTRIES: Final = 10_000
FURTHER: Final = 8
FURTHER_QUICK: Final = 4
"""Images mounted besides the first one."""


def measure_mounts(work: Path, *, rounds: int, quick: bool) -> list[Figure]:
    """Mount images as users do, and as programs do that speak to the daemon themselves."""
    with running_registry(work) as registry:
        references = [
            push_image(
                work, registry.origin, f"many{number}", tar_of_small_files(ENTRIES, seed=number)
            )
            for number in range(1 + (FURTHER_QUICK if quick else FURTHER))
        ]
        return _measure(work, references, rounds)


def _measure(work: Path, references: Sequence[str], rounds: int) -> list[Figure]:
    first, again, served, bare, further = [], [], [], [], []
    with tempfile.TemporaryDirectory() as directory, running_daemon(work) as (lazyimg, process):
        idle = {one.name: one.memory / MB for one in processes_of(process)}
        tops = [Path(directory, str(number)) for number, _ in enumerate(references)]
        memory, own, mounter = [], [], []
        for top, reference in zip(tops, references, strict=True):
            top.mkdir()
            first.append(_time(lazyimg, "mount", reference, top))
            _walk(top)
            taken = processes_of(process)
            mounter = [one.memory / MB for one in taken if one.name == "mounter"]
            memory.append(sum(one.memory for one in taken) / MB)
            own.append(sum(one.own for one in taken) / MB)
        other = Path(directory, "other")
        other.mkdir()
        for _ in range(rounds):
            further.append(_ask_to_mount(lazyimg, references[0], other))
            lazyimg.verb("umount", other)
            lazyimg.verb("umount", tops[0])
            again.append(_time(lazyimg, "mount", references[0], tops[0]))
            lazyimg.verb("umount", tops[0])
            served.append(_ask_to_mount(lazyimg, references[0], tops[0]))
            bare.append(_time_bare())
        for top in tops:
            lazyimg.verb("umount", top)
    name = f"{ENTRIES:,} entries"
    return [
        Figure(f"lazyimg mount, first time, {name}", "s", first),
        Figure(f"lazyimg mount, index local, {name}", "s", again, 0.5, most=True),
        Figure("the start of Python in it (python -c pass)", "s", bare),
        Figure("the daemon's part: the call of its API", "s", served, 0.5, most=True),
        Figure("the same on a second directory", "s", further),
        Figure("idle: daemon", "MB", [idle["daemon"]], 70.0, most=True),
        Figure("idle: supervisor", "MB", [idle["supervisor"]], 15.0, most=True),
        Figure("the process that is kept for mounts", "MB", mounter),
        Figure(f"each further image of {name}, mounted and looked through", "MB",
               _steps(memory), 1.0, most=True),
        Figure("its part that is no file's", "MB", _steps(own)),
    ]  # fmt: skip


def _steps(sizes: Sequence[float]) -> list[float]:
    """Give the growth per image, from the first image on, as one mean: single steps are pages."""
    return [(sizes[-1] - sizes[0]) / (len(sizes) - 1)]


def _walk(top: Path) -> None:
    """Look at every entry: the kernel reads all of the bootstrap then."""
    for directory, _, names in os.walk(top):
        for name in names:
            os.lstat(os.path.join(directory, name))  # noqa: PTH118 - many


def _ask_to_mount(lazyimg: Lazyimg, reference: str, top: Path) -> float:
    """Mount through the API: without the start of a command."""
    client = Client(lazyimg.environment["LAZYIMG_ADDRESS"])
    begin = time.perf_counter()
    client.mount(MountRequest(reference=reference, directory=str(top)))
    return time.perf_counter() - begin


def _time(lazyimg: Lazyimg, *arguments: str | Path) -> float:
    begin = time.perf_counter()
    lazyimg.verb(*arguments)
    return time.perf_counter() - begin


def _time_bare() -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.perf_counter() - begin
