"""A disk that is full: the snapshotter says so, loses nothing, and goes on when there is room."""

from __future__ import annotations

import subprocess
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Final

import grpc
import pytest

from tests.contracts.snapshots import refused
from tests.real.snapshot_client import SnapshotClient
from tests.real.snapshot_loop import upper_directory
from tests.real.snapshotter_process import running_snapshotter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FULL: Final = grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A small file system, of which nothing is reserved for root."""
    directory = tmp_path / "small"
    directory.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "small", directory], check=True
    )
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


@contextmanager
def serving(directory: Path) -> Iterator[SnapshotClient]:
    with (
        running_snapshotter(directory / "root", directory / "socket"),
        closing(SnapshotClient(directory / "socket")) as client,
    ):
        yield client


def fill_up(directory: Path) -> Path:
    """Leave nothing; return the file that takes it."""
    ballast = directory / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
    return ballast


def test_full_disk(small: Path) -> None:
    with serving(small) as client:
        written = upper_directory(client.prepare("active")) / "file"
        written.write_text("kept")
        for name in ("layer to be", "old", "older"):
            client.prepare(name)
        ballast = fill_up(small)
        with refused(FULL):
            client.prepare("one more")
        with refused(grpc.StatusCode.NOT_FOUND):
            client.stat("one more")
        with refused(FULL):
            client.commit("layer", "layer to be")
        assert client.mounts("layer to be")
        for name in ("old", "older"):
            client.remove(name)  # how containerd makes room
        client.cleanup()
        assert sorted(info.name for info in client.list()) == ["active", "layer to be"]
        assert len(list((small / "root/snapshots").iterdir())) == 2
        ballast.unlink()
        client.commit("layer", "layer to be")
        client.prepare("one more", "layer")
        assert written.read_text() == "kept"
    with serving(small) as client:
        assert sorted(info.name for info in client.list()) == ["active", "layer", "one more"]
        assert written.read_text() == "kept"


def test_start_on_a_full_disk(small: Path) -> None:
    with serving(small) as client:
        client.prepare("active")
        client.prepare("other")
    fill_up(small)
    with serving(small) as client:
        assert client.mounts("active")
        client.remove("other")
        assert [info.name for info in client.list()] == ["active"]
