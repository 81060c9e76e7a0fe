"""Devices on their way into the kernel's cache."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import StorageError
from lazyimg.host.space import REMEDY, CacheLimits, CacheSpace
from lazyimg.transports.cachefiles import staging as module
from lazyimg.transports.cachefiles.staging import StagedDevices
from tests.fakes.devices import MemorySink, pattern

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = 4096
DATA = pattern(10 * BLOCK, 1)


def make(directory: Path) -> StagedDevices:
    return StagedDevices(CacheSpace(directory, CacheLimits(bstop=0, fstop=0), directory))


@pytest.fixture
def staged(tmp_path: Path) -> StagedDevices:
    return make(tmp_path)


def publish(staged: StagedDevices, name: str = "one") -> None:
    path = staged.stage()
    path.write_bytes(DATA)
    staged.publish(path, name)


async def test_device_is_copied_and_gone(
    staged: StagedDevices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PIECE", 3 * BLOCK)
    publish(staged)
    assert staged.has("one")
    sink = MemorySink()
    await staged.copy("one", sink, [])
    assert sink.data == DATA
    assert sink.has(0, len(DATA))
    assert not staged.has("one")
    assert list((tmp_path / "staging").iterdir()) == []
    await staged.copy("one", MemorySink(), [])  # nothing


async def test_what_is_there_is_not_written(staged: StagedDevices) -> None:
    publish(staged)
    sink = MemorySink()
    await staged.copy("one", sink, [range(BLOCK), range(3 * BLOCK, 5 * BLOCK)])
    assert sink.writes == [(BLOCK, 2 * BLOCK), (5 * BLOCK, 5 * BLOCK)]


async def test_two_at_once(staged: StagedDevices) -> None:
    publish(staged)
    sink = MemorySink()
    sink.gate.clear()
    copies = [asyncio.create_task(staged.copy("one", sink, [])) for _ in range(2)]
    await sink.started.wait()
    sink.gate.set()
    await asyncio.gather(*copies)
    assert len(sink.writes) == 1


async def test_copy_that_fails_may_be_tried_again(staged: StagedDevices) -> None:
    def refuse(_offset: int, _length: int) -> None:
        raise StorageError("one", "is full")

    publish(staged)
    with pytest.raises(StorageError, match="is full"):
        await staged.copy("one", MemorySink(fault=refuse), [])
    assert staged.has("one")
    sink = MemorySink()
    await staged.copy("one", sink, [])
    assert sink.data == DATA


async def test_file_that_lost_its_end(
    staged: StagedDevices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(staged)
    path = tmp_path / "staging/one/data"

    class Cutting(MemorySink):
        def write_now(self, *_: object) -> None:
            raise AssertionError

    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, parts, at: preadv(fd, parts, at + len(DATA)))
    with pytest.raises(StorageError) as caught:
        await staged.copy("one", Cutting(), [])
    assert str(caught.value) == f"{path}: cannot be staged: is shorter than it was; {REMEDY}"


async def test_what_cannot_be_removed_is_said(
    staged: StagedDevices, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publish(staged)

    def refuse(_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(module, "remove_tree", refuse)
    with caplog.at_level(logging.WARNING):
        await staged.copy("one", MemorySink(), [])
    assert "staging/one: cannot be removed: Input/output error" in caplog.text
    assert not staged.has("one")
    with pytest.raises(StorageError, match="cannot be removed: Input/output error"):
        staged.clear()


def test_same_device_twice(staged: StagedDevices, tmp_path: Path) -> None:
    publish(staged)
    publish(staged)
    assert [path.name for path in (tmp_path / "staging").iterdir()] == ["one"]


def test_what_is_given_up_and_what_is_left(staged: StagedDevices, tmp_path: Path) -> None:
    staged.clear()
    path = staged.stage()
    staged.abandon(path)
    staged.abandon(path)
    assert list((tmp_path / "staging").iterdir()) == []
    staged.stage()
    publish(staged)
    other = make(tmp_path)
    other.clear()
    assert not (tmp_path / "staging").exists()


def test_space(staged: StagedDevices, monkeypatch: pytest.MonkeyPatch) -> None:
    assert staged.shortage() is None
    assert staged.reserve() == 0
    monkeypatch.setattr(CacheSpace, "reserve", lambda _: 12_345)
    monkeypatch.setattr(CacheSpace, "shortage", lambda _: "there is no space")
    assert staged.reserve() == 12_345
    assert str(staged.shortage()) == f"cache: there is no space; {REMEDY}"


def test_disk_that_fails(
    staged: StagedDevices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = staged.stage()
    path.write_bytes(DATA)
    (tmp_path / "staging/one").mkdir()
    (tmp_path / "staging/one/x").touch()
    with pytest.raises(StorageError, match=r"^one: cannot be staged: Directory not empty"):
        staged.publish(path, "one")

    def refuse(**_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(StorageError, match="staging: cannot be staged: No space left on device"):
        staged.stage()
