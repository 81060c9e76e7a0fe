"""Images mounted from plain files by the daemon's own calls (root), with and without loop devices.

Without: Linux 6.12 or later.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import KernelError, NotFoundError
from lazyimg.host.loops import exchange_file, find_loops
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
    """An image of so many devices with one file each, as files below a directory.

    Attributes:
        loops: mount it by loop devices, as this.
    """

    def __init__(self, directory: Path, count: int, *, loops: bool = False) -> None:
        self.loops = directory / "loops/name" if loops else None
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
        await mount_erofs_files(self.bootstrap, self.devices, target, loops=self.loops)
        try:
            yield os.fsencode(target)
        finally:
            await unmount(target)

    def in_loops(self) -> list[str]:
        """Give the names of its files that loop devices are over."""
        files = [self.bootstrap, *self.devices]
        return [path.name for path in files for _ in find_loops(path)]


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


# By loop devices.


@pytest.mark.parametrize("count", [0, 1, 64])
async def test_every_byte_by_loop_devices(tmp_path: Path, count: int) -> None:
    image = Image(tmp_path, count, loops=True)
    async with image.mounted() as target:
        assert seen_at(target) == image.sample.seen()
        assert image.in_loops() == [path.name for path in (image.bootstrap, *image.devices)]
    assert image.in_loops() == []


async def test_mount_table_names_the_mount_by_loop_devices(tmp_path: Path) -> None:
    image = Image(tmp_path, 1, loops=True)
    async with image.mounted():
        entry = mount_at(await mount_table(), str(image.target))
        assert entry is not None
        assert (entry.fs_type, entry.source) == ("erofs", str(image.loops))
        assert list((tmp_path / "loops").iterdir()) == []


async def test_two_mounts_by_loop_devices(tmp_path: Path) -> None:
    image = Image(tmp_path, 2, loops=True)
    async with image.mounted() as first:
        image.target = image.target.with_name("other")
        image.target.mkdir()
        async with image.mounted() as second:
            assert seen_at(first) == seen_at(second) == image.sample.seen()
            assert len(image.in_loops()) == 6
        assert len(image.in_loops()) == 3
        assert seen_at(first) == image.sample.seen()


async def test_loop_devices_of_a_mount_that_fails(tmp_path: Path) -> None:
    image = Image(tmp_path, 3, loops=True)
    image.devices[2].unlink()
    with pytest.raises(NotFoundError, match=r"it, one of its devices or .* does not exist"):
        async with image.mounted():
            pass
    assert image.in_loops() == []
    image.bootstrap.write_bytes(bytes(BLOCK))
    del image.devices[2]
    with pytest.raises(KernelError, match="the kernel refuses it"):
        async with image.mounted():
            pass
    assert image.in_loops() == []
    assert list((tmp_path / "loops").iterdir()) == []


async def test_file_that_is_exchanged_while_it_is_mounted(tmp_path: Path) -> None:
    """The old one may change from then on: nobody reads it."""
    image = Image(tmp_path, 2, loops=True)
    old = image.devices[0]
    new = old.with_name("new")
    new.write_bytes(old.read_bytes())
    async with image.mounted() as target:
        assert await exchange_file(old, new) == 1
        assert find_loops(old) == []
        assert len(find_loops(new)) == 1
        old.write_bytes(bytes(old.stat().st_size))
        assert seen_at(target) == image.sample.seen()
    assert find_loops(new) == []


async def test_file_of_another_size_is_not_exchanged(tmp_path: Path) -> None:
    image = Image(tmp_path, 1, loops=True)
    new = tmp_path / "new"
    new.write_bytes(bytes(7 * BLOCK))
    async with image.mounted() as target:
        with pytest.raises(KernelError, match=r"LOOP_CHANGE_FD on .*/new failed: Invalid argument"):
            await exchange_file(image.devices[0], new)
        assert seen_at(target) == image.sample.seen()


def test_loop_devices_whose_nodes_a_container_lacks(tmp_path: Path) -> None:
    """A /dev of its own, with what a container is given, in a mount namespace of its own."""
    image = Image(tmp_path, 2, loops=True)
    program = f"""if True:
        import asyncio, pathlib
        from lazyimg.host.mounts import mount_erofs_files, unmount
        async def main():
            target = pathlib.Path({str(image.target)!r})
            await mount_erofs_files(
                pathlib.Path({str(image.bootstrap)!r}),
                [pathlib.Path(path) for path in {[str(path) for path in image.devices]!r}],
                target, loops=pathlib.Path({str(image.loops)!r}),
            )
            print((target / "1").read_bytes() == bytes([1]) * {2 * BLOCK})
            await unmount(target)
        asyncio.run(main())
    """
    shell = """
        set -e
        mount -t tmpfs -o mode=755 dev /dev
        mknod /dev/null c 1 3; mknod /dev/urandom c 1 9; mknod /dev/loop-control c 10 237
        exec "$@"
    """
    command = ["unshare", "-m", "sh", "-c", shell, "sh", sys.executable, "-c", program]
    ended = subprocess.run(command, check=False, capture_output=True, timeout=60)
    assert ended.stdout.split() == [b"True"], ended.stderr.decode()
    assert image.in_loops() == []
