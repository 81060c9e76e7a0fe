"""Ordinary images whose indexes are in the registry: one node makes them, others have them."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.real.docker_registry import Registry, running_registry
from tests.real.lazy_node import running_node
from tests.real.lazyimg_process import Lazyimg
from tests.real.plain_image import PlainImage, make_plain_image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real.safety import SafetyNet

LAYERS = 2
SIZE = 24 << 20
LIMIT = 300
FUSE = {"LAZYIMG_TRANSPORT": "fuse"}


class Pushed(NamedTuple):
    """A registry with an image of gzip layers; under the tag 2 it commits to its indexes."""

    registry: Registry
    image: PlainImage

    def tagged(self, tag: str) -> str:
        return f"{self.registry.address}/app:{tag}"


@pytest.fixture(scope="module")
def made(disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pushed]:
    """Have one node make the indexes."""
    directory = tmp_path_factory.mktemp("made")
    image = make_plain_image(directory, "app", seed=5, size=SIZE, layers=LAYERS)
    with (
        running_registry(directory) as registry,
        tempfile.TemporaryDirectory(dir=disk) as state,
    ):
        pushed = Pushed(registry, image)
        target = f"docker://{pushed.tagged('1')}"
        subprocess.run(
            ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false",
             image.reference, target],
            check=True, stdin=subprocess.DEVNULL, timeout=LIMIT,
        )  # fmt: skip
        node = Lazyimg(Path(state, "node"), FUSE)
        with node.serving():
            node.verb("index", "create", pushed.tagged("1"))
            said = node.verb("index", "push", pushed.tagged("1"), "--embed", "2")
            assert f"tagged {pushed.tagged('2')}" in said
            listed = json.loads(node.verb("index", "ls", pushed.tagged("2"), "--json"))
            assert all(one["committed"] == one["index"] and one["pushed"] for one in listed)
        yield pushed


@pytest.fixture
def pushed(made: Pushed) -> Pushed:
    """Count anew."""
    made.registry.counts.clear()
    return made


@pytest.fixture
def state(disk: Path, net: SafetyNet) -> Iterator[Path]:
    """Give a directory for a daemon's state, gone afterwards; `net` undoes what is left mounted."""
    with tempfile.TemporaryDirectory(dir=disk) as directory:
        yield Path(directory)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    directory = tmp_path / "mnt"
    directory.mkdir()
    return directory


def test_another_node_mounts_it_lazily(
    pushed: Pushed, state: Path, net: SafetyNet, target: Path
) -> None:
    node = Lazyimg(state / "node", FUSE)
    with node.serving():
        node.mount(pushed.tagged("2"), target)
        assert pushed.registry.counts.sent() < SIZE // 20  # documents and indexes
        net.run(["diff", "--recursive", pushed.image.files, target])
        node.unmount(target)


def test_what_refers_to_an_image_where_it_is_allowed(
    pushed: Pushed, state: Path, net: SafetyNet, target: Path
) -> None:
    node = Lazyimg(state / "node", FUSE | {"LAZYIMG_MOUNT_UNINDEXED": "refuse"})
    with node.serving():
        node.failure("mount", pushed.tagged("1"), target, status=67)
    node.settings["LAZYIMG_INDEXES_REFERRERS"] = "same-repository"
    with node.serving():
        node.mount(pushed.tagged("1"), target)
        assert pushed.registry.counts.sent() < SIZE // 20
        net.run(["diff", "--recursive", pushed.image.files, target])
        node.unmount(target)


def test_containerd_pulls_it_lazily(pushed: Pushed, state: Path) -> None:
    directory = state / "node"
    directory.mkdir()
    with running_node(directory, FUSE) as node:
        assert node.pull(pushed.tagged("2")) == {"lazy": LAYERS}
        assert pushed.registry.counts.sent() < SIZE // 20
        snapshots = node.containerd.ctr("snapshots", "--snapshotter", "lazyimg", "ls")
        assert len(snapshots.splitlines()) == 1 + LAYERS
        node.containerd.ctr("image", "rm", "--sync", pushed.tagged("2"))
