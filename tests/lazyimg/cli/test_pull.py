"""`lazyimg pull`: what is printed, how it fails, and what it leaves."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, NamedTuple

import grpc
import pytest

from lazyimg_formats.oci.chain import chain_ids
from tests.fakes.containerd import FakeContainerd, running_containerd
from tests.fakes.lazy_image import add_lazy_image, make_lazy_layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lazyimg_formats.oci.documents import Descriptor
    from tests.fakes.registry import FakeRegistry
    from tests.lazyimg.cli.conftest import Result


class Image(NamedTuple):
    """An image of two layers in the registry."""

    reference: str
    manifest: Descriptor
    chains: list[str]


@pytest.fixture
def image(registry: FakeRegistry) -> Image:
    layers = [asyncio.run(make_lazy_layer({name: b"x" * 999})) for name in ("a", "b")]
    manifest = add_lazy_image(registry, "app", "1", layers)
    chains = [str(chain) for chain in chain_ids(layer.diff_id for layer in layers)]
    return Image(f"{registry.host}/app:1", manifest, chains)


@pytest.fixture
def containerd(tmp_path: Path) -> Iterator[FakeContainerd]:
    with running_containerd(tmp_path / "c.sock") as running:
        yield running


@pytest.fixture
def pull(run: Callable[..., Result], tmp_path: Path) -> Callable[..., Result]:
    """Run the verb against the fake."""
    return lambda *arguments: run("pull", "--containerd", f"{tmp_path}/c.sock", *arguments)


def test_lazy_image(pull: Callable[..., Result], image: Image, containerd: FakeContainerd) -> None:
    containerd.lazy.update(image.chains)
    result = pull(image.reference)
    assert (result.code, result.out) == (0, f"{image.manifest.digest}\n")
    assert re.fullmatch(r"(layer [0-9a-f]{12}: is loaded when it is read\n){2}", result.err)
    assert list(containerd.images) == [image.reference]
    assert containerd.namespaces == {"default"}


def test_json_and_layers_that_are_unpacked(
    pull: Callable[..., Result], image: Image, containerd: FakeContainerd
) -> None:
    containerd.lazy.add(image.chains[0])
    result = pull(image.reference, "--json", "--snapshotter", "overlayfs", "--namespace", "k8s.io")
    assert json.loads(result.out) == {
        "reference": image.reference,
        "digest": str(image.manifest.digest),
        "media_type": image.manifest.media_type,
        "snapshotter": "overlayfs",
        "snapshot": image.chains[1],
        "layers": {"lazy": 1, "unpacked": 1},
    }
    assert re.search(r"\nlayer [0-9a-f]{12}: .* \(100 %\), .*done\n", result.err)
    assert containerd.namespaces == {"k8s.io"}


def test_quiet_and_again(
    pull: Callable[..., Result], image: Image, containerd: FakeContainerd
) -> None:
    assert pull("-q", image.reference).err == ""
    assert pull(image.reference).err.count(": is there already\n") == 2


def test_rpull_is_the_same(
    run: Callable[..., Result], image: Image, containerd: FakeContainerd, tmp_path: Path
) -> None:
    result = run("rpull", "-q", "--containerd", f"unix://{tmp_path}/c.sock", image.reference)
    assert (result.code, result.out) == (0, f"{image.manifest.digest}\n")


def test_another_platform(
    pull: Callable[..., Result], image: Image, containerd: FakeContainerd
) -> None:
    result = pull(image.reference, "--platform", "linux/s390x")
    assert result.code == 66
    assert (containerd.leases, containerd.content) == ({}, {})


def test_no_containerd(run: Callable[..., Result], tmp_path: Path) -> None:
    result = run("pull", "--containerd", f"{tmp_path}/none", "app")
    assert result.code == 75
    assert result.err == (
        f"lazyimg: containerd at {tmp_path}/none: does not answer: No such file or directory; "
        "start it, or name its socket with --containerd\n"
    )


@pytest.mark.parametrize("address", ["", "/run/other/s.sock"])
def test_no_such_snapshotter(
    pull: Callable[..., Result],
    image: Image,
    containerd: FakeContainerd,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    address: str,
) -> None:
    containerd.snapshotters.discard("lazyimg")
    monkeypatch.setenv("LAZYIMG_SNAPSHOTTER_ADDRESS", address)
    result = pull(image.reference)
    assert result.code == 78
    assert result.err == (
        f"lazyimg: containerd at {tmp_path}/c.sock: has no snapshotter 'lazyimg'; "
        'add to /etc/containerd/config.toml: [proxy_plugins.lazyimg] type = "snapshot" '
        f'address = "{address or "/run/lazyimg/snapshotter.sock"}"; and restart containerd '
        "(lazyimg setup containerd --apply --restart does both)\n"
    )


def test_snapshotter_that_does_not_answer(
    pull: Callable[..., Result], image: Image, containerd: FakeContainerd
) -> None:
    containerd.faults["Snapshots/Prepare"] = (grpc.StatusCode.UNAVAILABLE, "dial failed")
    result = pull(image.reference)
    assert result.code == 75
    assert "snapshotter 'lazyimg'" in result.err
    assert (containerd.leases, containerd.content) == ({}, {})


@pytest.mark.parametrize("option", ["--namespace", "--snapshotter"])
@pytest.mark.parametrize("name", ["", "a b", "a/b", "-a", "ä", "x" * 77, "a\n"])
def test_names_that_containerd_does_not_take(
    run: Callable[..., Result], option: str, name: str
) -> None:
    result = run("pull", option, name, "app")
    assert result.code == 64
    assert f"{option}: containerd takes no such name: " in result.err


def test_image_that_is_in_no_registry(run: Callable[..., Result]) -> None:
    result = run("pull", "oci:/somewhere:1")
    assert result.code == 64
    assert result.err == (
        "lazyimg: oci:/somewhere:1: is in no registry; push it to one first: lazyimg convert\n"
    )


def test_interruption_leaves_nothing(
    pull: Callable[..., Result], image: Image, containerd: FakeContainerd
) -> None:
    gone = threading.Event()

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        gone.wait(10)

    containerd.on = {"Diff/Apply": interrupt, "Leases/Delete": gone.set}
    containerd.faults["Diff/Apply"] = (grpc.StatusCode.CANCELLED, "")
    result = pull("-q", image.reference)
    assert (result.code, result.out, result.err) == (130, "", "lazyimg: interrupted\n")
    left = containerd.leases, containerd.content, containerd.snapshots, containerd.images
    assert left == ({}, {}, {}, {})


def test_help_does_without_grpc() -> None:
    code = (
        "import sys; from lazyimg.cli.command import main; main(['pull', '--help']); "
        "assert 'grpc' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
