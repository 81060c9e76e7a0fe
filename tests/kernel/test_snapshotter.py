"""The snapshotter below the real containerd: layers that nobody downloaded."""

from __future__ import annotations

import json
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from lazyimg.snapshotter.lifecycle import REF
from lazyimg.snapshotter.proto import snapshots_pb2 as pb
from lazyimg_formats.containerd.labels import serialize_image_labels
from lazyimg_formats.oci.chain import chain_ids
from lazyimg_formats.oci.digest import Digest
from tests.contracts.snapshots import mounted
from tests.real.containerd import Containerd, running_containerd
from tests.real.debian_images import debian_images
from tests.real.docker_registry import Registry, running_registry
from tests.real.lazyimg_process import Lazyimg, mounts_below
from tests.real.plain_image import make_plain_image
from tests.real.snapshot_client import LEASE, NAMESPACE, SnapshotClient

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = "import json, ssl, asyncio; print(json.dumps('it runs'))"
PROXY_PLUGIN = """
[proxy_plugins.lazyimg]
type = "snapshot"
address = "{address}"
"""


@pytest.fixture(scope="module")
def registry(disk: Path) -> Iterator[Registry]:
    """A registry that has the image `python`, converted."""
    with (
        tempfile.TemporaryDirectory(dir=disk) as directory,
        running_registry(Path(directory)) as running,
    ):
        layout = debian_images().layout
        Lazyimg(disk / "nowhere").verb(
            "convert", f"oci:{layout}:python", f"{running.address}/python"
        )
        yield running


@pytest.fixture
def lazyimg(disk: Path) -> Iterator[Lazyimg]:
    """A place for a daemon with a snapshotter, gone afterwards."""
    with tempfile.TemporaryDirectory(dir=disk) as directory:
        state = Path(directory, "state")
        settings = {"LAZYIMG_SNAPSHOTTER_ADDRESS": str(state / "snapshotter.sock")}
        yield Lazyimg(state, settings)
        assert mounts_below(Path(directory)) == []


@contextmanager
def containerd_over(
    lazyimg: Lazyimg, directory: Path
) -> Iterator[tuple[Containerd, SnapshotClient]]:
    """Run containerd with lazyimg's snapshotter; give a client of its snapshots service, too."""
    plugin = PROXY_PLUGIN.format(address=lazyimg.settings["LAZYIMG_SNAPSHOTTER_ADDRESS"])
    with running_containerd(directory, plugin) as containerd:
        containerd.ctr("--namespace", NAMESPACE, "leases", "create", "--id", LEASE)
        client = SnapshotClient(directory / "socket", "lazyimg")
        yield containerd, client
        client.close()


def pull(client: SnapshotClient, lazyimg: Lazyimg, registry: Registry, name: str) -> str:
    """Prepare each layer of an image, as a pull does; give the uppermost one's key.

    The test fails when containerd would have to download one.
    """
    reference = f"{registry.address}/{name}"
    raw = lazyimg.verb("inspect", "--raw", reference)
    manifest = json.loads(raw)
    config = json.loads(registry.blob_path(manifest["config"]["digest"]).read_bytes())
    digest = Digest.of(raw.encode())
    layers: list[dict[str, Any]] = manifest["layers"]
    diff_ids = [Digest.parse(text) for text in config["rootfs"]["diff_ids"]]
    parent = ""
    for layer, chain in zip(layers, map(str, chain_ids(diff_ids)), strict=True):
        labels = serialize_image_labels(reference, digest, Digest.parse(layer["digest"]))
        with pytest.raises(grpc.RpcError) as caught:
            client.prepare(f"extract {chain}", parent, {**labels, REF: chain})
        assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS, caught.value.details()
        assert client.stat(chain).kind == pb.COMMITTED
        parent = chain
    return parent


def test_container_on_layers_that_were_not_downloaded(
    lazyimg: Lazyimg, registry: Registry, disk: Path, tmp_path: Path
) -> None:
    raw = lazyimg.verb("inspect", "--raw", f"{registry.address}/python")
    size = sum(layer["size"] for layer in json.loads(raw)["layers"])
    with (
        lazyimg.serving(),
        tempfile.TemporaryDirectory(dir=disk) as directory,
        containerd_over(lazyimg, Path(directory)) as (containerd, client),
    ):
        before = registry.counts.sent()
        top = pull(client, lazyimg, registry, "python")
        pulled = registry.counts.sent() - before
        told = client.prepare("container", top)
        with mounted(told, tmp_path / "root") as root:
            ran = subprocess.run(
                ["chroot", root, "python3", "-c", PROGRAM],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            assert ran.stdout == '"it runs"\n'
            (root / "written").write_text("x")
            assert client.mounts("container") == told
        read = registry.counts.sent() - before
        assert pulled < size / 20
        assert read < size / 4
        _, inodes = client.usage("container")
        assert inodes >= 2
        client.commit("changed", "container")
        assert registry.counts.sent() - before == read
        (view,) = client.view("view", "changed")
        assert view.type == "overlay"
        for key in ("view", "changed"):
            client.remove(key)
        containerd.ctr("--namespace", NAMESPACE, "leases", "delete", "--sync", LEASE)
        assert client.list() == []  # containerd has removed everything from below
        assert mounts_below(lazyimg.root / "mnt") == []


def test_container_of_an_image_that_was_pulled_without_its_layers(
    lazyimg: Lazyimg, registry: Registry, disk: Path
) -> None:
    image = f"{registry.address}/python:latest"
    layers = json.loads(lazyimg.verb("inspect", "--raw", image))["layers"]
    size = sum(layer["size"] for layer in layers)
    with (
        lazyimg.serving(),
        tempfile.TemporaryDirectory(dir=disk) as directory,
        containerd_over(lazyimg, Path(directory)) as (containerd, _),
    ):
        before = registry.counts.sent()
        socket = Path(directory, "socket")
        printed = json.loads(lazyimg.verb("pull", "--json", "--containerd", socket, image))
        assert printed["layers"] == {"lazy": len(layers)}
        assert registry.counts.sent() - before < size / 20
        command = ("python3", "-c", PROGRAM)
        options = ("--rm", "--cgroup", "", "--snapshotter", "lazyimg")  # not all kernels have all
        ran = containerd.ctr("run", *options, image, "test", *command)
        assert ran == '"it runs"\n'
        assert registry.counts.sent() - before < size / 4
        containerd.ctr("image", "rm", "--sync", image)
        listed = containerd.ctr("snapshots", "--snapshotter", "lazyimg", "ls")
        assert listed.splitlines()[1:] == []
        assert mounts_below(lazyimg.root / "mnt") == []


def test_status_says_which_images_are_lazy(
    lazyimg: Lazyimg, registry: Registry, disk: Path, tmp_path: Path
) -> None:
    lazy, plain = f"{registry.address}/small-lazy:1", f"{registry.address}/small-plain:1"
    image = make_plain_image(tmp_path, "lazy", seed=1, size=1 << 16)
    lazyimg.verb("convert", image.reference, lazy)
    image = make_plain_image(tmp_path, "plain", seed=2, size=1 << 16, layers=3)
    copy = ("skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false", "--quiet")
    subprocess.run([*copy, image.reference, f"docker://{plain}"], check=True)
    with tempfile.TemporaryDirectory(dir=disk) as directory:
        with lazyimg.serving(), containerd_over(lazyimg, Path(directory)) as (_, client):
            socket = Path(directory, "socket")
            pull = ("pull", "--json", "--namespace", NAMESPACE, "--containerd", socket)
            pulled = [json.loads(lazyimg.verb(*pull, name)) for name in (lazy, plain)]
            assert [one["layers"] for one in pulled] == [{"lazy": 2}, {"unpacked": 3}]
            for number, one in enumerate(pulled):
                client.prepare(f"container {number}", one["snapshot"])
            report = lazyimg.status()["snapshotter"]
            assert (report["lazy"], report["unpacked"]) == (2, {"format": 1, "below": 2})
            shown = lazyimg.verb("status")
            assert f"   2         0           1  {lazy}\n" in shown
            assert f"   0         3           1  {plain}\n" in shown
            assert "a layer of format gzip cannot be loaded lazily" in shown
            for number, _ in enumerate(pulled):
                client.remove(f"container {number}")
        with lazyimg.serving():
            after = lazyimg.status()["snapshotter"]
            assert (after["lazy"], after["unpacked"]) == (0, {})
            names = {one["name"]: (one["lazy"], one["unpacked"]) for one in after["images"]}
            assert names == {lazy: (2, 0), plain: (0, 3)}
