"""The snapshots service beside containerd's own overlayfs snapshotter, through the same client.

Both run on the same file system, natively, and get the same calls in turns. Nothing is lazy here
but the records: what a registry and the kernel add is measured by `mount`.
"""

from __future__ import annotations

import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import grpc

from lazyimg.snapshotter.lifecycle import REF
from scripts.benchmarks.measure import Figure, ratio
from scripts.benchmarks.processes import TICKS
from tests.real.containerd import running_containerd
from tests.real.snapshot_client import LEASE, NAMESPACE, SnapshotClient
from tests.real.snapshotter_process import running_snapshotter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MB: Final = 1_000_000
GOALS: Final = {"prepare": 2.0, "commit": 2.0, "remove": 2.0, "mounts": 2.5, "stat": 2.5}
"""Calls, and how many times as long as containerd's they may take."""

CYCLES: Final = 200
CYCLES_QUICK: Final = 40
"""Times that each call is made in a round, on either side."""

MANY: Final = 10_000
MANY_QUICK: Final = 1_000
"""Snapshots that are there in the section `many`."""

RATE: Final = 200.0
"""Calls in a second, with many snapshots present."""

CALLERS: Final = 8
LABELS: Final = {
    "containerd.io/gc.root": "2026-11-20T20:05:00Z",
    "containerd.io/snapshot/cri.image-layers": "sha256:0123456789abcdef," * 100,
}
"""As CRI sends them: the bulk of a snapshot's record."""

GROWTH: Final = 8.0
"""MB by which a List of many may let the process grow, however many there are."""

CONTAINERS: Final = 1_000
"""Snapshots that a start finds."""

LAYERS: Final = 10
START: Final = 1.0
"""Seconds that it may take until it answers."""


class _Server(NamedTuple):
    """A service that answers; `pid` is 0 where it does not matter."""

    name: str
    client: SnapshotClient
    pid: int


def measure_calls(work: Path, *, rounds: int, quick: bool) -> list[Figure]:
    """Make each call of a container's life in turns."""
    with _both(work) as servers:
        return _compare(servers, rounds, CYCLES_QUICK if quick else CYCLES)


def measure_many(work: Path, *, rounds: int, quick: bool) -> list[Figure]:
    """Make the same calls while many snapshots are there, and list them."""
    count = MANY_QUICK if quick else MANY
    with _both(work) as servers:
        ours = next(one for one in servers if one.pid)
        for server in servers:
            _fill(server.client, count)
        figures = _compare(servers, rounds, CYCLES_QUICK)
        rates: dict[str, list[float]] = {}
        lists: dict[str, list[float]] = {}
        for _ in range(rounds):
            for server in servers:
                rates.setdefault(server.name, []).append(_rate(server.client))
                lists.setdefault(server.name, []).append(_list(server.client, count))
        grown = [_growth(ours, count, pause) for pause in (0.0, 0.02)]
    figures += [Figure(f"{CALLERS} callers: containerd", "calls/s", rates["containerd"])]
    figures += [Figure(f"{CALLERS} callers: lazyimg", "calls/s", rates["lazyimg"], RATE)]
    figures += [Figure(f"List of {count:,}: {name}", "s", each) for name, each in lists.items()]
    growth = f"growth by List of {count:,} ({_size(count):.0f} MB)"
    return [
        *figures,
        Figure(growth, "MB", [grown[0]], GROWTH, most=True),
        Figure("the same, to a slow reader", "MB", [grown[1]], GROWTH, most=True),
    ]


def measure_start(work: Path, *, rounds: int, quick: bool) -> list[Figure]:
    """Start the service, until it has answered a first call."""
    count = CONTAINERS // 10 if quick else CONTAINERS
    roots = {"none": work / "none", "unpacked": work / "unpacked", "lazy": work / "lazy"}
    for name, root in roots.items():
        _fill_for_start(root, work / "socket", 0 if name == "none" else count, lazy=name == "lazy")
    taken: dict[str, list[float]] = {name: [] for name in roots}
    processor: dict[str, list[float]] = {name: [] for name in roots}
    for _ in range(rounds):
        for name, root in roots.items():
            seconds, used = _start(root, work / "socket")
            taken[name].append(seconds)
            processor[name].append(used)
    what = {
        "none": "start without snapshots",
        "unpacked": f"start with {count:,} containers on {LAYERS} unpacked layers",
        "lazy": f"start with {count:,} containers on {LAYERS} lazy layers (records only)",
    }
    figures = []
    for name, text in what.items():
        figures.append(Figure(text, "s", taken[name], START, most=True))
        figures.append(Figure("its CPU", "s", processor[name]))
    return figures


@contextmanager
def _both(work: Path) -> Iterator[list[_Server]]:
    """Run both; each has a layer `base`."""
    with (
        running_containerd(work / "containerd") as containerd,
        running_snapshotter(work / "root", work / "socket") as process,
    ):
        containerd.ctr("--namespace", NAMESPACE, "leases", "create", "--id", LEASE)
        servers = [
            _Server("containerd", SnapshotClient(work / "containerd/socket", "overlayfs"), 0),
            _Server("lazyimg", SnapshotClient(work / "socket"), process.pid),
        ]
        for server in servers:
            _make_layer(server.client, "base", "")
        yield servers
        for server in servers:
            server.client.close()


def _make_layer(client: SnapshotClient, name: str, parent: str) -> None:
    client.prepare(f"making {name}", parent)
    client.commit(name, f"making {name}", LABELS)


def _fill(client: SnapshotClient, count: int) -> None:
    def make(number: int) -> None:
        client.prepare(f"container {number}", "base", LABELS)

    with ThreadPoolExecutor(CALLERS) as executor:
        for _ in executor.map(make, range(count)):
            pass


def _compare(servers: Sequence[_Server], rounds: int, cycles: int) -> list[Figure]:
    """Give each call's time on both sides, and the ratio."""
    medians: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        taken: dict[tuple[str, str], list[float]] = {}
        for cycle in range(cycles):
            for server in servers if cycle % 2 else reversed(servers):
                for call, seconds in _cycle(server.client, f"{number}-{cycle}").items():
                    taken.setdefault((server.name, call), []).append(seconds)
        for key, values in taken.items():
            medians.setdefault(key, []).append(statistics.median(values) * 1000)
    figures = []
    for call, goal in GOALS.items():
        theirs, ours = medians["containerd", call], medians["lazyimg", call]
        figures += [
            Figure(f"{call.title()}: containerd", "ms", theirs),
            Figure(f"{call.title()}: lazyimg", "ms", ours),
            ratio("the ratio", ours, theirs, goal, most=True),
        ]
    return figures


def _cycle(client: SnapshotClient, name: str) -> dict[str, float]:
    """Make each call once; gives its seconds."""
    calls: dict[str, Callable[[], object]] = {
        "prepare": partial(client.prepare, f"call {name}", "base"),
        "mounts": partial(client.mounts, f"call {name}"),
        "stat": partial(client.stat, f"call {name}"),
        "commit": partial(client.commit, f"layer {name}", f"call {name}", LABELS),
        "remove": partial(client.remove, f"layer {name}"),
    }
    taken = {}
    for call, make in calls.items():
        begin = time.perf_counter()
        make()
        taken[call] = time.perf_counter() - begin
    return taken


def _rate(client: SnapshotClient) -> float:
    """Give how many calls are answered in a second when several callers make them at once."""
    cycles = 20
    begin = time.perf_counter()
    with ThreadPoolExecutor(CALLERS) as executor:
        jobs = [f"rate {number}" for number in range(CALLERS * cycles)]
        calls = sum(map(len, executor.map(partial(_cycle, client), jobs)))
    return calls / (time.perf_counter() - begin)


def _list(client: SnapshotClient, count: int) -> float:
    begin = time.perf_counter()
    listed = len(client.list())
    if listed != count + 1:
        raise RuntimeError(f"{listed} are listed, {count + 1} are there")
    return time.perf_counter() - begin


def _growth(server: _Server, count: int, pause: float) -> float:
    """Give the megabytes by which a process grows at most while it lists what it has."""
    before = _memory(server.pid, "VmRSS")
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")  # forget the most it ever had
    listed = 0
    for page in server.client.pages():
        listed += len(page)
        time.sleep(pause)  # it is what a slow reader does
    if listed != count + 1:
        raise RuntimeError(f"{listed} are listed, {count + 1} are there")
    return (_memory(server.pid, "VmHWM") - before) / MB


def _memory(pid: int, name: str) -> int:
    found = re.search(rf"{name}:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    if found is None:
        raise RuntimeError(f"process {pid} has no {name}")
    return int(found[1]) * 1024


def _size(count: int) -> float:
    """Give the megabytes of the labels of many snapshots."""
    return count * sum(len(name) + len(value) for name, value in LABELS.items()) / MB


def _fill_for_start(root: Path, socket: Path, count: int, *, lazy: bool) -> None:
    """Make layers on each other, and containers on the uppermost."""
    chains = [f"chain{number}" for number in range(LAYERS)]
    with running_snapshotter(root, socket, *(chains if lazy else ())):
        client = SnapshotClient(socket)
        top = ""
        for chain in chains:
            if lazy:
                top = _take_lazy_layer(client, chain, top)
            else:
                _make_layer(client, chain, top)
                top = chain
        for number in range(count):
            client.prepare(f"container {number}", top)
        client.close()


def _take_lazy_layer(client: SnapshotClient, chain: str, parent: str) -> str:
    """Have a layer that is not downloaded, and give its key."""
    try:
        client.prepare(f"extract {chain}", parent, {REF: chain})
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
            raise
    (found,) = client.list(f'labels."{REF}"=={chain}')
    return found.name


def _start(root: Path, socket: Path) -> tuple[float, float]:
    """Start a process, until it answers; gives seconds, and those of CPU."""
    begin = time.perf_counter()
    with running_snapshotter(root, socket) as process:
        client = SnapshotClient(socket)
        next(client.pages(), None)
        taken = time.perf_counter() - begin
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        client.close()
    return taken, sum(map(int, fields[11:13])) / TICKS
