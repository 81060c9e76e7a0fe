"""Flights: which source they ask, what they keep, and how they end."""

from __future__ import annotations

import asyncio
import threading

import pytest

from lazyimg.errors import CorruptError, LazyimgError, NotFoundError, RegistryError
from lazyimg.fill import flights
from lazyimg.fill.budget import Priority
from lazyimg.fill.device import Source
from lazyimg.fill.engine import Engine
from lazyimg.fill.ports import NotAskedError
from lazyimg.limits import FillLimits
from lazyimg_formats.device_table import BLOCK_SIZE
from tests.fakes.devices import (
    Device,
    MemoryBlob,
    MemorySink,
    aligned_device,
)
from tests.lazyimg.fill.test_engine import LIMITS, FaultyBlob, engine, held_blob

__all__ = ["engine"]  # fixture


async def test_source_with_other_hosts_is_asked_again(engine: Engine) -> None:
    device = aligned_device(2)
    blob, sink = FaultyBlob(device.blob, ["corrupt", "corrupt"]), MemorySink()
    blob.mirrors = 2
    engine.add_device(device.table, blob)
    await engine.fill(device.name, 0, 8192, sink)
    assert sink.agrees(device.content)
    assert len(blob.reads) == 3
    assert blob.distrusted == blob.reads[:2]


async def test_spans_that_one_source_has_damaged_come_from_another(engine: Engine) -> None:
    device = aligned_device(4)
    damaged = bytearray(device.blob)
    damaged[8192] ^= 1
    old, new, sink = MemoryBlob(device.blob), MemoryBlob(bytes(damaged)), MemorySink()
    engine.add_device(device.table, old)
    engine.add_device(device.table, new)
    await engine.fill(device.name, 0, 32_768, sink)
    assert (new.reads, old.reads) == ([(0, 32_768)], [(8192, 8192)])
    assert sink.data == device.content


class ForbiddenBlob(MemoryBlob):
    """Is not for those who read now."""

    async def read(self, offset: int, length: int) -> bytes:
        raise NotAskedError("reg.test/other", "is not asked for images of other repositories")


@pytest.mark.parametrize("forbidden", [[0], [1], [0, 2], [0, 1]])
async def test_failure_of_the_source_that_was_asked_is_told(
    engine: Engine, forbidden: list[int]
) -> None:
    device = aligned_device(1)
    for number in range(3):
        if number in forbidden:
            engine.add_device(device.table, ForbiddenBlob(device.blob))
        else:
            engine.add_device(device.table, FaultyBlob(device.blob, ["away"]))
    with pytest.raises(RegistryError):
        await engine.fill(device.name, 0, 8192, MemorySink())


async def test_what_is_at_hand_is_asked_for_nothing_else(engine: Engine) -> None:
    device, moved = aligned_device(4), aligned_device(4, shift=100)
    blob, sink = MemoryBlob(device.blob), MemorySink()
    engine.add_device(device.table, blob)
    at_hand = Source(moved.table, MemoryBlob(moved.blob))
    await engine.fill(device.name, 0, 16_384, sink, priority=Priority.BACKGROUND, at_hand=at_hand)
    assert sink.data == device.content[:16_384]
    assert blob.reads == []


@pytest.mark.parametrize("fault", ["away", "corrupt", "short"])
async def test_source_has_what_is_not_at_hand(engine: Engine, fault: str) -> None:
    device = aligned_device(4)
    blob, sink = MemoryBlob(device.blob), MemorySink()
    engine.add_device(device.table, blob)
    at_hand = Source(device.table, FaultyBlob(device.blob, [fault]))
    await engine.fill(device.name, 0, 32_768, sink, at_hand=at_hand)
    assert sink.data == device.content
    await engine.fill(device.name, 0, 32_768, sink)  # it was for that fill only
    assert len(at_hand.blob.reads) == 1  # type: ignore[attr-defined]


async def test_blob_that_gives_too_little(engine: Engine) -> None:
    device = aligned_device(1)
    engine.add_device(device.table, MemoryBlob(device.blob[:100]))
    with pytest.raises(CorruptError, match="expected 8192 bytes at 0 of its blob, got 100"):
        await engine.fill(device.name, 0, 4096, MemorySink())


async def test_flight_that_nobody_waits_for_is_cancelled(engine: Engine) -> None:
    device = aligned_device(1)
    blob, sink = held_blob(device), MemorySink()
    engine.add_device(device.table, blob)
    fill = asyncio.create_task(engine.fill(device.name, 0, 8192, sink))
    await blob.started.wait()
    fill.cancel()
    await asyncio.wait([fill])
    blob.gate.set()
    await engine.fill(device.name, 0, 8192, sink)
    assert len(blob.reads) == 2
    assert engine.counters.fetched == 8192


async def test_flight_that_writes_already_ends_though_nobody_waits(engine: Engine) -> None:
    device = aligned_device(1)
    blob, sink = MemoryBlob(device.blob), MemorySink()
    sink.gate.clear()
    engine.add_device(device.table, blob)
    fill = asyncio.create_task(engine.fill(device.name, 0, 8192, sink))
    await sink.started.wait()
    fill.cancel()
    await asyncio.wait([fill])
    again = asyncio.create_task(engine.fill(device.name, 0, 8192, sink))
    sink.gate.set()
    await again
    assert len(blob.reads) == len(sink.writes) == 1


async def test_last_source_is_asked_first_and_the_others_when_it_fails(engine: Engine) -> None:
    device, moved = aligned_device(4), aligned_device(4, shift=100, gap=3)
    assert moved.name == device.name
    old, new, sink = MemoryBlob(device.blob), FaultyBlob(moved.blob, ["", "", "away"]), MemorySink()
    engine.add_device(device.table, old)
    engine.add_device(moved.table, new)
    await engine.fill(device.name, 0, 32_768, sink)
    assert (old.reads, new.reads) == ([], [(103, len(moved.blob) - 103)])
    other = MemorySink()
    engine.remove_device(device.name, new)
    engine.add_device(moved.table, new)
    new.data = bytes(len(moved.blob))
    await fresh(engine, device, old, new, other)
    new.data = moved.blob
    engine._recent.drop_device(device.name)
    await engine.fill(device.name, 0, 32_768, other)
    assert (len(old.reads), len(new.reads)) == (3, 3)  # what was away is not asked first again
    assert sink.data == other.data == device.content


async def fresh(
    engine: Engine, device: Device, old: MemoryBlob, new: MemoryBlob, sink: MemorySink
) -> None:
    """Fill anew, past the memory of recent spans: first a corrupt source, then an absent one."""
    for _ in range(2):
        engine._recent.drop_device(device.name)
        await engine.fill(device.name, 0, 32_768, sink)
    assert len(old.reads) == 2
    assert len(new.reads) == 3


async def test_source_that_does_not_answer_in_time_is_asked_last() -> None:
    engine = Engine(limits=FillLimits(read_deadline=0.4, decode_workers=1))
    device = aligned_device(1)
    good, hanging, sink = MemoryBlob(device.blob), held_blob(device), MemorySink()
    engine.add_device(device.table, good)
    engine.add_device(device.table, hanging)
    with pytest.raises(RegistryError, match="did not arrive within"):
        await engine.fill(device.name, 0, 4096, sink)
    assert (len(good.reads), len(hanging.reads)) == (0, 1)
    await engine.fill(device.name, 0, 4096, sink, priority=Priority.TRACED)  # has no deadline
    assert (len(good.reads), len(hanging.reads)) == (1, 1)
    engine.remove_device(device.name, good)
    hanging.gate.set()
    await engine.fill(device.name, 4096, 4096, sink, priority=Priority.TRACED)
    await engine.fill(device.name, 0, 4096, MemorySink(), priority=Priority.TRACED)
    await engine.close()


async def test_all_sources_fail_with_the_error_of_the_first_asked(engine: Engine) -> None:
    device = aligned_device(1)
    engine.add_device(device.table, FaultyBlob(device.blob, ["short"]))
    engine.add_device(device.table, FaultyBlob(device.blob, ["away"]))
    with pytest.raises(RegistryError, match=r"^registry: away$"):
        await engine.fill(device.name, 0, 4096, MemorySink())


async def test_device_removed_before_its_flight_starts(engine: Engine) -> None:
    device = aligned_device(1)
    engine.add_device(device.table, MemoryBlob(device.blob))
    fill = asyncio.create_task(engine.fill(device.name, 0, 4096, MemorySink()))
    asyncio.get_running_loop().call_soon(engine.remove_device, device.name)
    with pytest.raises(NotFoundError, match="has been removed"):
        await fill


async def test_device_removed_in_flight_ends_as_it_would_have(engine: Engine) -> None:
    device = aligned_device(1)
    blob, sink = held_blob(device), MemorySink()
    engine.add_device(device.table, blob)
    fill = asyncio.create_task(engine.fill(device.name, 0, 8192, sink))
    await blob.started.wait()
    engine.remove_device(device.name)
    blob.gate.set()
    await fill
    assert sink.data == device.content
    assert engine._recent.size == 0


async def test_flight_to_a_sink_that_was_replaced(engine: Engine) -> None:
    device = aligned_device(2, 1 << 20)
    blob, first, second = held_blob(device), MemorySink(), MemorySink()
    engine.add_device(device.table, blob)
    fills = [
        asyncio.create_task(engine.fill(device.name, offset, 4096, sink))
        for offset, sink in ((0, first), (1 << 20, second))
    ]
    await blob.started.wait()
    blob.gate.set()
    await asyncio.gather(*fills)
    assert (first.has(0, 1 << 20), second.has(1 << 20, 1 << 20)) == (True, True)
    assert len(blob.reads) == 2
    await engine.fill(device.name, 0, 4096, second)  # what `first` has, `second` has not
    assert second.agrees(device.content)
    assert second.has(0, 1 << 20)


class CountedMemory:
    """Memory that notes what it was asked for, and by which thread."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.given_back = threading.Event()

    def take(self) -> None:
        self.asked.append(("take", threading.current_thread().name[:6]))

    def give_back(self) -> None:
        self.asked.append(("give back", threading.current_thread().name[:6]))
        self.given_back.set()


async def test_memory_is_taken_once_while_there_is_work() -> None:
    memory = CountedMemory()
    engine = Engine(limits=LIMITS, memory=memory)
    device = aligned_device(64)
    engine.add_device(device.table, MemoryBlob(device.blob))
    assert memory.asked == []
    for number in range(3):
        await engine.fill(device.name, 20 * number * BLOCK_SIZE, BLOCK_SIZE, MemorySink())
    await engine.close()
    assert memory.asked == [("take", "decode")]


async def test_memory_is_given_back_after_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flights, "REST", 0.0)
    memory = CountedMemory()
    engine = Engine(limits=LIMITS, memory=memory)
    device = aligned_device(64)
    engine.add_device(device.table, MemoryBlob(device.blob))
    for number in range(2):
        memory.given_back.clear()
        await engine.fill(device.name, 20 * number * BLOCK_SIZE, BLOCK_SIZE, MemorySink())
        assert await asyncio.to_thread(memory.given_back.wait, 60)
    await engine.close()
    assert [what for what, _ in memory.asked] == ["take", "give back"] * 2
    assert {thread for _, thread in memory.asked} == {"decode"}


async def test_close_fails_what_waits_and_leaves_no_task() -> None:
    device, other = aligned_device(1), aligned_device(2)
    engine = Engine(limits=LIMITS)
    blob, sink = held_blob(device), MemorySink()
    sink.gate.clear()
    engine.add_device(device.table, blob)
    engine.add_device(other.table, MemoryBlob(other.blob))
    waiting = asyncio.create_task(engine.fill(device.name, 0, 4096, MemorySink()))
    writing = asyncio.create_task(engine.fill(other.name, 0, 4096, sink))
    await blob.started.wait()
    await sink.started.wait()
    closing = asyncio.create_task(engine.close())
    with pytest.raises(LazyimgError, match=rf"^device {device.name}: the daemon is stopping$"):
        await waiting
    assert not closing.done()
    sink.gate.set()
    await writing
    await closing
    with pytest.raises(LazyimgError, match="the daemon is stopping"):
        await engine.fill(device.name, 0, 4096, sink)
    assert len(asyncio.all_tasks()) == 1


async def test_close_does_not_turn_to_another_source() -> None:
    device = aligned_device(1)
    engine = Engine(limits=LIMITS)
    other, corrupt = held_blob(device), MemoryBlob(bytes(8192))
    engine.add_device(device.table, other)
    engine.add_device(device.table, corrupt)
    closing: list[asyncio.Task[None]] = []

    def close(_offset: int, _length: int) -> None:
        closing.append(asyncio.create_task(engine.close()))

    corrupt.fault = close  # it starts while the corrupt bytes are decoded
    with pytest.raises(CorruptError):
        await engine.fill(device.name, 0, 4096, MemorySink())
    await closing[0]
    assert not other.reads
