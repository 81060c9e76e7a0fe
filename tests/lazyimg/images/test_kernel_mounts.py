"""The kernel's mounts, whatever the way; what users see of them is in test_mounts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import KernelError, StorageError, UsageError
from lazyimg.images.kernel_mounts import KernelMounts, make_directory
from tests.fakes.image_mounts import FAILURE, image, kernel_mount

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from lazyimg.images.library import ChainRecord
    from tests.fakes.host_mounts import FakeMounts

CHAIN = image().chain


class Way:
    """A way that keeps a list of what it is told."""

    by_hand = None

    def __init__(self, host: FakeMounts) -> None:
        self.host = host
        self.told: list[tuple[str, str]] = []

    async def adopt(self, fsids: Collection[str]) -> None:
        self.told += [("adopt", fsid[0]) for fsid in sorted(fsids)]

    async def leave(self, fsid: str, path: Path) -> None:
        self.told.append(("leave", fsid[0]))

    async def begin(self) -> None:
        self.told.append(("begin", ""))

    async def mount(self, chain: ChainRecord, path: Path) -> None:
        self.told.append(("mount", chain.fsid[0]))
        await self.host.mount_erofs(chain.fsid, "d", path)

    async def unmounted(self, fsid: str) -> None:
        self.told.append(("unmounted", fsid[0]))

    async def dead(self) -> tuple[str, ...]:
        return ("dead",)


@pytest.fixture
def way(host: FakeMounts) -> Way:
    return Way(host)


@pytest.fixture
def kernel(root: Path, way: Way) -> KernelMounts:
    return KernelMounts(root, way)


async def test_one_mount_for_all_users(kernel: KernelMounts, way: Way, root: Path) -> None:
    assert str(await kernel.hold(CHAIN, 2)) == kernel_mount(root)
    await kernel.hold(CHAIN)
    for _ in range(2):
        await kernel.release(CHAIN.fsid)
    assert way.told == [("mount", "a")]
    await kernel.release(CHAIN.fsid)
    assert way.told == [("mount", "a"), ("unmounted", "a")]
    assert way.host.points == []


async def test_way_that_fails_is_told_that_nothing_is_mounted(
    kernel: KernelMounts, way: Way, host: FakeMounts
) -> None:
    host.failures["mount_erofs"] = FAILURE
    with pytest.raises(KernelError):
        await kernel.hold(CHAIN)
    assert way.told == [("mount", "a"), ("unmounted", "a")]


async def test_way_is_told_what_is_mounted_before_what_nobody_uses_is_unmounted(
    kernel: KernelMounts, way: Way, host: FakeMounts, root: Path
) -> None:
    for name in "ab":
        (root / "mnt" / (name * 64)).mkdir()
        host.table.append((kernel_mount(root, name), "erofs in d", name * 64))
    await kernel.adopt(await host.mount_table(), ["b" * 64, "c" * 64])
    assert way.told == [("adopt", "a"), ("adopt", "b"), ("adopt", "c"), ("unmounted", "a")]
    assert host.points == [kernel_mount(root, "b")]


async def test_what_the_way_says_is_passed_on(kernel: KernelMounts, way: Way) -> None:
    await kernel.begin()
    assert way.told == [("begin", "")]
    assert await kernel.dead() == ("dead",)


async def test_way_without_mounts_by_hand(kernel: KernelMounts) -> None:
    with pytest.raises(UsageError) as caught:
        await kernel.prepare(CHAIN)
    assert str(caught.value) == (
        f"fsid {CHAIN.fsid}: images are mounted from files here, and not by their fsid;"
        " `lazyimg mount REF DIR` mounts this one"
    )


def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    make_directory(tmp_path)
    with pytest.raises(StorageError, match="cannot be made: No such file or directory"):
        make_directory(tmp_path / "no" / "such")
