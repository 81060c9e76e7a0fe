"""Images are completed and checked below the real containerd; two have one chain, and one lies."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
import pytest

from tests.contracts.snapshots import mounted
from tests.fakes.lazy_image import lying_layer, make_lazy_layer
from tests.real.docker_registry import Registry, running_registry
from tests.real.lazy_layers import write_layout
from tests.real.lazy_node import LAZY, Node, running_node
from tests.real.lazyimg_process import Lazyimg, mounts_below, worker_of
from tests.real.snapshot_client import LEASE, NAMESPACE, SnapshotClient

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

NOISE: Final = random.Random(1).randbytes(12 << 20)  # noqa: S311 - any bytes that stay
BASE: Final = {"etc/base": b"base\n", "lib/data": NOISE[: 1 << 20]}
HONEST: Final = {"etc/name": b"honest\n", "bin/tool": NOISE[:300_000], "lib/zeros": bytes(1 << 20)}
PLANTED: Final = {**HONEST, "etc/name": b"planted"}
LARGE: Final = {"etc/name": b"large\n", "lib/noise": NOISE}
RATE: Final = "LAZYIMG_COMPLETION_BYTES_PER_SECOND"
LIMIT: Final = 60.0
"""Seconds that completing a small image may take."""


@pytest.fixture(scope="module")
def registry(disk: Path) -> Iterator[Registry]:
    """A registry that has `honest` and `liar`, of the same chains, and `large`."""
    base, honest, planted, large = (
        asyncio.run(make_lazy_layer(files)) for files in (BASE, HONEST, PLANTED, LARGE)
    )
    images = {
        "honest": [base, honest],
        "liar": [base, lying_layer(honest, planted)],
        "large": [base, large],
    }
    with (
        tempfile.TemporaryDirectory(dir=disk) as directory,
        running_registry(Path(directory)) as running,
    ):
        layout = write_layout(Path(directory, "layout"), images)
        for name in images:
            target = f"{running.address}/{name}:1"
            Lazyimg(disk / "nowhere").verb("convert", f"oci:{layout}:{name}", target)
        yield running


class Host:
    """A node, the registry that it pulls from, and a client of its containerd's snapshots."""

    def __init__(self, node: Node, registry: Registry, target: Path) -> None:
        self.node = node
        self.registry = registry
        self.client = SnapshotClient(node.containerd.directory / "socket", LAZY)
        self._target = target
        node.containerd.ctr("--namespace", NAMESPACE, "leases", "create", "--id", LEASE)

    def pull(self, name: str) -> dict[str, int]:
        return self.node.pull(f"{self.registry.address}/{name}:1", NAMESPACE)

    def remove(self, name: str) -> None:
        """Remove an image, if it is there."""
        image = f"{self.registry.address}/{name}:1"
        ctr = partial(self.node.containerd.ctr, "--namespace", NAMESPACE, "image")
        if image in ctr("ls", "-q").split():
            ctr("rm", "--sync", image)

    def top(self) -> str:
        """Give the key of the uppermost committed snapshot."""
        infos = self.client.list()
        parents = {info.parent for info in infos}
        (top,) = [one.name for one in infos if one.name not in parents]
        return top

    @contextmanager
    def container(self, key: str, parent: str) -> Iterator[Path]:
        """Stand on a snapshot, as a container does."""
        with mounted(self.client.prepare(key, parent), self._target / key) as root:
            yield root
        self.client.remove(key)

    @property
    def status(self) -> dict[str, Any]:
        snapshotter: dict[str, Any] = self.node.lazyimg.status()["snapshotter"]
        return snapshotter

    def wait(self, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Wait until the snapshotter's status is so, and give it."""
        end = time.monotonic() + LIMIT
        while not condition(status := self.status):
            assert time.monotonic() < end, status
            time.sleep(0.1)
        return status


@pytest.fixture(scope="module")
def node_of_all(
    registry: Registry, disk: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    """One node for all tests: it takes long to start."""
    with tempfile.TemporaryDirectory(dir=disk) as directory:
        with running_node(Path(directory), {RATE: "3MiB"}) as node:
            host = Host(node, registry, tmp_path_factory.mktemp("containers"))
            yield host
            host.client.close()
        assert mounts_below(Path(directory)) == []


@pytest.fixture
def host(node_of_all: Host) -> Iterator[Host]:
    """The node, without images before and after."""
    yield node_of_all
    for name in ("honest", "liar", "large"):
        node_of_all.remove(name)
    node_of_all.wait(is_idle)
    assert node_of_all.client.list() == []


def is_idle(status: dict[str, Any]) -> bool:
    return bool(status["completion"]["waiting"] == 0)


def names(status: dict[str, Any]) -> list[str]:
    """Give the repositories of what is quarantined."""
    return [one["reference"].partition("@")[0].rpartition("/")[2] for one in status["quarantined"]]


def found(status: dict[str, Any]) -> tuple[int, int]:
    """Give how many layers were good, and how many were not, since the daemon's start."""
    return status["completion"]["layers"], status["completion"]["lies"]


def test_image_that_is_removed_meanwhile(host: Host) -> None:
    host.pull("large")
    with host.container("one", host.top()):
        host.wait(lambda status: status["completion"]["current"])
    host.remove("large")
    status = host.wait(lambda status: not status["completion"]["current"])
    assert (is_idle(status), status["completion"]["failures"]) == (True, {})


def test_image_is_local_after_its_first_container(host: Host, registry: Registry) -> None:
    fetched = host.status["completion"]["fetched"]
    assert host.pull("honest") == {"lazy": 2}
    assert host.status["completion"]["fetched"] == fetched
    with host.container("one", host.top()) as root:
        host.wait(is_idle)
        before = registry.counts.sent()
        for name, data in {**BASE, **HONEST}.items():
            assert (root / name).read_bytes() == data
        assert registry.counts.sent() == before
    with host.container("two", host.top()):
        assert is_idle(host.status)


def test_honest_image_first(host: Host) -> None:
    assert host.pull("honest") == {"lazy": 2}
    assert host.pull("liar") == {"present": 2}
    with host.container("one", host.top()) as root:
        assert (root / "etc/name").read_bytes() == HONEST["etc/name"]
        status = host.wait(is_idle)
        assert status["quarantined"] == []
    host.remove("honest")
    with host.container("two", host.top()) as root:
        assert (root / "etc/name").read_bytes() == HONEST["etc/name"]


def test_worker_that_is_killed_meanwhile(host: Host, registry: Registry) -> None:
    fetched = host.status["completion"]["fetched"]
    host.pull("large")
    with host.container("one", host.top()) as root:
        host.wait(lambda status: status["completion"]["fetched"] > fetched + (4 << 20))
        kill_worker(host.node.daemon)
        status = host.wait(is_idle)
        assert found(status) == (1, 0)
        before = registry.counts.sent()
        for name, data in {**BASE, **LARGE}.items():
            assert (root / name).read_bytes() == data
        assert registry.counts.sent() == before


def test_liar_first(host: Host) -> None:
    good, lies = found(host.status)
    assert host.pull("liar") == {"lazy": 2}
    top = host.top()
    assert host.pull("honest") == {"present": 2}  # it takes what was planted
    with host.container("one", top) as root:
        assert (root / "etc/name").read_bytes() == PLANTED["etc/name"]
        status = host.wait(lambda status: status["quarantined"])
        assert names(status) == ["liar"]
        assert (
            "b'etc/name', before byte 7: not the bytes of its tar"
            in (status["quarantined"][0]["problem"])
        )
        assert found(status) == (good, lies + 1)
        with pytest.raises(grpc.RpcError) as caught:
            host.client.prepare("two", top)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "is not what it says: layer 2 of 2, " in str(caught.value.details())
        assert (root / "bin/tool").read_bytes() == HONEST["bin/tool"]  # it goes on
    for name in ("honest", "liar"):
        host.remove(name)
    assert host.status["quarantined"] == []
    assert host.pull("honest") == {"lazy": 2}
    with host.container("three", host.top()) as root:
        assert (root / "etc/name").read_bytes() == HONEST["etc/name"]
        assert host.wait(is_idle)["quarantined"] == []
    host.remove("honest")
    assert host.pull("liar") == {"lazy": 1, "unpacked": 1}  # it is known; and checked now
    with host.container("four", host.top()) as root:
        assert (root / "etc/name").read_bytes() == HONEST["etc/name"]


def kill_worker(daemon: subprocess.Popen[bytes]) -> None:
    worker = worker_of(daemon)
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
