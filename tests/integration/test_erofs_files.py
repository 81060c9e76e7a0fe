"""Images mounted from plain files by the daemon's own calls (Linux 6.12 or later, root)."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import KernelError, NotFoundError
from lazyimg.host.mount_table import mount_at
from lazyimg.host.mounts import mount_erofs_files, mount_table, unmount
from lazyimg_formats.erofs.tree import Device, FlatData, Node
from lazyimg_formats.erofs.writer import serialize_image
from tests.fakes.erofs_tree import DIRECTORY, FILE, Sample, seen_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

BLOCK = 4096


class Image:
    """An image of so many devices with one file each, as files below a directory."""

    def __init__(self, directory: Path, count: int) -> None:
        contents = [bytes([number]) * BLOCK * (1 + number % 3) for number in range(count)]
        sizes = [len(content) // BLOCK for content in contents]
        slots = [Device(f"{number:064x}", size) for number, size in enumerate(sizes)]
        children = {
            b"%d" % number: Node(FILE, size=len(content), data=FlatData(number, 0))
            for number, content in enumerate(contents)
        }
        self.sample = Sample(Node(DIRECTORY, children=children), slots, contents)
        self.bootstrap = directory / "bootstrap"
        self.bootstrap.write_bytes(serialize_image(self.sample.root, slots))
        self.devices = [directory / slot.name for slot in slots]
        for path, content in zip(self.devices, contents, strict=True):
            path.write_bytes(content)
        self.target = directory / "mnt"
        self.target.mkdir()

    @asynccontextmanager
    async def mounted(self) -> AsyncIterator[bytes]:
        target = self.target
        await mount_erofs_files(self.bootstrap, self.devices, target)
        try:
            yield os.fsencode(target)
        finally:
            await unmount(target)


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path, 3)


@pytest.mark.parametrize("count", [0, 1, 100])
async def test_every_byte(tmp_path: Path, count: int) -> None:
    image = Image(tmp_path, count)
    async with image.mounted() as target:
        assert seen_at(target) == image.sample.seen()


async def test_paths_with_commas(tmp_path: Path) -> None:
    (tmp_path / "a,b=c").mkdir()
    image = Image(tmp_path / "a,b=c", 3)
    async with image.mounted() as target:
        assert seen_at(target) == image.sample.seen()


async def test_mount_table_names_the_bootstrap(image: Image) -> None:
    async with image.mounted():
        entry = mount_at(await mount_table(), str(image.target))
        assert entry is not None
        assert (entry.fs_type, entry.source) == ("erofs", str(image.bootstrap))
        assert "ro" in entry.options


async def test_two_mounts_of_one_bootstrap(image: Image) -> None:
    async with image.mounted() as first:
        image.target = image.target.with_name("other")
        image.target.mkdir()
        async with image.mounted() as second:
            assert seen_at(first) == seen_at(second) == image.sample.seen()


async def test_device_that_is_missing(image: Image) -> None:
    image.devices[1].unlink()
    with pytest.raises(NotFoundError, match=r"it, one of its devices or .* does not exist"):
        async with image.mounted():
            pass


async def test_devices_that_are_not_those_of_the_bootstrap(image: Image) -> None:
    del image.devices[1]
    with pytest.raises(KernelError, match="the kernel refuses it"):
        async with image.mounted():
            pass


async def test_file_that_is_no_bootstrap(image: Image) -> None:
    image.bootstrap.write_bytes(bytes(BLOCK))
    with pytest.raises(KernelError, match="the kernel refuses it"):
        async with image.mounted():
            pass
