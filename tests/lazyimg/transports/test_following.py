"""Readers in order find what lies ahead of them present."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import TYPE_CHECKING

from lazyimg.errors import RegistryError
from lazyimg.transports.following import AFTER, GAP, NEAR, READERS, Followers, Following

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from lazyimg.fill.ports import Sink

READ = 1 << 17
SIZE = 1 << 30


def read_on(followers: Followers, start: int, stop: int, size: int = SIZE) -> list[range]:
    """Read in order; give what was to be looked at."""
    offsets = range(start, stop, READ)
    found = [followers.note(offset, offset + READ, size) for offset in offsets]
    return [ahead for ahead in found if ahead]


def test_first_reads_are_only_counted() -> None:
    assert read_on(Followers(), 0, AFTER - READ) == []


def test_reader_in_order_has_what_lies_ahead_of_it_looked_at_once() -> None:
    ahead = read_on(Followers(), 0, 64 << 20)
    assert ahead[0] == range(AFTER, 2 * AFTER)
    for before, after in itertools.pairwise(ahead):
        assert after.start == before.stop
        assert len(after) <= NEAR
    assert ahead[-1].stop >= (64 << 20) + NEAR // 2
    assert len(ahead) < 40


def test_no_more_ahead_than_was_read() -> None:
    followers, seen = Followers(), 0
    for stop in range(4096, 16 << 20, 4096):
        if ahead := followers.note(stop - 4096, stop, SIZE):
            seen = ahead.stop
        assert seen <= stop + min(stop, NEAR)


def test_reader_that_leaps_over_a_little_goes_on() -> None:
    followers = Followers()
    last = AFTER // READ - 1
    for number in range(last):
        assert not followers.note(number * (READ + GAP), number * (READ + GAP) + READ, SIZE)
    start = last * (READ + GAP)
    assert followers.note(start, start + READ, SIZE) == range(start + READ, start + READ + AFTER)


def test_reader_that_leaps_far_begins_anew() -> None:
    followers = Followers()
    read_on(followers, 0, AFTER - READ)
    assert not followers.note(AFTER + GAP + READ, AFTER + GAP + 2 * READ, SIZE)


def test_nothing_lies_behind_the_end() -> None:
    assert read_on(Followers(), 0, AFTER + READ, AFTER + READ)[0] == range(AFTER, AFTER + READ)
    assert read_on(Followers(), 0, AFTER, AFTER) == []


def test_random_reads_are_followed_by_nothing() -> None:
    followers = Followers()
    offsets = [(number * 7919 % 1000) * (GAP + READ) for number in range(1000)]
    found = [followers.note(offset, offset + 4096, SIZE) for offset in offsets]
    assert not any(found)


def test_readers_are_told_apart() -> None:
    followers = Followers()
    starts = [number * (64 << 20) for number in range(READERS)]
    found: dict[int, list[range]] = {start: [] for start in starts}
    for offset in range(0, 8 << 20, READ):
        for start in starts:
            ahead = followers.note(start + offset, start + offset + READ, SIZE)
            found[start] += [ahead] if ahead else []
    for start, looked_at in found.items():
        assert looked_at[0].start == start + AFTER
        assert looked_at[-1].stop >= start + (8 << 20) + NEAR // 2


def test_one_reader_too_many_is_forgotten() -> None:
    followers = Followers()
    read_on(followers, 0, AFTER - READ)
    for number in range(1, READERS + 1):
        followers.note(number << 26, (number << 26) + READ, SIZE)
    assert not followers.note(AFTER - READ, AFTER, SIZE)


class Device:
    name = "device"
    size = SIZE

    def __init__(self, present: range) -> None:
        self._present = present

    def absent(self, offset: int, length: int) -> list[range]:
        start = max(offset, self._present.stop)
        return [range(start, offset + length)] if start < offset + length else []

    async def write(self, offset: int, data: memoryview) -> None:
        raise NotImplementedError

    def write_now(self, offset: int, parts: Sequence[memoryview]) -> None:
        raise NotImplementedError


class Filler:
    def __init__(self) -> None:
        self.asked: list[range] = []
        self.failing = False
        self.gate = asyncio.Event()

    def size(self, cookie: str) -> int | None:
        raise NotImplementedError

    def read_local(self, cookie: str, offset: int, length: int, buffer: memoryview) -> int | None:
        raise NotImplementedError

    async def fill(self, cookie: str, offset: int, length: int, sink: Sink) -> None:
        assert cookie == "device"
        assert isinstance(sink, Device)
        self.asked.append(range(offset, offset + length))
        await self.gate.wait()
        if self.failing:
            raise RegistryError("registry", "is away")


def note_reads(following: Following, device: Device, stop: int) -> None:
    for offset in range(0, stop, READ):
        following.note(device, offset, READ)


async def test_what_is_absent_ahead_of_a_reader_is_filled() -> None:
    filler, device = Filler(), Device(range(6 << 20))
    following = Following(filler)
    following.start()
    await asyncio.to_thread(note_reads, following, device, 1 << 20)
    await asyncio.sleep(0)
    assert filler.asked == []
    following.forget("device")
    await asyncio.to_thread(note_reads, following, device, 4 << 20)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert filler.asked[0].start == 6 << 20
    assert filler.asked[-1].stop > (4 << 20) + NEAR // 2
    await following.stop()
    asked = list(filler.asked)
    await asyncio.to_thread(note_reads, following, device, 6 << 20)
    assert filler.asked == asked


async def test_nothing_is_filled_ahead_if_nothing_shall_be() -> None:
    filler, device = Filler(), Device(range(0))
    following = Following(filler, 0)
    following.start()
    note_reads(following, device, 4 << 20)
    await asyncio.sleep(0)
    assert filler.asked == []
    await following.stop()


async def test_failure_is_the_readers_own_business(caplog: pytest.LogCaptureFixture) -> None:
    filler, device = Filler(), Device(range(0))
    filler.failing = True
    filler.gate.set()
    following = Following(filler)
    following.start()
    with caplog.at_level(logging.DEBUG):
        note_reads(following, device, 1 << 20)
        for _ in range(3):
            await asyncio.sleep(0)
    assert [record.message for record in caplog.records] == ["ahead of a reader: registry: is away"]
    await following.stop()


def test_closed_event_loop() -> None:
    following, device = Following(Filler()), Device(range(0))

    async def start() -> None:
        following.start()

    asyncio.run(start())
    note_reads(following, device, 1 << 20)
