"""The tree that has everything, mounted: equal to what containerd unpacks."""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.real.docker_registry import Registry, running_registry
from tests.real.lazyimg_process import Lazyimg
from tests.real.nasty_tree import GIBIBYTE, LAYERS, NastyTree, nasty_tree
from tests.real.tree_manifest import differences, read_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

MEBIBYTE: Final = 1 << 20


@pytest.fixture(scope="module")
def nasty() -> NastyTree:
    return nasty_tree()


@pytest.fixture(scope="module")
def registry(disk: Path, nasty: NastyTree) -> Iterator[Registry]:
    """A registry that has both images, converted."""
    with (
        tempfile.TemporaryDirectory(dir=disk) as directory,
        running_registry(Path(directory)) as running,
    ):
        lazyimg = Lazyimg(disk / "nowhere")
        for tag in ("nasty", "links"):
            lazyimg.verb("convert", f"oci:{nasty.layout(tag)}:{tag}", f"{running.address}/{tag}")
        yield running


def test_tree_equals_what_containerd_unpacks(
    nasty: NastyTree, registry: Registry, lazyimg: Lazyimg, target: Path
) -> None:
    expected = nasty.expected()
    assert len([path for path in expected if path.startswith("many/")]) == 10_000
    assert expected["linked/first"].links == 1000
    with lazyimg.serving():
        lazyimg.verb("mount", f"{registry.address}/nasty", target)
        assert differences(expected, read_tree(target)) == []
        (mount,) = lazyimg.status()["mounts"]
        assert len(list((target / "layers").iterdir())) == LAYERS - 7 + 1
        assert mount["present"] <= mount["size"] < 40 * MEBIBYTE
        lazyimg.verb("umount", target)


def test_hard_links_across_layers(
    nasty: NastyTree, registry: Registry, lazyimg: Lazyimg, target: Path
) -> None:
    with lazyimg.serving():
        lazyimg.verb("mount", f"{registry.address}/links", target)
        assert differences(nasty.expected_links(), read_tree(target)) == []
        lazyimg.verb("umount", target)


def test_zeros_are_not_fetched(registry: Registry, lazyimg: Lazyimg, target: Path) -> None:
    with lazyimg.serving():
        lazyimg.verb("mount", f"{registry.address}/nasty", target)
        registry.counts.clear()
        before = present(lazyimg)
        with (target / "sizes/gibibyte").open("rb") as file:
            zeros = 0
            while piece := file.read(4 * MEBIBYTE):
                zeros += piece.count(0)
        assert zeros == GIBIBYTE - len(b"beginmiddleend")
        assert registry.counts.sent() < MEBIBYTE
        assert present(lazyimg) - before < MEBIBYTE
        lazyimg.verb("umount", target)


def present(lazyimg: Lazyimg) -> int:
    (mount,) = lazyimg.status()["mounts"]
    local: int = mount["present"]
    return local


def test_what_follows_a_file_in_its_last_block_is_zero(
    registry: Registry, lazyimg: Lazyimg, target: Path
) -> None:
    with lazyimg.serving():
        lazyimg.verb("mount", f"{registry.address}/nasty", target)
        for size in (1, 4095, 4097, 131_073, 1_000_003):
            path = target / "sizes" / str(size)
            content = path.read_bytes()  # first: a mapping tells of failures by killing
            mapped = map_whole_blocks(path)
            assert mapped[:size] == content
            assert mapped[size:] == bytes(-size % mmap.PAGESIZE)
        lazyimg.verb("umount", target)


def map_whole_blocks(path: Path) -> bytes:
    """Return a file as a mapping shows it: up to the end of its last page."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    size = -(-path.stat().st_size // mmap.PAGESIZE) * mmap.PAGESIZE
    with path.open("rb") as file:
        address = libc.mmap(
            None, ctypes.c_size_t(size), mmap.PROT_READ, mmap.MAP_PRIVATE, file.fileno(), 0
        )
    assert address != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
    try:
        return ctypes.string_at(address, size)
    finally:
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
