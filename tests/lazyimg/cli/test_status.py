"""`lazyimg status`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from lazyimg.api.messages import (
    CompletionReport,
    HeldReport,
    QuarantineReport,
    RegistryReport,
    SnapshotterReport,
    StreamReport,
)
from tests.fakes.daemon import DIGEST, IMAGE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fakes.daemon import FakeDaemon
    from tests.lazyimg.cli.conftest import Result


@pytest.mark.usefixtures("daemon")
def test_status_without_mounts(run: Callable[..., Result]) -> None:
    assert run("status").out.splitlines() == [
        "version    0.1.0",
        "process    42, up 1 h 2 min",
        "supervisor 41, has started it again 3 times",
        "transport  cachefiles",
        "root       /var/lib/lazyimg",
        "reads      1000, 1 failed",
        "fetched    12.6 MB in 30 requests",
        "mounts     0",
    ]


@pytest.mark.usefixtures("daemon")
def test_status_with_a_mount(run: Callable[..., Result], tmp_path: Path) -> None:
    run("mount", IMAGE, str(tmp_path))
    lines = run("status").out.splitlines()
    assert lines[7:9] == ["mounts     1", ""]
    assert lines[10].split()[:3] == [IMAGE, str(tmp_path), "ro"]
    status = json.loads(run("status", "--json").out)
    assert status["mounts"][0]["directory"] == str(tmp_path)
    assert status["fetches"] == 30


def test_status_after_a_failure(run: Callable[..., Result], daemon: FakeDaemon) -> None:
    daemon.failure = "device: is away"
    lines = run("status").out.splitlines()
    assert lines[5:7] == ["reads       1000, 1 failed", "failed last device: is away"]
    assert json.loads(run("status", "--json").out)["failure"] == "device: is away"


def test_layers_that_are_read_whole(run: Callable[..., Result], daemon: FakeDaemon) -> None:
    daemon.streams = [
        StreamReport(layer="sha256:1", image="app:1: layer 2 of 3", size=40_000_000, done=5_000_000)
    ]
    said = "downloads  app:1: layer 2 of 3, which has no index: 5.0 MB of 40.0 MB"
    assert said in run("status").out.splitlines()
    assert json.loads(run("status", "--json").out)["streams"][0]["done"] == 5_000_000


@pytest.mark.parametrize(
    ("supervisor", "restarts", "line"),
    [
        (41, 0, "supervisor 41"),
        (41, 1, "supervisor 41, has started it again 1 time"),
        (0, 3, "supervisor none: if the process dies, mounts are lost"),
    ],
)
def test_supervisor(
    run: Callable[..., Result], daemon: FakeDaemon, supervisor: int, restarts: int, line: str
) -> None:
    daemon.supervisor, daemon.restarts = supervisor, restarts
    assert run("status").out.splitlines()[2] == line


def test_registries(run: Callable[..., Result], daemon: FakeDaemon) -> None:
    daemon.registries = [
        RegistryReport(host="mirror:5000", requests=7, failures=2, received=1000, rests=9.0),
        RegistryReport(host="registry.test", requests=30, failures=0, received=0, rests=0.0),
    ]
    assert run("status").out.splitlines()[8:] == [
        "",
        "REGISTRY       REQUESTS  FAILED  RECEIVED",
        "mirror:5000           7       2    1.0 kB  rests for 9 s",
        "registry.test        30       0       0 B",
    ]
    assert json.loads(run("status", "--json").out)["registries"][0]["host"] == "mirror:5000"


def test_snapshotter_without_images(run: Callable[..., Result], daemon: FakeDaemon) -> None:
    daemon.snapshotter = SnapshotterReport(images=[], lazy=0, unpacked={})
    assert run("status").out.splitlines()[8:] == [
        "layers      0 lazy, 0 unpacked",
        "since start 0 lazy, 0 unpacked",
        "containers  0",
        "completion  off: nobody checks what layers hold",
    ]


def test_images_of_containerd(run: Callable[..., Result], daemon: FakeDaemon) -> None:
    other = "sha256:" + "e" * 64
    problem = "a layer of format gzip cannot be loaded lazily"
    daemon.snapshotter = SnapshotterReport(
        images=[
            held("reg/lazy:1", DIGEST, lazy=5, containers=12),
            held("reg/mixed:1", DIGEST, lazy=3, unpacked=2, reason="format", problem=problem),
            held("reg/mixed:1", other, lazy=2),
            held(f"reg/digest@{other}", other, lazy=1),
            held("", unpacked=17, containers=3),
        ],
        lazy=4,
        unpacked={"registry": 2, "below": 7},
    )
    assert run("status").out.splitlines()[8:] == [
        "layers      11 lazy, 19 unpacked",
        "since start 4 lazy, 9 unpacked: 7 below, 2 registry",
        "containers  15",
        "completion  off: nobody checks what layers hold",
        "",
        "LAZY  UNPACKED  CONTAINERS  IMAGE OF THESE LAYERS",
        "   5         0          12  reg/lazy:1",
        "   3         2           0  reg/mixed:1@sha256:dddddddddddd",
        f"                              {problem}",
        "   2         0           0  reg/mixed:1@sha256:eeeeeeeeeeee",
        "   1         0           0  reg/digest@sha256:eeeeeeeeeeee",
        "   0        17           3  (no name)",
        "                              pulled without saying for which image; `lazyimg pull` does",
    ]
    report = json.loads(run("status", "--json").out)["snapshotter"]
    assert report["unpacked"] == {"registry": 2, "below": 7}
    assert report["images"][1]["reason"] == "format"


def completion(**changes: Any) -> SnapshotterReport:
    state: dict[str, Any] = {
        "current": "", "waiting": 0, "layers": 0, "lies": 0, "fetched": 0, "tight": False,
        "failures": {},
    }  # fmt: skip
    report = CompletionReport(**{**state, **changes})
    return SnapshotterReport(images=[], lazy=0, unpacked={}, completion=report)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["completion  nothing to do; 0 layers checked, 0 B fetched"]),
        (
            {"waiting": 2, "current": "reg/app@sha256:1", "layers": 7, "fetched": 3 << 20},
            ["completion  at reg/app@sha256:1, 1 more; 7 layers checked, 3.1 MB fetched"],
        ),
        (
            {"waiting": 1, "current": "reg/app@sha256:1", "tight": True},
            [
                "completion  waits for room in the cache, 1 waiting; 0 layers checked, 0 B fetched",
            ],
        ),
        (
            {"waiting": 1, "lies": 1, "failures": {"reg/app@sha256:1": "registry: is away"}},
            [
                "completion    1 waiting; 0 layers checked, 0 B fetched, 1 not what they should be",
                "not completed reg/app@sha256:1: registry: is away",
            ],
        ),
    ],
)
def test_completion(
    run: Callable[..., Result], daemon: FakeDaemon, changes: dict[str, Any], expected: list[str]
) -> None:
    daemon.snapshotter = completion(**changes)
    assert run("status").out.splitlines()[11:] == expected


def test_chains_that_must_not_be_used(run: Callable[..., Result], daemon: FakeDaemon) -> None:
    one = QuarantineReport(reference="reg/app@sha256:1", chain="sha256:2", problem="is another")
    daemon.snapshotter = SnapshotterReport(images=[], lazy=0, unpacked={}, quarantined=[one])
    assert run("status").out.splitlines()[13:] == [
        "MUST NOT BE USED: CHAIN  IMAGE OF THIS CHAIN",
        "sha256:2                 reg/app@sha256:1",
        "                           is another",
    ]


def held(
    name: str,
    digest: str = "",
    *,
    lazy: int = 0,
    unpacked: int = 0,
    containers: int = 0,
    reason: str = "",
    problem: str = "",
) -> HeldReport:
    return HeldReport(
        name=name,
        digest=digest,
        lazy=lazy,
        unpacked=unpacked,
        containers=containers,
        reason=reason,
        problem=problem,
    )


def test_no_daemon(run: Callable[..., Result]) -> None:
    assert run("status").code == 75
