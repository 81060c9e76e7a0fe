"""What the snapshotter holds after many snapshots came and went: no more than before."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Final

from tests.contracts.snapshots import mounted
from tests.real.held import look_at, settled
from tests.real.scale import scaled
from tests.real.snapshot_client import SnapshotClient
from tests.real.snapshotter_process import running_snapshotter

if TYPE_CHECKING:
    from pathlib import Path

CYCLES: Final = scaled(500)
WARMING: Final = 20  # cycles until pools of threads and caches have their size


def cycle(client: SnapshotClient, target: Path) -> None:
    """Make two layers and a container on them; write; remove it all."""
    parent = ""
    for layer in ("base", "top"):
        with mounted(client.prepare(f"extract {layer}", parent), target) as root:
            (root / layer).write_text(layer)
        client.commit(layer, f"extract {layer}")
        parent = layer
    with mounted(client.prepare("container", parent), target) as root:
        assert {path.name for path in root.iterdir()} == {"base", "top"}
        (root / "base").unlink()
    client.view("view", parent)
    assert len(client.list()) == 4
    client.usage("container")
    for key in ("view", "container", "top", "base"):
        client.remove(key)


def test_snapshots_leak_nothing(tmp_path: Path) -> None:
    root = tmp_path / "root"
    directories = [root / name for name in ("snapshots", "removed")]
    with (
        running_snapshotter(root, tmp_path / "socket") as process,
        closing(SnapshotClient(tmp_path / "socket")) as client,
    ):
        for _ in range(WARMING):
            cycle(client, tmp_path / "target")
        client.cleanup()
        before = look_at(process.pid, *directories)
        assert before.entries == 0
        for _ in range(CYCLES):
            cycle(client, tmp_path / "target")
        client.cleanup()
        after = settled(process.pid, before, *directories)
        assert after.is_no_more_than(before), (before, after)
        assert client.list() == []
