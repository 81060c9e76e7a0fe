"""Later containerds over the real kernel: images that nobody downloaded run.

By default the newest with its own client, and 1.7 with `lazyimg pull`; with LAZYIMG_TEST_SCALE=1
all clients with both.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from lazyimg_formats.zstd_chunked.location import POSITION
from tests.real.containerd_versions import (
    SUITES,
    Containerd,
    path_with,
    running_version,
)
from tests.real.debian_packages import unpacked
from tests.real.docker_registry import Registry, running_registry
from tests.real.lazyimg_process import Lazyimg, mounts_below
from tests.real.scale import scaled
from tests.real.shell_image import TEXT, make_shell_image

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND: Final = ("sh", "-c", 'cat /data/text; echo "$0" > /data/text; cat /data/text', "written")
USER_NAMESPACE: Final = (
    "--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536", "--remap-labels"
)  # fmt: skip
PRINTED: Final = f"{TEXT}written\n"


class Node(NamedTuple):
    """A daemon, a containerd that calls it, and a registry with a converted image."""

    lazyimg: Lazyimg
    containerd: Containerd
    registry: Registry
    image: str

    def pull(self, program: Path, *verb: str) -> None:
        """Pull the image; of its blobs, only config and layers' indexes may leave the registry."""
        manifest = json.loads(self.lazyimg.verb("inspect", "--raw", self.image))
        self.registry.counts.clear()
        self.containerd.run(program, *verb, "--snapshotter", "lazyimg", self.image)
        asked = {
            (one.path.rpartition("/")[2], (one.range or "").partition("-")[0])
            for one in self.registry.counts.blob_reads()
        }
        indexes = {
            (layer["digest"], f"bytes={layer['annotations'][POSITION].partition(':')[0]}")
            for layer in manifest["layers"]
        }
        assert {digest for digest, _ in asked - indexes} == {manifest["config"]["digest"]}

    def run_and_remove(self) -> None:
        """Run containers of the image; then remove the image, and all that it had."""
        for further in ((), USER_NAMESPACE):
            options = ("--rm", "--cgroup", "", "--snapshotter", "lazyimg", *further)
            ran = self.containerd.ctr("run", *options, self.image, "test", *COMMAND)
            assert ran == PRINTED
        self.containerd.ctr("image", "rm", "--sync", self.image)
        assert self.containerd.snapshots("lazyimg") == []
        assert mounts_below(self.lazyimg.root / "mnt") == []


@pytest.fixture(scope="module")
def registry(disk: Path) -> Iterator[tuple[Registry, str]]:
    with (
        tempfile.TemporaryDirectory(dir=disk) as directory,
        running_registry(Path(directory)) as running,
    ):
        image = f"{running.address}/shell:latest"
        source = make_shell_image(Path(directory), "shell")
        Lazyimg(disk / "nowhere").verb("convert", source, image)
        yield running, image


@pytest.fixture(scope="module")
def node(
    request: pytest.FixtureRequest, disk: Path, registry: tuple[Registry, str]
) -> Iterator[Node]:
    """Run a daemon, and a containerd as `lazyimg setup` sets it up."""
    with tempfile.TemporaryDirectory(dir=disk) as directory, daemon(Path(directory)) as lazyimg:
        Path(directory).chmod(0o711)  # for user namespaces, whose root is nobody here
        suite: str = request.param
        lazyimg.settings["PATH"] = path_with(suite)
        none = Path(directory, "none")
        lines = lazyimg.verb("setup", "containerd", "--file", none, "--print")
        with running_version(suite, Path(directory, "containerd"), lines) as containerd:
            yield Node(lazyimg, containerd, *registry)
        assert mounts_below(lazyimg.root / "mnt") == []


@contextmanager
def daemon(directory: Path) -> Iterator[Lazyimg]:
    state = directory / "state"
    settings = {"LAZYIMG_SNAPSHOTTER_ADDRESS": str(state / "snapshotter.sock")}
    lazyimg = Lazyimg(state, settings)
    with lazyimg.serving():
        yield lazyimg


TRANSFER_SERVICE: Final = ("sid", "transfer service")
OTHERS: Final = [
    (suite, client) for suite in SUITES for client in ("lazyimg", "ctr-remote", "soci")
]
PULLS: Final = [TRANSFER_SERVICE, *OTHERS][: scaled(1 + len(OTHERS), least=2)]


@pytest.mark.parametrize(("node", "client"), PULLS, indirect=["node"])
def test_container_of_an_image_that_was_pulled_lazily(node: Node, client: str) -> None:
    programs = node.containerd.programs
    match client:
        case "lazyimg":
            containerd = ("--containerd", str(node.containerd.socket))
            printed = json.loads(node.lazyimg.verb("pull", "--json", *containerd, node.image))
            assert printed["layers"] == {"lazy": 2}
        case "transfer service":
            node.pull(programs / "ctr", "image", "pull", "--plain-http")
        case "ctr-remote":
            programs = unpacked("trixie", "stargz-snapshotter") / "usr/bin"
            node.pull(programs / client, "images", "rpull", "--plain-http")
        case "soci":
            programs = unpacked("trixie", "soci-snapshotter") / "usr/bin"
            node.pull(programs / client, "image", "rpull", "--plain-http")
    node.run_and_remove()
