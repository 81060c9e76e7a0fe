"""Whole images over each transport: the trees, the bytes, and programs that run in them."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.contracts.transports import LONG, drop_caches
from tests.real.debian_images import DebianImages, debian_images
from tests.real.debian_trees import expected_tree
from tests.real.docker_registry import Registry, running_registry
from tests.real.lazyimg_process import Lazyimg
from tests.real.nasty_tree import NastyTree, nasty_tree
from tests.real.tree_manifest import differences, read_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real.safety import SafetyNet

PROGRAM = "import json, ssl, asyncio; print(json.dumps('it runs'))"


@pytest.fixture(scope="module")
def nasty() -> NastyTree:
    return nasty_tree()


@pytest.fixture(scope="module")
def images() -> DebianImages:
    return debian_images()


@pytest.fixture(scope="module")
def registry(disk: Path, nasty: NastyTree, images: DebianImages) -> Iterator[Registry]:
    """A registry that has all images, converted."""
    with (
        tempfile.TemporaryDirectory(dir=disk) as directory,
        running_registry(Path(directory)) as running,
    ):
        lazyimg = Lazyimg(disk / "nowhere")
        layouts = {tag: nasty.layout(tag) for tag in ("nasty", "links")}
        layouts |= dict.fromkeys(("python", "nginx"), images.layout)
        for tag, layout in layouts.items():
            lazyimg.verb("convert", f"oci:{layout}:{tag}", f"{running.address}/{tag}")
        yield running


@pytest.mark.parametrize("tag", ["nasty", "links"])
def test_tree_equals_what_containerd_unpacks(
    tag: str,
    net: SafetyNet,
    nasty: NastyTree,
    registry: Registry,
    lazyimg: Lazyimg,
    target: Path,
) -> None:
    expected = nasty.expected() if tag == "nasty" else nasty.expected_links()
    with lazyimg.serving():
        lazyimg.mount(f"{registry.address}/{tag}", target)
        assert differences(expected, net.call(read_tree, target, timeout=LONG)) == []
        lazyimg.unmount(target)


@pytest.mark.parametrize(("tag", "read_write"), [("python", True), ("nginx", False)])
def test_tree_equals_what_umoci_unpacks(
    tag: str,
    net: SafetyNet,
    images: DebianImages,
    registry: Registry,
    lazyimg: Lazyimg,
    target: Path,
    *,
    read_write: bool,
) -> None:
    """Read-write, it is the root of a container: an overlay."""
    with lazyimg.serving():
        lazyimg.mount(f"{registry.address}/{tag}", target, read_write=read_write)
        found = net.call(read_tree, target, timeout=LONG)
        assert differences(expected_tree(images, tag), found) == []
        lazyimg.unmount(target)


def test_start_fetches_little_and_the_second_one_nothing(
    net: SafetyNet, registry: Registry, lazyimg: Lazyimg, target: Path
) -> None:
    manifest = json.loads(lazyimg.verb("inspect", "--raw", f"{registry.address}/python"))
    size = sum(layer["size"] for layer in manifest["layers"])
    start: list[str | Path] = ["chroot", target, "python3", "-c", PROGRAM]
    with lazyimg.serving():
        lazyimg.mount(f"{registry.address}/python", target)
        registry.counts.clear()
        assert net.run(start).decode().strip() == '"it runs"'
        sent = registry.counts.sent()
        logging.getLogger(__name__).info("%.1f of %.1f MB", sent / 1e6, size / 1e6)
        assert 0 < sent < 0.25 * size
        registry.counts.clear()
        drop_caches()
        assert net.run(start).decode().strip() == '"it runs"'
        assert registry.counts.sent() == 0
