"""Wishes for ranges: each is told once how it ended, whatever happens."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from lazyimg.cache.device_file import DeviceFile, make_device
from lazyimg.errors import RegistryError
from lazyimg.transports.counters import Counters
from lazyimg.transports.filling import Filling, Wish
from tests.fakes.fuse import WAIT, PatternFiller
from tests.fakes.keeper import NotingKeeper

if TYPE_CHECKING:
    from pathlib import Path

    from lazyimg.fill.ports import Sink

BLOCK = 4096
SIZE = 8 * BLOCK


class Bench:
    """A device, what fills it, and how wishes ended."""

    def __init__(self, directory: Path) -> None:
        make_device(directory, SIZE)
        self.file = DeviceFile(directory, SIZE, "boot", NotingKeeper())
        self.filler = PatternFiller(SIZE)
        self.counters = Counters()
        self.filling = Filling(self.filler, self.counters)
        self.ends: asyncio.Queue[tuple[str, bool]] = asyncio.Queue()

    def wish(self, name: str, offset: int, length: int) -> None:
        def done(present: bool) -> None:  # noqa: FBT001 - as it is called
            self.ends.put_nowait((name, present))

        self.filling.submit(Wish(self.file, offset, length, done))

    async def end(self) -> tuple[str, bool]:
        return await asyncio.wait_for(self.ends.get(), WAIT)


@pytest.fixture
async def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.filling.start()
    return bench


async def test_absent_range_is_filled(bench: Bench) -> None:
    bench.wish("one", BLOCK + 1, BLOCK)
    assert await bench.end() == ("one", True)
    assert bench.filler.fills == [(BLOCK, 2 * BLOCK)]
    assert bench.file.absent(BLOCK, 2 * BLOCK) == []
    await bench.filling.stop()


async def test_what_became_present_is_not_filled(bench: Bench) -> None:
    bench.file.write_now(0, [memoryview(bytes(SIZE))])
    bench.wish("one", 0, SIZE)
    assert await bench.end() == ("one", True)
    assert bench.filler.fills == []


async def test_only_what_lies_between_present_ranges_is_filled(bench: Bench) -> None:
    bench.file.write_now(0, [memoryview(bytes(BLOCK))])
    bench.file.write_now(7 * BLOCK, [memoryview(bytes(BLOCK))])
    bench.wish("one", 0, SIZE)
    assert await bench.end() == ("one", True)
    assert bench.filler.fills == [(BLOCK, 6 * BLOCK)]


async def test_wishes_of_other_threads(bench: Bench) -> None:
    for number in range(8):
        await asyncio.to_thread(bench.wish, str(number), number * BLOCK, BLOCK)
    ends = {await bench.end() for _ in range(8)}
    assert ends == {(str(number), True) for number in range(8)}


async def test_failure_is_told_and_logged_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.filler.failure = RegistryError("registry", "does not answer")
    for name in ("one", "two"):
        bench.wish(name, 0, BLOCK)
        assert await bench.end() == (name, False)
    assert bench.counters.failure == "registry: does not answer"
    assert [record.message for record in caplog.records] == [
        "read of 4096 bytes at 0 failed: registry: does not answer"
    ]


async def test_defect_is_told_and_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.filler.failure = ZeroDivisionError("defect")
    bench.wish("one", 0, BLOCK)
    assert await bench.end() == ("one", False)
    assert caplog.records[0].levelno == logging.ERROR


class Liar(PatternFiller):
    async def fill(self, cookie: str, offset: int, length: int, sink: Sink) -> None:
        self.fills.append((offset, length))


async def test_filler_that_did_nothing_is_not_believed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.filling = Filling(Liar(SIZE), bench.counters)
    bench.filling.start()
    bench.wish("one", 0, BLOCK)
    assert await bench.end() == ("one", False)
    assert bench.counters.failure.endswith("what was fetched is not in the cache")


async def test_stop_ends_what_waits_what_was_just_submitted_and_what_comes(bench: Bench) -> None:
    bench.filler.held.clear()
    bench.wish("waits", 0, BLOCK)
    await asyncio.wait_for(bench.filler.asked.wait(), WAIT)
    bench.wish("begins", BLOCK, BLOCK)
    await asyncio.sleep(0)  # its task exists and has not run
    bench.wish("new", 2 * BLOCK, BLOCK)
    await bench.filling.stop()
    bench.wish("late", 3 * BLOCK, BLOCK)
    ends = {await bench.end() for _ in range(4)}
    assert ends == {(name, False) for name in ("waits", "begins", "new", "late")}
    await asyncio.sleep(0)  # the loop is told of "new" now
    assert bench.ends.empty()


def test_event_loop_that_is_closed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    async def begin() -> None:
        bench.filling.start()

    asyncio.run(begin())
    bench.wish("one", 0, BLOCK)
    assert bench.ends.get_nowait() == ("one", False)
