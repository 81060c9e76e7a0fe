"""Pods of containerd's CRI on lazily loaded images, as a kubelet would run them.

What containerd keeps is on ext4; its state, its socket and those of lazyimg are on tmpfs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc
import pytest

from tests.real.containerd import Containerd, running_containerd
from tests.real.cri_client import Cri, open_cri
from tests.real.cri_images import LARGE, LAYERS, MIDDLE, TOOL, write_images
from tests.real.docker_registry import PASSWORD, USER, Registry, running_registry
from tests.real.eventually import eventually
from tests.real.lazyimg_process import Lazyimg, mounts_below

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIGURATION: Final = """\
version = 2
root = "{root}"
state = "{directory}/state"
disabled_plugins = [
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = "{directory}/socket"
[proxy_plugins.lazyimg]
type = "snapshot"
address = "{snapshotter}"
[plugins."io.containerd.grpc.v1.cri"]
restrict_oom_score_adj = true
sandbox_image = "{pause}"
stats_collect_period = 1
[plugins."io.containerd.grpc.v1.cri".cni]
conf_dir = "{directory}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "lazyimg"
disable_snapshot_annotations = false
"""

LIST_SNAPSHOTS: Final = ("-n", "k8s.io", "snapshots", "--snapshotter", "lazyimg", "ls")


@pytest.fixture(scope="module")
def registry(disk: Path) -> Iterator[Registry]:
    """A registry with the images `small` and `tall`, converted, and `pause`, as it is."""
    with (
        tempfile.TemporaryDirectory(dir=disk) as name,
        running_registry(Path(name)) as running,
    ):
        layout = Path(name, "layout")
        write_images(Path(name), layout)
        for tag in ("small", "tall"):
            Lazyimg(Path(name, "nowhere")).verb(
                "convert", f"oci:{layout}:{tag}", f"{running.address}/{tag}"
            )
        subprocess.run(
            ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:pause",
             f"docker://{running.address}/pause:latest"],
            check=True,
        )  # fmt: skip
        yield running


@pytest.fixture
def private(registry: Registry) -> Iterator[Registry]:
    """The same images, for those only who have a password."""
    with running_registry(registry.storage.parent, credentials=True) as running:
        yield running


@dataclass
class Node:
    """A machine with containerd and lazyimg.

    Attributes:
        containerd: as it runs.
        lazyimg: its daemon.
        cri: a client of containerd's CRI.
        images: the socket of lazyimg's image service.
    """

    containerd: Containerd
    lazyimg: Lazyimg
    cri: Cri
    images: Path
    daemon: ExitStack

    def restart_lazyimg(self) -> None:
        """Stop the daemon, supervisor and worker, and start another one."""
        self.daemon.close()
        self.daemon.enter_context(self.lazyimg.serving())
        self.wait_for_snapshotter()

    def records(self) -> str:
        """Return what lazyimg has written down: all its files, but for what images hold."""
        others = {"cache", "mnt"}
        return "".join(
            path.read_text("latin-1")
            for path in self.lazyimg.root.rglob("*")
            if others.isdisjoint(path.parts) and path.is_file()
        )

    @contextmanager
    def kubelet(self, *, version: str = "v1") -> Iterator[Cri]:
        """Give a client that has images pulled through lazyimg."""
        socket = self.containerd.directory / "socket"
        with open_cri(socket, self.images, version=version) as cri:
            yield cri

    def wait_for_snapshotter(self) -> None:
        """Wait until containerd reaches it again: of each snapshot that there is, it is asked.

        What containerd has to remove before then, it tries again when it next collects.
        """
        socket = str(self.containerd.directory / "socket")
        command = ["ctr", "--address", socket, *LIST_SNAPSHOTS]
        eventually(
            lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0
        )

    def snapshots(self) -> list[str]:
        """Return the snapshots that there are."""
        return self.containerd.ctr(*LIST_SNAPSHOTS).splitlines()[1:]

    def content(self) -> list[str]:
        """Return the digests of what containerd has downloaded."""
        return self.containerd.ctr("-n", "k8s.io", "content", "ls", "--quiet").split()

    def is_free(self) -> bool:
        """Tell whether nothing is left of all images."""
        return (
            self.snapshots() == []
            and self.content() == []
            and mounts_below(self.lazyimg.root / "mnt") == []
        )


@pytest.fixture(scope="module")
def machine(disk: Path, registry: Registry) -> Iterator[Node]:
    """Run containerd over lazyimg."""
    with (
        tempfile.TemporaryDirectory(dir=disk) as kept,
        tempfile.TemporaryDirectory(dir="/run") as sockets,
    ):
        directory = Path(sockets)
        addresses = {
            "LAZYIMG_ADDRESS": directory / "lazyimg.sock",
            "LAZYIMG_SNAPSHOTTER_ADDRESS": directory / "snapshotter.sock",
            "LAZYIMG_IMAGE_SERVICE_ADDRESS": directory / "images.sock",
            "LAZYIMG_IMAGE_SERVICE_CONTAINERD": directory / "containerd" / "socket",
        }
        settings = {name: str(path) for name, path in addresses.items()}
        settings["LAZYIMG_COMPLETION_BYTES_PER_SECOND"] = "0"  # what is read is fetched, no more
        lazyimg = Lazyimg(Path(kept, "lazyimg"), settings)
        configuration = (
            CONFIGURATION.replace("{root}", f"{kept}/containerd")
            .replace("{snapshotter}", settings["LAZYIMG_SNAPSHOTTER_ADDRESS"])
            .replace("{pause}", f"{registry.address}/pause:latest")
        )
        with ExitStack() as daemon:
            daemon.enter_context(lazyimg.serving())  # first, as systemd does it
            with (
                running_containerd(
                    directory / "containerd", configuration=configuration
                ) as started,
                open_cri(directory / "containerd" / "socket") as cri,
            ):
                yield Node(started, lazyimg, cri, directory / "images.sock", daemon)
        assert mounts_below(Path(kept)) == []


@pytest.fixture
def node(machine: Node) -> Iterator[Node]:
    """Give the machine, on which nothing is left of any image afterwards."""
    yield machine
    for image in machine.cri.list_images():
        machine.cri.remove_image(image.id)
    eventually(machine.is_free)


def layers_of(registry: Registry, name: str) -> dict[str, int]:
    """Return the sizes of an image's layers."""
    reference = f"docker://{registry.address}/{name}:latest"
    command = ["skopeo", "inspect", "--raw", "--tls-verify=false", reference]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return {layer["digest"]: layer["size"] for layer in json.loads(raw)["layers"]}


def test_pod_of_an_image_that_was_not_downloaded(node: Node, registry: Registry) -> None:
    image = f"{registry.address}/small:latest"
    layers = layers_of(registry, "small")
    assert sum(layers.values()) > len(MIDDLE + LARGE)
    before = registry.counts.sent()
    identity = node.cri.pull(image)
    assert registry.counts.sent() - before < len(MIDDLE) / 10
    assert layers.keys().isdisjoint(node.content())
    found = node.cri.image(image)
    assert found is not None
    assert (found.id, list(found.repo_tags)) == (identity, [image])
    with node.cri.pod("pod") as pod, pod.container(image, [TOOL]) as container:
        assert container.run(TOOL, "/name", "/middle") == b"base\n" + MIDDLE
        assert registry.counts.sent() - before < len(LARGE)
        container.run(TOOL, "-w", "/written")
        eventually(lambda: container.written()[0] >= 1 << 20)
        assert container.written()[1] >= 2
        assert len(node.cri.images_usage()) == 1


def test_image_of_more_layers_than_a_label_holds(node: Node, registry: Registry) -> None:
    image = f"{registry.address}/tall:latest"
    layers = layers_of(registry, "tall")
    assert sum(len(digest) + 1 for digest in layers) > 4096
    node.cri.pull(image)
    assert layers.keys().isdisjoint(node.content())
    assert len(node.snapshots()) == LAYERS
    numbers = (1, LAYERS // 2, LAYERS - 1)
    with node.cri.pod("pod") as pod, pod.container(image, [TOOL]) as container:
        written = container.run(TOOL, "/name", *(f"/layers/{number}" for number in numbers))
        assert written.decode() == "base\n" + "".join(f"layer {number}\n" for number in numbers)


def test_image_that_is_read_with_what_came_with_its_pull(node: Node, private: Registry) -> None:
    image = f"{private.address}/small:latest"
    with node.kubelet() as kubelet:
        for auth in ({}, {"username": USER, "password": "wrong"}):
            with pytest.raises(grpc.RpcError, match="failed to resolve reference"):
                kubelet.pull(image, **auth)
        kubelet.pull(image, username=USER, password=PASSWORD)
        assert private.counts.sent() < len(MIDDLE)
        with kubelet.pod("pod") as pod, pod.container(image, [TOOL]) as container:
            assert container.run(TOOL, "/name") == b"base\n"
            os.kill(node.lazyimg.status()["pid"], signal.SIGKILL)  # the next one knows them
            assert container.run(TOOL, "/middle") == MIDDLE
            node.wait_for_snapshotter()
    assert PASSWORD not in node.records()


def test_image_service_of_the_kubelets_before_1_26(node: Node, private: Registry) -> None:
    with node.kubelet(version="v1alpha2") as kubelet:
        image = f"{private.address}/small:latest"
        kubelet.pull(image, username=USER, password=PASSWORD)
        assert private.counts.sent() < len(MIDDLE)
        assert [image in one.repo_tags for one in kubelet.list_images()].count(True) == 1


def test_image_whose_credentials_are_gone_starts_and_reads_what_is_local(
    node: Node, private: Registry
) -> None:
    image = f"{private.address}/small:latest"
    with node.kubelet() as kubelet:
        kubelet.pull(image, username=USER, password=PASSWORD)
        with kubelet.pod("pod") as pod:
            with pod.container(image, [TOOL]) as container:
                assert container.run(TOOL, "/middle") == MIDDLE
            node.restart_lazyimg()
            with pod.container(image, [TOOL]) as container:
                assert container.run(TOOL, "/middle") == MIDDLE
                container.run(TOOL, "/large", status=1)
                failure = node.lazyimg.status()["failure"]
                assert "have it pulled again through lazyimg's image service" in failure
                kubelet.pull(image, username=USER, password=PASSWORD)
                assert container.run(TOOL, "/large") == LARGE


def test_image_whose_credentials_are_not_known_is_unpacked(node: Node, private: Registry) -> None:
    image = f"{private.address}/small:latest"
    node.cri.pull(image, username=USER, password=PASSWORD)  # past lazyimg
    assert private.counts.sent() > len(LARGE)
    (report,) = node.lazyimg.status()["snapshotter"]["images"]
    assert (report["lazy"], report["unpacked"], report["reason"]) == (0, 3, "access-denied")
    with node.cri.pod("pod") as pod, pod.container(image, [TOOL]) as container:
        assert container.run(TOOL, "/name", "/middle") == b"base\n" + MIDDLE
