"""The daemon over the transports of this machine's own kernel: choice, takeover, what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.contracts.transports import eventually
from tests.real.docker_registry import Registry, running_registry
from tests.real.lazyimg_process import Lazyimg, kill_all, mounts_below, worker_of
from tests.real.plain_image import PlainImage, make_plain_image
from tests.real.safety import READING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real.safety import SafetyNet


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with running_registry(tmp_path) as running:
        yield running


@pytest.fixture
def lazyimg(disk: Path, net: SafetyNet) -> Iterator[Lazyimg]:
    """A daemon's place, gone afterwards; `net` undoes what is left mounted."""
    with tempfile.TemporaryDirectory(dir=disk) as directory:
        yield Lazyimg(Path(directory, "state"))
        assert mounts_below(Path(directory)) == []


@pytest.fixture
def image(tmp_path: Path, registry: Registry, lazyimg: Lazyimg) -> PlainImage:
    made = make_plain_image(tmp_path, "app", seed=5, size=4 << 20)
    lazyimg.verb("convert", made.reference, f"{registry.address}/app")
    return made


@pytest.fixture
def target(tmp_path: Path) -> Path:
    directory = tmp_path / "mnt"
    directory.mkdir()
    return directory


def assert_equal(net: SafetyNet, image: PlainImage, target: Path) -> None:
    """Compare a mount with what it was made of, by a process that the net watches."""
    net.run(["diff", "--recursive", image.files, target])


def test_automatic_choice(
    registry: Registry, lazyimg: Lazyimg, image: PlainImage, target: Path, net: SafetyNet
) -> None:
    checks = {check["name"]: check["ok"] for check in json.loads(lazyimg.verb("doctor", "--json"))}
    assert checks["transport fuse"]
    with lazyimg.serving():
        best = "cachefiles" if checks["transport cachefiles"] else "fuse"
        assert lazyimg.status()["transport"] == best
        lazyimg.mount(f"{registry.address}/app", target)
        assert_equal(net, image, target)
        lazyimg.unmount(target)


def test_images_have_no_fsid(registry: Registry, lazyimg: Lazyimg, image: PlainImage) -> None:
    lazyimg.settings["LAZYIMG_TRANSPORT"] = "fuse"
    with lazyimg.serving():
        said = lazyimg.failure("fsid", f"{registry.address}/app", status=64)
        assert "images are mounted from files here" in said


def test_connection_that_ends_has_the_worker_replaced(
    registry: Registry, lazyimg: Lazyimg, image: PlainImage, target: Path, net: SafetyNet
) -> None:
    lazyimg.settings["LAZYIMG_TRANSPORT"] = "fuse"
    with lazyimg.serving() as daemon:
        lazyimg.mount(f"{registry.address}/app", target)
        worker = worker_of(daemon)
        number = os.minor((lazyimg.root / "fuse").stat().st_dev)
        Path(f"/sys/fs/fuse/connections/{number}/abort").write_text("1")
        eventually(lambda: worker_of(daemon) not in {worker, None})
        eventually(lambda: lazyimg.status()["pid"] != worker)
        assert_equal(net, image, target)
        lazyimg.unmount(target)


@pytest.mark.parametrize("then", ["fuse", "fanotify"])
def test_both_killed_and_started_with_another_transport(
    registry: Registry,
    lazyimg: Lazyimg,
    image: PlainImage,
    target: Path,
    net: SafetyNet,
    then: str,
) -> None:
    lazyimg.settings["LAZYIMG_TRANSPORT"] = "fuse"
    with lazyimg.serving(ends=-signal.SIGKILL) as daemon:
        lazyimg.mount(f"{registry.address}/app", target)
        kill_all(daemon)
    lazyimg.settings["LAZYIMG_TRANSPORT"] = then
    with lazyimg.serving():
        assert lazyimg.status()["transport"] == then
        assert_equal(net, image, target)
        lazyimg.unmount(target)


@pytest.mark.parametrize("transport", ["fuse", "fanotify"])
def test_dead_mount_that_somebody_is_in_is_told(
    registry: Registry,
    lazyimg: Lazyimg,
    image: PlainImage,
    target: Path,
    net: SafetyNet,
    transport: str,
) -> None:
    """Until nobody is in it any more; who comes later finds the image in its place."""
    lazyimg.settings["LAZYIMG_TRANSPORT"] = transport
    with lazyimg.serving(ends=-signal.SIGKILL) as daemon:
        lazyimg.mount(f"{registry.address}/app", target)
        insider = subprocess.Popen(["cat"], cwd=target, stdin=subprocess.PIPE)
        kill_all(daemon)
    try:
        with lazyimg.serving():
            (mount,) = lazyimg.status()["mounts"]
            assert (mount["directory"], mount["dead"]) == (str(target), True)
            assert "is in a dead mount" in lazyimg.verb("mount")
            assert_equal(net, image, target)
            insider.communicate(timeout=READING)
            eventually(lambda: not lazyimg.status()["mounts"][0]["dead"])
            lazyimg.unmount(target)
    finally:
        insider.kill()


def test_validation_of_an_image_that_this_node_has_indexed(
    tmp_path: Path, lazyimg: Lazyimg
) -> None:
    image = make_plain_image(tmp_path, "plain", seed=6, size=4 << 20)
    lazyimg.settings["LAZYIMG_TRANSPORT"] = "fuse"
    with lazyimg.serving():
        found = json.loads(lazyimg.verb("validate", image.reference, "--json", "-q"))["layers"]
        assert [(layer["format"], layer["index"]) for layer in found] == [("gzip", "")] * 2
        lazyimg.verb("index", "create", "--local", image.reference)
        found = json.loads(lazyimg.verb("validate", image.reference, "--json", "-q"))["layers"]
        indexes = {layer.layer: layer.index for layer in lazyimg.client.indexes().layers}
        assert {layer["digest"]: layer["index"] for layer in found} == indexes
        assert [layer["problem"] for layer in found] == [""] * 2
        path = lazyimg.root / "content" / found[0]["index"].partition(":")[2]
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        found = lazyimg.verb("validate", image.reference, "--json", "-q", status=68)
        problems = [layer["problem"] for layer in json.loads(found)["layers"]]
    assert problems == ["the index that this node made of it is gone", ""]
