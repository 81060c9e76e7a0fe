"""`lazyimg pull` into the real containerd, through its own snapshotters: nothing is lazy there.

Needs root and the Debian packages containerd and docker-registry.
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.real.containerd import Containerd, running_containerd
from tests.real.docker_registry import Registry, running_registry
from tests.real.lazyimg_process import Lazyimg
from tests.real.plain_image import make_plain_image

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LAYERS = 3


class Pulls(NamedTuple):
    """A registry with an image, converted, and a containerd that does not have it."""

    registry: Registry
    containerd: Containerd
    lazyimg: Lazyimg
    files: Path

    def pull(self, *arguments: str) -> dict[str, object]:
        """Pull the image; give what is printed."""
        socket = str(self.containerd.directory / "socket")
        printed: dict[str, object] = json.loads(
            self.lazyimg.verb("pull", "--json", "--containerd", socket, *arguments, self.reference)
        )
        return printed

    @property
    def reference(self) -> str:
        return f"{self.registry.address}/plain:1"


@pytest.fixture
def pulls(tmp_path: Path) -> Iterator[Pulls]:
    image = make_plain_image(tmp_path, "plain", seed=1, size=4 << 20, layers=LAYERS)
    lazyimg = Lazyimg(tmp_path / "nowhere")
    directory = tmp_path / "registry"
    directory.mkdir()
    with (
        running_registry(directory) as registry,
        running_containerd(tmp_path / "containerd") as containerd,
    ):
        made = Pulls(registry, containerd, lazyimg, image.files)
        lazyimg.verb("convert", image.reference, made.reference)
        yield made


def test_image_is_listed_and_mounted(pulls: Pulls) -> None:
    printed = pulls.pull("--snapshotter", "overlayfs")
    assert printed["layers"] == {"unpacked": LAYERS}
    (line,) = pulls.containerd.ctr("image", "ls").splitlines()[1:]
    assert line.split()[:3] == [pulls.reference, printed["media_type"], printed["digest"]]
    with pulls.containerd.mounted(pulls.reference) as root:
        subprocess.run(["diff", "--recursive", pulls.files, root], check=True)
    check = pulls.containerd.ctr("image", "check", f"name=={pulls.reference}")
    assert f"complete ({LAYERS + 1}/{LAYERS + 1})" in check  # config and layers
    assert pulls.containerd.ctr("leases", "ls", "--quiet") == ""


def test_second_pull_downloads_nothing(pulls: Pulls) -> None:
    pulls.pull("--snapshotter", "native")
    before = pulls.registry.counts.sent()
    assert pulls.pull("--snapshotter", "native")["layers"] == {"present": LAYERS}
    assert pulls.registry.counts.sent() - before < 10_000


def test_collector_keeps_what_is_listed_and_nothing_else(pulls: Pulls) -> None:
    ctr = pulls.containerd.ctr
    printed = pulls.pull("--snapshotter", "overlayfs")
    ctr("leases", "create", "--id", "other")
    ctr("leases", "delete", "--sync", "other")
    assert len(ctr("content", "ls", "--quiet").split()) == LAYERS + 2
    assert str(printed["snapshot"]) in ctr("snapshots", "ls")
    ctr("image", "rm", "--sync", pulls.reference)
    assert ctr("content", "ls", "--quiet") == ""
    assert ctr("snapshots", "ls").splitlines()[1:] == []


def test_two_namespaces_share_what_was_downloaded(pulls: Pulls) -> None:
    pulls.pull("--snapshotter", "overlayfs")
    pulls.pull("--snapshotter", "overlayfs", "--namespace", "other")
    first = pulls.containerd.ctr("content", "ls", "--quiet")
    assert pulls.containerd.ctr("--namespace", "other", "content", "ls", "--quiet") == first
    assert pulls.reference in pulls.containerd.ctr("--namespace", "other", "image", "ls", "-q")


def test_pull_beside_ctr(pulls: Pulls) -> None:
    pulls.pull("--snapshotter", "overlayfs")
    pulls.containerd.ctr("image", "pull", "--plain-http", pulls.reference)
    assert pulls.pull("--snapshotter", "overlayfs")["layers"] == {"present": LAYERS}


def test_snapshotter_that_containerd_does_not_have(pulls: Pulls) -> None:
    socket = pulls.containerd.directory / "socket"
    line = pulls.lazyimg.failure("pull", "--containerd", socket, pulls.reference, status=78)
    assert f"containerd at {socket}: has no snapshotter 'lazyimg'; add to " in line
    assert pulls.containerd.ctr("leases", "ls", "--quiet") == ""
