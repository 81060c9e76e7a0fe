"""All devices: which there are after a start, who may use them, and which are removed."""

from __future__ import annotations

import asyncio
import gc
import os
import tempfile
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazyimg.cache import device_cache
from lazyimg.cache.device_cache import DeviceCache
from lazyimg.cache.device_file import DeviceFile
from lazyimg.errors import InUseError, StorageError
from lazyimg.host.space import REMEDY, CacheLimits, CacheSpace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BLOCK = 4096
SIZE = 4 * BLOCK
DATA = memoryview(b"x" * SIZE)
FREE = CacheLimits(bstop=0, fstop=0)


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@asynccontextmanager
async def opened(directory: Path, boot: str = "boot") -> AsyncIterator[DeviceCache]:
    cache = DeviceCache(directory, FREE, boot=boot)
    try:
        cache.load()
        yield cache
    finally:
        await cache.close()


@pytest.fixture
async def cache(tmp_path: Path) -> AsyncIterator[DeviceCache]:
    async with opened(tmp_path) as cache:
        yield cache


async def test_pages_of_devices_in_use_are_forgotten(
    cache: DeviceCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[str] = []
    monkeypatch.setattr(DeviceFile, "drop_pages", lambda file: dropped.append(file.name))
    used, released = cache.open("used", SIZE), cache.open("released", SIZE)
    cache.release("released")
    cache._drop_pages()
    assert dropped == [used.name]
    assert released.name not in dropped


async def test_device_is_made_once(cache: DeviceCache, tmp_path: Path) -> None:
    assert cache.find("one") is None
    made = cache.open("one", SIZE)
    assert (made.name, made.size, made.path) == ("one", SIZE, tmp_path / "one" / "data")
    assert cache.open("one", SIZE) is made
    assert cache.find("one") is made
    assert cache.find_node(made.node) is made
    assert cache.find_node(1) is None
    assert cache.names() == ["one"]
    assert names_in(tmp_path) == ["one"]


async def test_devices_are_there_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as cache:
        made = cache.open("one", SIZE)
        node = made.node
        made.write_now(BLOCK, [DATA[:BLOCK]])
    async with opened(tmp_path, boot="another") as cache:
        assert cache.names() == ["one"]
        found = cache.find_node(node)
        assert found is not None
        assert found is not made
        assert found.present() == [range(BLOCK, 2 * BLOCK)]
        assert cache.open("one", SIZE) is found


async def test_killed_process_leaves_what_it_wrote(tmp_path: Path) -> None:
    async with opened(tmp_path) as cache, opened(tmp_path) as successor:
        cache.open("one", SIZE).write_now(BLOCK, [DATA[:BLOCK]])
        found = successor.find("one")
        assert found is not None
        assert found.present() == [range(BLOCK, 2 * BLOCK)]


async def test_what_is_unfinished_is_removed(tmp_path: Path) -> None:
    async with opened(tmp_path) as cache:
        for name in ("good", "no-record", "no-data", "other-size", "bad-record"):
            cache.open(name, SIZE).write_now(0, [DATA[:BLOCK]])
    (tmp_path / "good" / "written.long-ago").write_bytes(b"anything")
    (tmp_path / "no-record" / "present").unlink()
    (tmp_path / "no-data" / "data").unlink()
    os.truncate(tmp_path / "other-size" / "data", SIZE - BLOCK)
    (tmp_path / "bad-record" / "present").write_bytes(b"x" * 100)
    (tmp_path / ("0" * 64)).mkdir()
    (tmp_path / ".new-x").mkdir()
    (tmp_path / ".gone-x").mkdir()
    (tmp_path / ".gone-x" / "data").write_bytes(b"")
    async with opened(tmp_path) as cache:
        assert cache.names() == ["good"]
        assert names_in(tmp_path) == ["good"]
        assert names_in(tmp_path / "good") == ["data", "present", "written.boot"]


async def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "data").write_bytes(b"")
    directory = tmp_path / "cache"
    directory.mkdir()
    (directory / "lost+found").mkdir()
    (directory / "file").write_bytes(b"")
    (directory / "link").symlink_to(elsewhere)
    (directory / "other").mkdir()
    (directory / "other" / "data").write_bytes(b"")
    (directory / "other" / "precious").write_bytes(b"")
    async with opened(directory) as cache:
        assert cache.names() == []
    assert names_in(directory) == ["file", "link", "lost+found", "other"]
    assert names_in(directory / "other") == ["data", "precious"]
    assert names_in(elsewhere) == ["data"]


async def test_device_of_another_size_is_made_anew(tmp_path: Path, cache: DeviceCache) -> None:
    cache.open("one", SIZE).write_now(0, [DATA])
    with pytest.raises(StorageError) as raised:
        cache.open("one", 2 * SIZE)
    assert str(raised.value) == f"one: is in use with another size than {2 * SIZE} bytes"
    cache.release("one")
    made = cache.open("one", 2 * SIZE)
    assert made.present() == []
    assert cache.names() == ["one"]
    assert cache.find_node(made.node) is made


async def test_record_that_became_unreadable_is_not_believed(
    tmp_path: Path, cache: DeviceCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.open("one", SIZE).write_now(0, [DATA])
    cache.release("one")
    await cache.close()
    cache = DeviceCache(tmp_path, FREE, boot="boot")
    cache.load()
    (tmp_path / "one" / "present").write_bytes(b"lost")
    assert cache.find("one") is None
    assert caplog.messages == [f"{tmp_path / 'one'}: not the record of a file of {SIZE} bytes"]
    assert cache.open("one", SIZE).present() == []
    await cache.close()


async def test_released_device_is_closed_when_nobody_refers_to_it(cache: DeviceCache) -> None:
    file = cache.open("one", SIZE)
    fd = file.fd
    cache.release("one")
    cache.release("one")
    assert cache.find("one") is file
    del file
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    found = cache.find("one")
    assert found is not None
    assert found.present() == []


async def test_remove(cache: DeviceCache, tmp_path: Path) -> None:
    file = cache.open("one", SIZE)
    with pytest.raises(InUseError) as raised:
        cache.remove("one")
    assert str(raised.value) == "one: is in use and stays in the cache"
    cache.release("one")
    cache.remove("one")
    cache.remove("one")
    assert (cache.names(), names_in(tmp_path)) == ([], [])
    with pytest.raises(StorageError, match="one: was removed from the cache meanwhile"):
        file.write_now(0, [DATA])
    assert cache.open("one", SIZE).absent(0, SIZE) == [range(SIZE)]


async def test_discard_leaves_what_is_mounted_whole(cache: DeviceCache) -> None:
    assert not cache.discard("one", [range(BLOCK)])
    file = cache.open("one", SIZE)
    file.write_now(0, [DATA[: 2 * BLOCK]])
    assert cache.is_used("one")
    assert cache.discard("one", [range(BLOCK)])
    assert file.present() == [range(BLOCK, 2 * BLOCK)]
    file.write_now(0, [DATA])
    file.sync()
    assert not cache.discard("one", [range(BLOCK)])
    assert file.complete
    cache.release("one")
    assert not cache.is_used("one")
    assert cache.discard("one", [range(BLOCK)])
    assert not file.complete


@pytest.mark.parametrize("name", ["", ".", "..", ".new-x", "a/b"])
async def test_names_that_are_none(cache: DeviceCache, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a device's name"):
        cache.open(name, SIZE)


async def test_size_that_is_too_large(cache: DeviceCache) -> None:
    with pytest.raises(StorageError) as raised:
        cache.open("one", (1 << 40) + BLOCK)
    assert str(raised.value) == (
        "one: 1099511631872 bytes are more than the cache takes in one device"
    )


async def test_directory_that_is_gone(
    tmp_path: Path, cache: DeviceCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.rmdir()
    missing = "No such file or directory"
    with pytest.raises(StorageError) as raised:
        cache.open("one", SIZE)
    assert str(raised.value) == f"one: cannot be opened in the cache: {missing}; {REMEDY}"
    with pytest.raises(StorageError) as raised:
        cache.load()
    assert str(raised.value) == f"{tmp_path}: the cache cannot be read: {missing}"
    assert cache.find("one") is None
    tmp_path.write_bytes(b"")
    with pytest.raises(StorageError) as raised:
        cache.find("one")
    assert str(raised.value) == "one: cannot be opened in the cache: Not a directory"
    tmp_path.unlink()
    tmp_path.mkdir()


async def test_failure_while_making_leaves_nothing(
    tmp_path: Path, cache: DeviceCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_path: Path, _size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(device_cache, "make_device", fail)
    with pytest.raises(StorageError, match="one: cannot be opened in the cache: No space left"):
        cache.open("one", SIZE)
    assert names_in(tmp_path) == []


async def test_failure_while_removing_is_said(
    cache: DeviceCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_path: Path) -> None:
        raise OSError(5, "Input/output error")

    cache.open("one", SIZE)
    cache.release("one")
    monkeypatch.setattr(device_cache, "remove_tree", fail)
    with pytest.raises(StorageError) as raised:
        cache.remove("one")
    assert str(raised.value) == "one: cannot be removed: Input/output error"


class Disk:
    """Has room for so many devices."""

    def __init__(self, directory: Path, room: int) -> None:
        self.directory = directory
        self.room = room
        self.rounds = threading.Semaphore(0)

    def devices(self) -> list[str]:
        return [name for name in names_in(self.directory) if name[0] != "."]

    def below_cull(self) -> bool:
        self.rounds.release()
        return len(self.devices()) > self.room

    def below_run(self) -> bool:
        return len(self.devices()) > self.room - 1


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(tmp_path, 3)
    monkeypatch.setattr(CacheSpace, "below_cull", lambda _space: disk.below_cull())
    monkeypatch.setattr(CacheSpace, "below_run", lambda _space: disk.below_run())
    return disk


async def test_longest_unused_devices_make_room(
    cache: DeviceCache, tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = None
    for number in range(6):
        kept = cache.open(f"device{number}", SIZE)
        cache.release(f"device{number}")
    for number, age in ((0, 10), (1, 99), (2, 50), (3, 70), (4, 20), (5, 80)):
        os.utime(tmp_path / f"device{number}", (0, 10_000 - age))
    cache.open("device1", SIZE)
    os.utime(tmp_path / "device1", (0, 0))
    cache._cull()
    assert len(disk.devices()) == 6  # not before it is said that all that is in use was opened
    cache._culling = True
    cache._cull()
    assert disk.devices() == ["device1", "device5"]  # in use, and referred to
    assert cache.names() == ["device1", "device5"]
    assert cache.culled == 4
    assert kept is not None
    assert cache.is_tight() is False


async def test_round_ends_when_there_is_room(cache: DeviceCache, disk: Disk) -> None:
    for number in range(3):
        cache.open(f"device{number}", SIZE)
        cache.release(f"device{number}")
        os.utime(cache.directory / f"device{number}", (0, number))
    cache.start_culling()
    assert disk.rounds.acquire(timeout=10)
    cache._cull()
    assert len(disk.devices()) == 3
    disk.room = 2
    cache._cull()
    assert disk.devices() == ["device2"]


async def test_device_that_is_opened_when_it_is_to_be_removed_stays(
    cache: DeviceCache, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.open("one", SIZE)
    disk.room = 0
    cache._culling = True
    monkeypatch.setattr(cache, "_unused", lambda: ["one", "gone"])
    cache._cull()
    assert disk.devices() == ["one"]
    assert cache.culled == 0


async def test_shortage(cache: DeviceCache, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.shortage() is None
    monkeypatch.setattr(CacheSpace, "shortage", lambda _self: "it is full")
    assert str(cache.shortage()) == f"cache: it is full; {REMEDY}"


async def test_boot_is_the_kernels(tmp_path: Path) -> None:
    cache = DeviceCache(tmp_path, FREE)
    cache.open("one", SIZE).write_now(0, [DATA[:BLOCK]])
    boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    assert (tmp_path / "one" / f"written.{boot}").exists()
    await cache.close()


async def test_devices_are_opened_side_by_side(cache: DeviceCache) -> None:
    opened = await asyncio.gather(
        *(asyncio.to_thread(cache.open, f"device{number % 3}", SIZE) for number in range(30))
    )
    assert len({id(file) for file in opened}) == 3


async def test_nothing_is_open_after_the_close(tmp_path: Path) -> None:
    async with opened(tmp_path) as cache:
        file = cache.open("one", SIZE)
        file.write_now(0, [DATA[:BLOCK]])
        fds = [file.fd, file._written._fd] if file._written else []
    assert len(fds) == 2
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    with pytest.raises(StorageError, match="cannot read from the cache: Bad file descriptor"):
        file.read_into(0, memoryview(bytearray(BLOCK)))
    with pytest.raises(StorageError, match="cannot write to the cache: Bad file descriptor"):
        file.write_now(0, [DATA])
    assert file.absent(0, SIZE) == [range(BLOCK, SIZE)]


def staged(cache: DeviceCache, data: memoryview = DATA) -> Path:
    path = cache.stage()
    path.write_bytes(data)
    return path


async def test_device_that_was_made_whole(cache: DeviceCache, tmp_path: Path) -> None:
    name = "a" * 64
    cache.publish(staged(cache), name)
    assert cache.names() == [name]
    assert not cache.is_used(name)
    file = cache.open(name, SIZE)
    assert file.complete
    buffer = memoryview(bytearray(SIZE))
    assert file.read_into(0, buffer) == SIZE
    assert buffer == DATA
    assert names_in(tmp_path) == [name]
    async with opened(tmp_path) as other:
        found = other.find(name)
        assert found is not None
        assert found.complete


async def test_device_that_is_there_gets_what_it_lacks(cache: DeviceCache, tmp_path: Path) -> None:
    """It may be mounted: nothing that is there is touched."""
    name = "a" * 64
    file = cache.open(name, SIZE)
    file.write_now(BLOCK, [memoryview(b"y" * BLOCK)])
    cache.publish(staged(cache), name)
    file.sync()
    assert file.complete
    assert file.path.read_bytes() == b"x" * BLOCK + b"y" * BLOCK + b"x" * (2 * BLOCK)
    assert names_in(tmp_path) == [name]
    cache.publish(staged(cache), name)
    assert names_in(tmp_path) == [name]


async def test_device_of_another_size_is_replaced(cache: DeviceCache) -> None:
    name = "a" * 64
    cache.open(name, 2 * SIZE)
    cache.release(name)
    cache.publish(staged(cache), name)
    found = cache.find(name)
    assert found is not None
    assert (found.size, found.complete) == (SIZE, True)


async def test_device_that_is_given_up(cache: DeviceCache, tmp_path: Path) -> None:
    path = staged(cache)
    cache.abandon(path)
    cache.abandon(path)
    staged(cache)  # what a process that died leaves
    cache.load()
    assert names_in(tmp_path) == []


async def test_device_that_cannot_be_staged_or_taken(
    cache: DeviceCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = staged(cache)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(device_cache, "make_record", refuse)
    with pytest.raises(StorageError) as caught:
        cache.publish(path, "a" * 64)
    assert str(caught.value) == (
        f"{'a' * 64}: cannot be put into the cache: No space left on device; {REMEDY}"
    )
    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(StorageError, match="cannot be written: No space left on device"):
        cache.stage()


async def test_space_that_stays_free(cache: DeviceCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CacheSpace, "reserve", lambda _: 4711)
    assert cache.reserve() == 4711


async def test_staged_file_that_lost_its_end(
    cache: DeviceCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "a" * 64
    cache.open(name, SIZE)
    path, preadv = staged(cache), os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, parts, at: preadv(fd, parts, at + SIZE))
    with pytest.raises(StorageError, match="cannot be put into the cache: is shorter than it was"):
        cache.publish(path, name)
