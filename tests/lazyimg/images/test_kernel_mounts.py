"""The kernel's mounts by themselves; what users see of them is in test_mounts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import StorageError
from lazyimg.images import kernel_mounts as kernel_mounts_module
from lazyimg.images.kernel_mounts import KernelMounts, make_directory
from lazyimg.images.library import ChainRecord, LayerRecord

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

    def linked(self, cookies: Iterable[str]) -> set[str]:
        self.asked |= set(cookies)
        return set()

    async def opened(self, cookie: str) -> None:
        self.waited.append(cookie)
        self.asked_first.set()
        await self.opening.wait()


async def test_new_files_of_all_devices_are_waited_for(tmp_path: Path, host: FakeMounts) -> None:
    (tmp_path / "mnt").mkdir()
    cache = Cache()
    kernel = KernelMounts(tmp_path, "d", 4096, cache)
    holding = asyncio.create_task(kernel.hold(CHAIN))
    await cache.asked_first.wait()
    assert host.calls == ["mount_erofs"]
    cache.opening.set()
    assert await holding == tmp_path / "mnt" / CHAIN.fsid
    assert cache.asked == {CHAIN.fsid, "one", "two"}
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
    monkeypatch.setattr(kernel_mounts_module, "OPEN_WAIT", 0.01)
    (tmp_path / "mnt").mkdir()
    kernel = KernelMounts(tmp_path, "d", 4096, Cache())
    await kernel.hold(CHAIN)
    assert len(host.points) == 1
    assert "a power cut would lose its new cache files" in caplog.text
    await kernel.close()
    assert host.points == []


def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    make_directory(tmp_path)
    with pytest.raises(StorageError, match="cannot be made: No such file or directory"):
        make_directory(tmp_path / "no" / "such")
