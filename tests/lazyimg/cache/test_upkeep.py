"""The thread that syncs and makes room, and the admission of writes."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from typing import TYPE_CHECKING

import pytest

from lazyimg.cache import upkeep as upkeep_module
from lazyimg.cache.device_file import DeviceFile, make_device
from lazyimg.cache.upkeep import ROOM, Upkeep
from lazyimg.errors import StorageError
from lazyimg.host.space import REMEDY, CacheLimits, CacheSpace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BLOCK = 4096
DATA = memoryview(bytes(BLOCK))
BOOT = "boot"


class Rounds:
    """Counts the rounds of making room, and lets a test wait for them."""

    def __init__(self) -> None:
        self.error: OSError | None = None
        self.done = threading.Semaphore(0)
        self.dropped = False

    def __call__(self) -> None:
        self.done.release()
        if self.error is not None:
            raise self.error

    def drop(self) -> None:
        self.dropped = True
        if self.error is not None:
            raise self.error

    def wait(self) -> None:
        assert self.done.acquire(timeout=10)


@pytest.fixture
def rounds() -> Rounds:
    return Rounds()


@pytest.fixture
def space(tmp_path: Path) -> CacheSpace:
    return CacheSpace(tmp_path, CacheLimits(bstop=0, fstop=0), tmp_path)


@pytest.fixture
def upkeep(space: CacheSpace, rounds: Rounds) -> Iterator[Upkeep]:
    upkeep = Upkeep(space, rounds, rounds.drop)
    yield upkeep
    upkeep.close()
    assert not [each for each in threading.enumerate() if each.name.startswith("cache-")]


@pytest.fixture
def file(tmp_path: Path, upkeep: Upkeep) -> DeviceFile:
    directory = tmp_path / "device"
    directory.mkdir()
    make_device(directory, 2 * BLOCK)
    return DeviceFile(directory, 2 * BLOCK, BOOT, upkeep)


def test_whole_device_is_synced_at_once(file: DeviceFile) -> None:
    complete = threading.Event()
    file.on_complete(complete.set)
    file.write_now(0, [DATA, DATA])
    assert complete.wait(10)
    assert file.complete


def test_close_syncs_what_is_left(tmp_path: Path, space: CacheSpace, rounds: Rounds) -> None:
    upkeep = Upkeep(space, rounds, rounds.drop)
    (tmp_path / "device").mkdir()
    make_device(tmp_path / "device", 2 * BLOCK)
    file = DeviceFile(tmp_path / "device", 2 * BLOCK, BOOT, upkeep)
    file.write_now(0, [DATA])
    upkeep.close()
    again = DeviceFile(tmp_path / "device", 2 * BLOCK, "another", upkeep)
    assert again.present() == [range(BLOCK)]


def test_what_is_written_is_synced_after_a_while(
    tmp_path: Path, space: CacheSpace, rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep_module, "SYNC_PERIOD", 0.01)
    upkeep = Upkeep(space, rounds, rounds.drop)
    (tmp_path / "device").mkdir()
    make_device(tmp_path / "device", 2 * BLOCK)
    file = DeviceFile(tmp_path / "device", 2 * BLOCK, BOOT, upkeep)
    file.write_now(0, [DATA])
    for _ in range(3):  # the first may have begun before
        rounds.wait()
    assert rounds.dropped
    again = DeviceFile(tmp_path / "device", 2 * BLOCK, "another", upkeep)
    assert again.present() == [range(BLOCK)]
    upkeep.close()


async def test_writes_of_the_event_loop(file: DeviceFile) -> None:
    await asyncio.gather(file.write(0, DATA), file.write(BLOCK, DATA))
    assert file.absent(0, 2 * BLOCK) == []


def test_failing_sync_is_said_once(
    file: DeviceFile,
    upkeep: Upkeep,
    rounds: Rounds,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def lose(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", lose)
    for _ in range(2):
        file.write_now(0, [DATA, DATA])
        upkeep.look_for_room()
        rounds.wait()
    monkeypatch.undo()
    assert caplog.messages == [f"device: cannot sync the cache: Input/output error; {REMEDY}"]


def test_call_that_fails_does_not_end_the_thread(
    file: DeviceFile, upkeep: Upkeep, rounds: Rounds, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    file.on_complete(fail)
    file.write_now(0, [DATA, DATA])
    upkeep.look_for_room()
    rounds.wait()
    assert caplog.messages == ["device: what waited for it to be complete has failed"]


def test_round_that_fails_is_said(
    upkeep: Upkeep, rounds: Rounds, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    rounds.error = OSError(5, "Input/output error")
    for _ in range(2):
        upkeep.look_for_room()
        rounds.wait()
    upkeep.close()
    assert caplog.messages == ["cache: no room can be made: Input/output error"]


def test_pages_that_cannot_be_dropped_do_not_end_the_thread(
    space: CacheSpace,
    rounds: Rounds,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(upkeep_module, "SYNC_PERIOD", 0.01)
    rounds.error = OSError(5, "Input/output error")
    upkeep = Upkeep(space, rounds, rounds.drop)
    for _ in range(3):
        rounds.wait()
    upkeep.close()
    assert sorted(caplog.messages) == [
        "cache: its pages cannot be dropped: Input/output error",
        "cache: no room can be made: Input/output error",
    ]


def disk(free: int) -> Callable[[Path], os.statvfs_result]:
    status = os.statvfs_result((BLOCK, BLOCK, 1 << 20, free, free, 1000, 1000, 1000, 0, 255))
    return lambda _path: status


def test_disk_is_asked_now_and_then(
    tmp_path: Path, rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    statvfs = disk(1 << 20)

    def count(path: Path) -> os.statvfs_result:
        nonlocal asked
        asked += 1
        return statvfs(path)

    monkeypatch.setattr(os, "statvfs", count)
    upkeep = Upkeep(CacheSpace(tmp_path, CacheLimits(), tmp_path), rounds, rounds.drop)
    for _ in range(2 * (ROOM >> 20)):
        upkeep.admit(1 << 20)
    upkeep.close()
    assert asked == 2


def test_nothing_is_admitted_below_the_limit(
    tmp_path: Path, rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = (1 << 20) // 100
    upkeep = Upkeep(CacheSpace(tmp_path, CacheLimits(), tmp_path), rounds, rounds.drop)
    monkeypatch.setattr(os, "statvfs", disk(stop + 100))
    upkeep.admit(50 * BLOCK)
    with pytest.raises(StorageError) as raised:
        upkeep.admit(200 * BLOCK)
    assert str(raised.value) == (
        f"cache: {tmp_path} has no room for {200 * BLOCK} bytes if 1 % stay free; {REMEDY}"
    )
    rounds.wait()
    monkeypatch.setattr(os, "statvfs", disk(stop - 100))
    with pytest.raises(StorageError) as raised:
        upkeep.admit(BLOCK)
    assert str(raised.value) == (
        f"cache: {tmp_path} has less than 1 % of its space left (or 1 % of its inodes); {REMEDY}"
    )
    rounds.wait()
    monkeypatch.setattr(os, "statvfs", disk(1 << 19))
    upkeep.admit(200 * BLOCK)
    upkeep.close()


def test_disk_that_does_not_answer(upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_path: Path) -> os.statvfs_result:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "statvfs", fail)
    with pytest.raises(StorageError) as raised:
        upkeep.admit(1)
    assert str(raised.value) == "cache: cannot ask for its space: Input/output error"
