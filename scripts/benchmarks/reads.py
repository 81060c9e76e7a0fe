"""The path of a READ without a network, against a minimal loop in the same run."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from lazyimg.host.mounts import BDI
from scripts.benchmarks.measure import Figure, ratio
from scripts.benchmarks.read_image import FILE, ReadImage, make_read_image
from scripts.benchmarks.read_server import DOMAIN, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

KIB: Final = 1 << 10
MIB: Final = 1 << 20
PROJECT: Final = Path(__file__).resolve().parents[2]
GOALS: Final = {"decoded": 0.6, "local": 0.6}
KINDS: Final = {
    "minimal": "minimal loop",
    "checked": "minimal loop that decodes and digests",
    "decoded": "lazyimg, decoded spans in memory",
    "local": "lazyimg, blob in memory",
    "fetched": "lazyimg, blob asked for",
}


@dataclass(frozen=True)
class Load:
    """How a file is read.

    Attributes:
        name: of the load.
        size: bytes of the file.
        span: bytes of each of its spans.
        request: bytes that the kernel asks for at a time.
        reads: how many random reads; 0: the whole file in order.
        min_fetch: as in FillLimits; 0 where each read is to be one request.
    """

    name: str
    size: int
    span: int
    request: int
    reads: int = 0
    min_fetch: int = 0


LOADS: Final = (
    Load("random 4 KiB", 64 * MIB, 4 * KIB, 4 * KIB, reads=3000),
    Load("sequential, requests of 128 KiB", 128 * MIB, 128 * KIB, 128 * KIB),
    Load("sequential, requests of 1 MiB", 256 * MIB, 128 * KIB, MIB),
)


class Round(NamedTuple):
    """What one server did for one load.

    Attributes:
        requests: how many READs it answered.
        seconds: of the clock.
        cpu: seconds of its own.
        faults: pages that its memory was given meanwhile, or given back.
        switches: how often one of its threads waited or was made to wait.
        size: bytes of the file.
    """

    requests: int
    seconds: float
    cpu: float
    faults: int
    switches: int
    size: int

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


def measure_reads(work: Path, *, rounds: int, quick: bool) -> list[Figure]:
    """Run every load over both servers, one after the other, `rounds` times."""
    figures: list[Figure] = []
    for load in LOADS:
        size = load.size // 4 if quick else load.size
        image = make_read_image(work / load.name.replace(" ", "-"), size, load.span)
        runs: dict[str, list[Round]] = {kind: [] for kind in KINDS}
        for number in range(rounds):
            for kind, kept in runs.items():
                kept.append(run_round(work, image, load, kind, seed=number))
        figures += describe(load, runs)
    return figures


def describe(load: Load, runs: dict[str, list[Round]]) -> Iterator[Figure]:
    """Give the figures of one load."""
    least = [one.rate for one in runs["minimal"]]
    for kind, text in KINDS.items():
        rates = [one.rate for one in runs[kind]]
        yield Figure(f"{load.name}: {text}", "requests/s", rates)
        cpu = [1e6 * one.cpu / one.requests for one in runs[kind]]
        yield Figure("its CPU", "us/request", cpu)
        faults = [one.faults / one.requests for one in runs[kind]]
        yield Figure("its page faults", "per request", faults)
        switches = [one.switches / one.requests for one in runs[kind]]
        yield Figure("its switches of threads", "per request", switches)
        if kind != "minimal":
            yield ratio("its rate to the minimal loop's", rates, least, GOALS.get(kind))
        if not load.reads:
            yield Figure(
                "by the clock", "MB/s", [one.size / one.seconds / 1e6 for one in runs[kind]]
            )


def run_round(work: Path, image: ReadImage, load: Load, kind: str, *, seed: int) -> Round:
    """Serve the image from an empty cache, read it, and give what that took."""
    cache, top = work / "cache", work / "top"
    cache.mkdir()
    top.mkdir(exist_ok=True)
    place = (str(image.root), image.fsid, image.device)
    settings = Settings(place, str(cache), kind, load.min_fetch)
    command = [
        sys.executable, "-m", "scripts.benchmarks.read_server",
        msgspec.json.encode(settings).decode(),
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROJECT
    ) as server:
        if server.stdin is None or server.stdout is None or server.stdout.readline() != "ready\n":
            raise RuntimeError("the server did not start")

        def ask() -> dict[str, float]:
            assert server.stdin is not None  # noqa: S101 - a pipe, see above
            assert server.stdout is not None  # noqa: S101
            print(file=server.stdin, flush=True)
            said: dict[str, float] = json.loads(server.stdout.readline())
            return said

        try:
            mount(image.fsid, top, load.request // KIB)
            before = ask()
            begin = time.perf_counter()
            read(top / FILE, load, image.content.stat().st_size, seed)
            seconds = time.perf_counter() - begin
            after = ask()
        finally:
            subprocess.run(["umount", top], check=False)
            server.stdin.close()
            server.wait()
    subprocess.run(["rm", "-rf", cache], check=True)
    used = {name: after[name] - before[name] for name in after}
    return Round(
        int(used["reads"]),
        seconds,
        used["cpu"],
        int(used["faults"]),
        int(used["switches"]),
        image.content.stat().st_size,
    )


def mount(fsid: str, top: Path, read_ahead_kb: int) -> None:
    """Mount the image, with a read-ahead that makes requests of that size."""
    before = set(BDI.iterdir())
    options = f"fsid={fsid},domain_id={DOMAIN}"
    subprocess.run(["mount", "-t", "erofs", "none", "-o", options, top], check=True)
    for name in set(BDI.iterdir()) - before:
        (name / "read_ahead_kb").write_text(f"{read_ahead_kb}\n")


def read(path: Path, load: Load, size: int, seed: int) -> None:
    """Be the reader."""
    fd = os.open(path, os.O_RDONLY)
    try:
        if load.reads:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            blocks = random.Random(seed).sample(range(size // load.request), load.reads)  # noqa: S311
            for block in blocks:
                os.pread(fd, load.request, block * load.request)
        else:
            for offset in range(0, size, MIB):
                os.pread(fd, MIB, offset)
    finally:
        os.close(fd)
