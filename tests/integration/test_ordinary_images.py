"""Converted images are ordinary ones: containerd and podman pull, unpack and run them.

Needs root and the Debian packages containerd, runc, podman, mmdebstrap and umoci.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

from tests.real.containerd import running_containerd
from tests.real.debian_images import DebianImages, debian_images
from tests.real.docker_registry import Registry, running_registry
from tests.real.lazyimg_process import Lazyimg
from tests.real.nasty_tree import IMPLIED, nasty_tree
from tests.real.podman import Podman, later_root
from tests.real.tree_manifest import differences, read_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.real.tree_manifest import Tree

PROGRAM: Final = ("python3", "-c", "import json, ssl, asyncio; print(json.dumps('it runs'))")


@pytest.fixture(scope="module")
def images() -> DebianImages:
    return debian_images()


@pytest.fixture(scope="module")
def registry(images: DebianImages, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that has these images, converted."""
    directory = tmp_path_factory.mktemp("registry")
    with running_registry(directory) as running:
        lazyimg = Lazyimg(directory / "nowhere")
        lazyimg.verb("convert", f"oci:{images.layout}:python", f"{running.address}/python:1")
        layout = nasty_tree().layout()
        lazyimg.verb("convert", f"oci:{layout}:nasty", f"{running.address}/nasty:1")
        layout = nasty_tree().layout("unrepeated")
        lazyimg.verb("convert", f"oci:{layout}:unrepeated", f"{running.address}/unrepeated:1")
        yield running


@pytest.fixture
def image(registry: Registry) -> str:
    return f"{registry.address}/python:1"


def manifest(image: str, tmp_path: Path) -> tuple[str, int]:
    """Give the config's digest and the number of layers."""
    raw = Lazyimg(tmp_path / "nowhere").verb("inspect", "--raw", image)
    document = json.loads(raw)
    return document["config"]["digest"].partition(":")[2], len(document["layers"])


def with_root_of(tree: Tree, found: Tree) -> Tree:
    """Give a tree with another one's root: what its mode and time are is the unpacker's choice."""
    return tree | {".": replace(tree["."], mode=found["."].mode, mtime_ns=found["."].mtime_ns)}


def test_containerd_pulls_unpacks_and_runs_it(
    images: DebianImages, image: str, tmp_path: Path
) -> None:
    with running_containerd(tmp_path / "containerd") as containerd:
        containerd.ctr("image", "pull", "--plain-http", image)
        assert containerd.ctr("run", "--rm", image, "one", *PROGRAM) == '"it runs"\n'
        with containerd.mounted(image) as root:
            found = read_tree(root)
    assert differences(with_root_of(images.tree("python"), found), found) == []


def test_containerd_makes_the_nasty_tree_of_it(registry: Registry, tmp_path: Path) -> None:
    image = f"{registry.address}/nasty:1"
    with running_containerd(tmp_path / "containerd") as containerd:
        containerd.ctr("image", "pull", "--plain-http", image)
        with containerd.mounted(image) as root:
            found = read_tree(root)
    expected = nasty_tree().made_by("containerd")
    for path in (".", *IMPLIED):  # whose times are those of the unpacking
        expected[path] = replace(expected[path], mtime_ns=found[path].mtime_ns)
    assert differences(expected, found) == []


def test_podman_pulls_and_runs_it(
    images: DebianImages, registry: Registry, image: str, tmp_path: Path
) -> None:
    podman = Podman(tmp_path / "podman", registry.address)
    identity, _ = podman.pull(image)
    assert identity == manifest(image, tmp_path)[0]
    assert podman.run(image, *PROGRAM) == '"it runs"\n'
    found = podman.tree(image)
    assert differences(with_root_of(images.tree("python"), found), found) == []


def test_later_podman_fetches_parts_of_the_layers(
    images: DebianImages, registry: Registry, image: str, tmp_path: Path
) -> None:
    podman = Podman(tmp_path / "podman", registry.address, later_root())
    registry.counts.clear()
    identity, log = podman.pull(image)
    config, layers = manifest(image, tmp_path)
    assert identity == config  # it has put the tars together again and checked their digests
    assert log.count("Retrieved partial blob") == layers
    assert all(
        exchange.range for exchange in registry.counts.blob_reads() if config not in exchange.path
    )
    found, expected = podman.tree(image), images.tree("python")
    files = [path for path, file in expected.items() if file.kind == "file"]
    # Directories and links get times of its own, devices are not made.
    assert differences({path: expected[path] for path in files}, {p: found[p] for p in files}) == []


def test_later_podman_fetches_parts_of_the_nasty_image(registry: Registry, tmp_path: Path) -> None:
    image = f"{registry.address}/unrepeated:1"
    podman = Podman(tmp_path / "podman", registry.address, later_root())
    identity, log = podman.pull(image)
    config, layers = manifest(image, tmp_path)
    assert identity == config
    assert log.count("Retrieved partial blob") == layers - 1  # one has names that are not UTF-8
    assert log.count("zstd:chunked layers without tar-split data") > 0
