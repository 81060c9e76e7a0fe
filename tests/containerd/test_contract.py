"""The contract of snapshotters: over lazyimg's service, and over containerd's own overlayfs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.contracts.snapshots import SnapshotsContract
from tests.real.containerd import running_containerd
from tests.real.snapshot_client import LEASE, NAMESPACE, SnapshotClient
from tests.real.snapshotter_process import running_snapshotter

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", params=["lazyimg", "containerd"])
def client(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SnapshotClient]:
    """Give a client of a service that nobody else uses."""
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "lazyimg":
        with running_snapshotter(directory / "root", directory / "socket"):
            client = SnapshotClient(directory / "socket")
            yield client
            client.close()
    else:
        with running_containerd(directory) as containerd:
            containerd.ctr("--namespace", NAMESPACE, "leases", "create", "--id", LEASE)
            client = SnapshotClient(directory / "socket", "overlayfs")
            yield client
            client.close()


class TestContract(SnapshotsContract):
    """The suite, over both."""
