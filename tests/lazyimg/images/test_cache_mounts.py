"""Mounts through the kernel's cache; what users see of them is in test_mounts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import LazyimgError, NotFoundError, StorageError
from lazyimg.images import cache_mounts
from lazyimg.images.cache_mounts import CacheMounts
from lazyimg.images.kernel_mounts import KernelMounts
from lazyimg.images.library import ChainRecord, LayerRecord
from tests.fakes.image_mounts import Cache as OldCache

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.fakes.host_mounts import FakeMounts

LAYERS = [
    LayerRecord("sha256:1", 1, "type", "format", "table", name, size)
    for name, size in (("one", 4096), ("empty", 0), ("two", 8192), ("one", 4096))
]
CHAIN = ChainRecord("key", "a" * 64, 4096, LAYERS)


class Cache:
    """A cache without files, whose objects are opened when the test says so."""

    def __init__(self) -> None:
        self.asked: set[str] = set()
        self.opening = asyncio.Event()
        self.waited: list[str] = []
        self.asked_first = asyncio.Event()
        self.full: StorageError | OSError | None = None
        self.brought: set[str] = set()

    def shortage(self) -> StorageError | None:
        if isinstance(self.full, OSError):
            raise self.full
        return self.full

    def linked(self, cookies: Iterable[str]) -> set[str]:
        self.asked |= set(cookies)
        return set()

    def use_domain(self, _: str) -> None:
        pass

    def strays(self, _: Iterable[str]) -> set[str]:
        return set()

    def move_strays(self, cookies: Iterable[str]) -> None:
        assert set(cookies) == set()

    async def bring_staged(self, cookies: Iterable[str]) -> None:
        self.brought |= set(cookies)

    async def opened(self, cookie: str) -> None:
        self.waited.append(cookie)
        self.asked_first.set()
        await self.opening.wait()


def make(root: Path, cache: Cache | OldCache) -> KernelMounts:
    return KernelMounts(root, CacheMounts(root, "d", 4096, cache))


async def test_new_files_of_all_devices_are_waited_for(tmp_path: Path, host: FakeMounts) -> None:
    (tmp_path / "mnt").mkdir()
    cache = Cache()
    kernel = make(tmp_path, cache)
    holding = asyncio.create_task(kernel.hold(CHAIN))
    await cache.asked_first.wait()
    assert host.calls == ["mount_erofs"]
    cache.opening.set()
    assert await holding == tmp_path / "mnt" / CHAIN.fsid
    assert cache.asked == {CHAIN.fsid, "one", "two"}
    assert cache.brought == {"one", "two"}
    assert cache.waited == ["one", "two"]
    assert host.calls == ["mount_erofs", "unmount", "mount_erofs"]
    assert host.read_ahead == {CHAIN.fsid: 4}
    await kernel.release(CHAIN.fsid)
    assert host.points == []


async def test_objects_that_are_not_opened_in_time(
    tmp_path: Path,
    host: FakeMounts,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(cache_mounts, "OPEN_WAIT", 0.01)
    (tmp_path / "mnt").mkdir()
    kernel = make(tmp_path, Cache())
    await kernel.hold(CHAIN)
    assert len(host.points) == 1
    assert "a power cut would lose its new cache files" in caplog.text
    await kernel.close()
    assert host.points == []


async def test_devices_without_room_for_their_files(
    tmp_path: Path, host: FakeMounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_mounts, "OPEN_WAIT", 0.01)
    (tmp_path / "mnt").mkdir()
    cache = Cache()
    cache.full = StorageError("cache", "has no inode left")
    with pytest.raises(StorageError, match="has no inode left"):
        await make(tmp_path, cache).hold(CHAIN)
    assert host.points == []
    assert list((tmp_path / "mnt").iterdir()) == []


@pytest.mark.parametrize(
    ("full", "said"),
    [
        (StorageError("cache", "has no space left"), "cache: has no space left"),
        (None, "refused"),
        (OSError("cannot be asked"), "refused"),
    ],
)
async def test_mount_that_the_kernel_refuses(
    tmp_path: Path,
    host: FakeMounts,
    full: StorageError | OSError | None,
    said: str,
) -> None:
    (tmp_path / "mnt").mkdir()
    cache = Cache()
    cache.full = full
    host.failures["mount_erofs"] = NotFoundError("it", "refused")
    with pytest.raises(LazyimgError, match=said):
        await make(tmp_path, cache).hold(CHAIN)
    assert list((tmp_path / "mnt").iterdir()) == []


class Strays(OldCache):
    """New files get their names when the kernel has asked for them often enough."""

    def linked(self, cookies: Iterable[str]) -> set[str]:
        found = super().linked(cookies)
        if not self.host.table and set(cookies) == {"two"}:
            self.new.clear()
        return found


async def test_files_of_another_domain_take_the_places_of_new_ones(
    tmp_path: Path, host: FakeMounts
) -> None:
    (tmp_path / "mnt").mkdir()
    cache = Strays(host)
    cache.new = {"two", CHAIN.fsid}
    cache.elsewhere = {"one", "two"}
    (tmp_path / "domain").write_text("d-2")
    way = CacheMounts(tmp_path, "d", 4096, cache)
    await way.adopt(())
    await KernelMounts(tmp_path, way).hold(CHAIN)
    assert (way.domain_id, cache.domains) == ("d-2", ["d-2"])
    assert cache.moved == [{"two"}]
    assert host.table == [(str(tmp_path / "mnt" / CHAIN.fsid), "erofs in d-2", CHAIN.fsid)]


async def test_new_files_are_named_before_a_mount_by_hand(tmp_path: Path, host: FakeMounts) -> None:
    (tmp_path / "mnt").mkdir()
    cache = OldCache(host)
    cache.new = {"two"}
    kernel = make(tmp_path, cache)
    assert await kernel.prepare(CHAIN) == "d"
    assert host.calls == ["mount_erofs", "unmount", "mount_erofs", "unmount"]
    assert host.table == []
    cache.new.clear()
    host.calls.clear()
    await kernel.prepare(CHAIN)
    assert host.calls == []


async def test_files_that_the_kernel_does_not_name(
    tmp_path: Path,
    host: FakeMounts,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(cache_mounts, "LINK_WAIT", 0.05)
    (tmp_path / "mnt").mkdir()
    cache = OldCache(host)
    cache.new = cache.elsewhere = {"two"}
    kernel = make(tmp_path, cache)
    await kernel.hold(CHAIN)
    assert cache.moved == []
    assert len(host.points) == 1
    assert caplog.messages == ["what is local is not used: the kernel made no files"]
