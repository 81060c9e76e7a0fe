"""Each transport beside plain ext4, and beside EROFS on a plain file without a daemon."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from scripts.benchmarks.measure import Figure, ratio
from scripts.benchmarks.read_image import FILE, ReadImage, make_read_image
from scripts.benchmarks.transport_server import LEFT, Settings
from tests.real import guard as freeing
from tests.real.safety import Guard, guarded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MIB: Final = 1 << 20
PROJECT: Final = Path(__file__).resolve().parents[2]
READER: Final = PROJECT / "scripts/benchmarks/transport_reader.py"
SPAN: Final = 128 << 10
SIZE: Final = 256 * MIB
QUICK: Final = 64 * MIB
READS: Final = 4096
"""Random reads, of all readers together."""

LIMIT: Final = 120.0
"""Seconds for one load, after which everything is freed."""

STARTING: Final = 0.1
"""Seconds until all readers know when to begin."""

SLOW: Final = 0.02
"""Seconds of a slow fill."""

WARM: Final = "warm"
PASSTHROUGH: Final = "fuse: complete at mount, passthrough"


class Load(NamedTuple):
    """How a file is read."""

    name: str
    kind: str
    readers: int

    @property
    def unit(self) -> str:
        """What is counted."""
        return "MB/s" if self.kind == "sequential" else "reads/s"


RANDOM: Final = "random 4 KiB"
LOADS: Final = (
    Load("sequential", "sequential", 1),
    Load("8 sequential", "sequential", 8),
    Load(RANDOM, "random", 1),
    Load("8 random 4 KiB", "random", 8),
)


class Way(NamedTuple):
    """How a file's bytes come to be read.

    Attributes:
        name: in the table.
        transport: "" without a daemon.
        filler, delay, state, passthrough, pages: see `transport_server.Settings`.
        finish: the device becomes complete while it is mounted.
        warm: the row for a second reading; "" for none.
    """

    name: str
    transport: str = ""
    filler: str = "memory"
    delay: float = 0.0
    state: str = "complete"
    finish: bool = False
    passthrough: bool = False
    warm: str = ""
    pages: bool = False


PLAIN: Final = "ext4"
EROFS: Final = "EROFS, no daemon"


def ways_of(transport: str) -> list[Way]:
    """Give the rows of a transport."""
    return [
        Way(f"{transport}: filling, bytes in memory", transport, state="empty"),
        Way(f"{transport}: filling, decoded and checked", transport, "engine", state="empty"),
        Way(f"{transport}: filling, 20 ms each", transport, "engine", SLOW, state="empty"),
        Way(f"{transport}: present", transport, state="present", warm=f"{transport}: {WARM}"),
        Way(f"{transport}: completed while mounted", transport, state="present", finish=True),
        Way(f"{transport}: complete at mount", transport),
        *([Way(PASSTHROUGH, transport, passthrough=True)] if transport == "fuse" else []),
    ]


TRANSPORTS: Final = ("fuse", "fanotify")


class Round(NamedTuple):
    """One load over one way.

    Attributes:
        rate: what was read each second.
        own: seconds of CPU that the readers took.
        cpu: seconds of CPU that the daemon took.
        requests, fills: of the daemon.
    """

    rate: float
    own: float = 0.0
    cpu: float = 0.0
    requests: int = 0
    fills: int = 0


Rounds = dict[tuple[str, str], list[Round]]


def measure_transports(work: Path, *, rounds: int, quick: bool) -> list[Figure]:
    """Read one image by every way, `rounds` times.

    The CPU for a request is all that the daemon's process took. Over FUSE it is the daemon that
    reads the disk: what that takes is what a process takes that reads the plain file.
    """
    size = (QUICK if quick else SIZE) + 2 * LEFT
    image = make_read_image(work / "image", size, SPAN)
    kept: Rounds = {}
    with guarded(work) as guard:
        bench = Bench(work, image, guard)
        for number in range(rounds):
            bench.seed = number
            bench.measure(Way(PLAIN, warm=f"{PLAIN}: {WARM}"), kept)
            bench.measure(Way(EROFS, warm=f"{EROFS}: {WARM}"), kept)
            for transport in TRANSPORTS:
                for way in ways_of(transport):
                    bench.measure(way, kept)
    return [*describe_rates(kept), *describe_costs(kept), *describe_goals(kept)]


def describe_rates(kept: Rounds) -> Iterator[Figure]:
    """Give what is the table itself."""
    for (name, load), runs in kept.items():
        unit = next(one.unit for one in LOADS if one.name == load)
        yield Figure(f"{name} | {load}", unit, [run.rate for run in runs])


def describe_costs(kept: Rounds) -> Iterator[Figure]:
    """Give the daemon's CPU for each request of the kernel."""
    disk = [1e6 * run.own / READS for run in kept[PLAIN, RANDOM]]
    yield Figure(f"{PLAIN}, {RANDOM}: a reader's CPU", "us/read", disk)
    for transport in TRANSPORTS:
        for what, goal in (("present", 25.0), ("filling, bytes in memory", 160.0)):
            for load in (RANDOM, "sequential"):
                costs = requests_of(kept[f"{transport}: {what}", load])
                name = f"{transport}: {what}, {load}: the daemon's CPU"
                if (transport, what, load) == ("fuse", "present", RANDOM):
                    yield Figure(name, "us/request", costs)
                    name = f"{name}, but for the disk"
                    costs = [cost - own for cost, own in zip(costs, disk, strict=True)]
                yield Figure(name, "us/request", costs, goal, most=True)
        silent = [run.requests for run in kept[f"{transport}: complete at mount", "sequential"]]
        yield Figure(f"{transport}: complete at mount: requests", "", silent, 0, most=True)


def requests_of(runs: Sequence[Round]) -> list[float]:
    """Give what each request cost the daemon, in microseconds of CPU."""
    return [1e6 * run.cpu / max(run.requests, 1) for run in runs]


def describe_goals(kept: Rounds) -> Iterator[Figure]:
    """Give what was promised of their rates."""
    passing, plain = (
        [run.rate for run in kept[name, "sequential"]] for name in (PASSTHROUGH, EROFS)
    )
    yield ratio(f"{PASSTHROUGH}, sequential, to {EROFS}", passing, plain, 0.6)
    for transport in TRANSPORTS:
        for what, load, other, goal in (
            ("complete at mount", "sequential", EROFS, 0.97),
            ("complete at mount", "random 4 KiB", EROFS, 0.97),
            ("completed while mounted", "sequential", EROFS, 0.97),
            (WARM, "sequential", f"{EROFS}: {WARM}", 0.95),
            (WARM, "random 4 KiB", f"{EROFS}: {WARM}", 0.95),
            ("filling, bytes in memory", "sequential", EROFS, 0.5),
        ):
            here = [run.rate for run in kept[f"{transport}: {what}", load]]
            there = [run.rate for run in kept[other, load]]
            wanted = None if (transport, what) == ("fuse", "completed while mounted") else goal
            yield ratio(f"{transport}: {what}, {load}, to {other}", here, there, wanted)
        slow = [run.rate for run in kept[f"{transport}: filling, 20 ms each", "sequential"]]
        yield Figure(f"{transport}: filling, 20 ms each, sequential", "MB/s", slow, 150)


class Bench:
    """Reads one image.

    Attributes:
        seed: of the random reads.
        work: a directory; what is mounted lies below it.
        image: what is read.
        guard: frees whoever is stuck.
        size: bytes that are read, of the file.
    """

    def __init__(self, work: Path, image: ReadImage, guard: Guard) -> None:
        self.seed = 0
        self.work = work
        self.image = image
        self.guard = guard
        self.size = image.content.stat().st_size - 2 * LEFT  # what is read ahead stops before it

    def measure(self, way: Way, kept: Rounds) -> None:
        """Read by one way, with every load; from an empty cache each time where it fills."""
        loads = [[load] for load in LOADS] if way.state == "empty" else [list(LOADS)]
        for group in loads:
            with self._serving(way) as (path, server):
                for load in group:
                    drop_caches()
                    run = self.read(path, load, server)
                    kept.setdefault((way.name, load.name), []).append(run)
                    if way.warm:
                        again = self.read(path, load, None)
                        kept.setdefault((way.warm, load.name), []).append(again)

    @contextmanager
    def _serving(self, way: Way) -> Iterator[tuple[Path, Server | None]]:
        """Give the file to read, and the daemon."""
        self.guard.limit(LIMIT * len(LOADS))
        try:
            if way.name == PLAIN:
                yield self.image.content, None
            elif not way.transport:
                with self.mounted(self.image.content) as path:
                    yield path, None
            else:
                with self._serving_transport(way) as served:
                    yield served
        finally:
            self.guard.limit(0)

    @contextmanager
    def _serving_transport(self, way: Way) -> Iterator[tuple[Path, Server]]:
        with self.serving_device(way) as server, self.mounted(Path(server.path)) as path:
            if way.finish:
                server.ask("finish")
            yield path, server

    @contextmanager
    def serving_device(self, way: Way) -> Iterator[Server]:
        """Run the daemon; nothing is mounted from it yet."""
        cache, tree = self.work / "cache", self.work / "tree"
        cache.mkdir()
        tree.mkdir()
        root, fsid, device = self.image
        settings = Settings(
            (str(root), fsid, device), str(cache), str(tree), way.transport, way.filler,
            way.delay, way.state, way.passthrough, way.pages,
        )  # fmt: skip
        try:
            with running_server(settings) as server:
                for number in freeing.connections_at(str(self.work)):
                    self.guard.tell_connection(number)
                yield server
        finally:
            freeing.detach(str(tree))
            for directory in (cache, tree):
                shutil.rmtree(directory)

    @contextmanager
    def mounted(self, device: Path, bootstrap: Path | None = None) -> Iterator[Path]:
        """Mount the image over a device; gives its file."""
        top = Path(tempfile.mkdtemp(dir=self.work, prefix="top-"))
        script = (
            "import asyncio, sys; from pathlib import Path\n"
            "from lazyimg.host.mounts import mount_erofs_files\n"
            "b, d, t = map(Path, sys.argv[1:])\n"
            "asyncio.run(mount_erofs_files(b, [d], t))\n"
        )
        command: list[str | Path] = [
            sys.executable,
            "-c",
            script,
            bootstrap or self.image.bootstrap,
            device,
            top,
        ]
        subprocess.run(command, check=True, timeout=LIMIT)
        try:
            yield top / FILE
        finally:
            subprocess.run(["umount", top], check=True, timeout=LIMIT)
            top.rmdir()

    def read(self, path: Path, load: Load, server: Server | None) -> Round:
        """Let all readers begin at once, and wait for the last one."""
        before = server.ask("") if server else {}
        share = self.size // load.readers // MIB * MIB
        commands: list[list[str | Path]] = [
            [
                sys.executable, "-I", "-S", READER, path, load.kind,
                str(number * share if load.kind == "sequential" else 0),
                str((number + 1) * share if load.kind == "sequential" else self.size),
                str(READS // load.readers), str(self.seed * 100 + number),
            ]
            for number in range(load.readers)
        ]  # fmt: skip
        seconds, own = run_readers(commands)
        after = server.ask("") if server else {}
        used = {name: after[name] - before[name] for name in after}
        amount = READS if load.kind == "random" else self.size / 1e6
        return Round(
            amount / seconds,
            own,
            used.get("cpu", 0.0),
            int(used.get("requests", 0)),
            int(used.get("fills", 0)),
        )


def run_readers(commands: Sequence[Sequence[str | Path]]) -> tuple[float, float]:
    """Let them begin at once; give the seconds until the last one has ended, and those of CPU."""
    readers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/")
        for command in commands
    ]
    try:
        for reader in readers:
            if reader.stdout is None or reader.stdout.readline() != "ready\n":
                raise RuntimeError("a reader did not start")
        begin = time.monotonic() + STARTING
        for reader in readers:
            print(begin, file=reader.stdin, flush=True)
        said = [reader.communicate(timeout=LIMIT)[0].split() for reader in readers]
        return max(float(end) for end, _ in said) - begin, sum(float(used) for _, used in said)
    finally:
        for reader in readers:
            reader.kill()


class Server:
    """The process that serves.

    Attributes:
        path: where the device is.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.path = str(self._answer()["path"])

    def ask(self, line: str) -> dict[str, float]:
        """Let it do something; give what it has done so far."""
        print(line, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise RuntimeError("the server has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def running_server(settings: Settings) -> Iterator[Server]:
    """Run the process."""
    command = [
        sys.executable, "-m", "scripts.benchmarks.transport_server",
        msgspec.json.encode(settings).decode(),
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROJECT
    ) as process:
        try:
            yield Server(process)
            if process.stdin is not None:
                process.stdin.close()
            process.wait(LIMIT)
        finally:
            process.kill()


def drop_caches() -> None:
    """Make the kernel forget all file pages that are not in use."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")
