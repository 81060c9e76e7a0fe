"""Written images, mounted by this machine's kernel as plain files (Linux 6.12 or later, root)."""

from __future__ import annotations

import ctypes
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazyimg_formats.erofs.tree import Device, FlatData, Node
from lazyimg_formats.erofs.writer import serialize_image
from tests.fakes.erofs_tree import DIRECTORY, FILE, Sample, make_sample, seen_at

if TYPE_CHECKING:
    from collections.abc import Iterator

MS_RDONLY = 1
libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def mounted(sample: Sample, folder: Path) -> Iterator[bytes]:
    """Mount a sample; gives the mount point."""
    folder.mkdir(parents=True)
    image = folder / "image"
    image.write_bytes(serialize_image(sample.root, sample.devices))
    options = []
    for number, content in enumerate(sample.contents):
        if content:
            device = folder / f"{number}"
            device.write_bytes(content)
            options.append(f"device={device}")
    target = folder / "mnt"
    target.mkdir()
    data = ",".join(options).encode()
    if libc.mount(bytes(image), bytes(target), b"erofs", MS_RDONLY, data):
        raise OSError(ctypes.get_errno(), f"mount {image} with {len(options)} devices")
    try:
        yield bytes(target)
    finally:
        if libc.umount2(bytes(target), 0):
            raise OSError(ctypes.get_errno(), f"umount {target!r}")
        shutil.rmtree(folder)


def test_every_attribute_and_byte(tmp_path: Path) -> None:
    sample = make_sample(names=12_000, depth=1500)
    expected = sample.seen()
    with mounted(sample, tmp_path / "sample") as target:
        found = seen_at(target)
    assert found.keys() == expected.keys()
    for path, seen in expected.items():
        assert found[path] == seen, path


def test_image_without_devices(tmp_path: Path) -> None:
    root = Node(DIRECTORY, children={b"f": Node(FILE, data=b"1" * 10_000)})
    sample = Sample(root, [], [])
    with mounted(sample, tmp_path / "sample") as target:
        assert seen_at(target) == sample.seen()


def test_empty_root(tmp_path: Path) -> None:
    sample = Sample(Node(DIRECTORY, children={}), [], [])
    with mounted(sample, tmp_path / "sample") as target:
        assert seen_at(target) == sample.seen()


@pytest.mark.parametrize("count", [1, 23, 24, 40])
def test_slots_across_the_first_block(tmp_path: Path, count: int) -> None:
    contents = [bytes([number]) * 4096 * (1 + number % 3) for number in range(count)]
    devices = [Device(f"{number:02x}" * 32, 1 + number % 3) for number in range(count)]
    children = {
        b"%d" % number: Node(FILE, size=len(content), data=FlatData(number, 0))
        for number, content in enumerate(contents)
    }
    sample = Sample(Node(DIRECTORY, children=children), devices, contents)
    short = Path("/tmp") / f"erofs-{os.getpid()}"  # noqa: S108  # 40 paths must fit in a page
    with mounted(sample, short) as target:
        assert seen_at(target) == sample.seen()
