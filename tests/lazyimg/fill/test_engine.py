"""The fill engine over blobs and sinks in memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyimg.errors import (
    CorruptError,
    KernelError,
    LazyimgError,
    NotFoundError,
    RegistryError,
    StorageError,
)
from lazyimg.fill import patience
from lazyimg.fill.budget import Priority
from lazyimg.fill.engine import Engine
from lazyimg.limits import FillLimits
from lazyimg_formats.device_table import BLOCK_SIZE, Codec
from tests.fakes.devices import (
    Device,
    MemoryBlob,
    MemorySink,
    SpanPlan,
    aligned_device,
    devices,
    make_device,
    pattern,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

LIMITS = FillLimits(decode_workers=2, ahead_after=2)


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = Engine(limits=LIMITS)
    yield engine
    await engine.close()
    assert engine._budget.memory == 0
    assert len(asyncio.all_tasks()) <= 2  # the test and its fixture


class FaultyBlob(MemoryBlob):
    """A blob whose reads fail one after the other as `faults` says."""

    def __init__(self, data: bytes, faults: Sequence[str]) -> None:
        super().__init__(data)
        self.faults = list(faults)

    async def read(self, offset: int, length: int) -> bytes:
        data = await super().read(offset, length)
        match self.faults.pop(0) if self.faults else "":
            case "away":
                raise RegistryError("registry", "away")
            case "corrupt":
                return bytes([data[0] ^ 1]) + data[1:]
            case "short":
                return data[:-1]
            case _:
                return data


class Discard:
    """A sink that only counts."""

    written = 0

    async def write(self, offset: int, data: memoryview) -> None:
        assert offset % BLOCK_SIZE == len(data) % BLOCK_SIZE == 0
        self.written += len(data)

    def write_now(self, offset: int, parts: Sequence[memoryview]) -> None:
        assert offset % BLOCK_SIZE == 0
        self.written += sum(map(len, parts))


def held_blob(device: Device) -> MemoryBlob:
    """Give a blob that answers nothing until its gate is set."""
    blob = MemoryBlob(device.blob)
    blob.gate.clear()
    return blob


@st.composite
def requests(draw: st.DrawFn) -> tuple[Device, list[tuple[int, int]]]:
    """A device, and block ranges (offset, length) that reach past its end now and then."""
    device = draw(devices())
    blocks = len(device.content) // BLOCK_SIZE + 2
    ranges = []
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, blocks))
        ranges.append((start * BLOCK_SIZE, draw(st.integers(1, blocks)) * BLOCK_SIZE))
    return device, ranges


def fill_all(
    device: Device, ranges: Sequence[tuple[int, int]], limits: FillLimits
) -> tuple[MemoryBlob, MemorySink, Engine]:
    async def run() -> tuple[MemoryBlob, MemorySink, Engine]:
        blob, sink = MemoryBlob(device.blob), MemorySink()
        engine = Engine(limits=limits)
        engine.add_device(device.table, blob)
        await asyncio.gather(*(engine.fill(device.name, *part, sink) for part in ranges))
        await engine.close()
        return blob, sink, engine

    return asyncio.run(run())


@given(requests(), st.sampled_from([0, 5000, 131_072]), st.sampled_from([4096, 50_000, 1 << 20]))
@settings(max_examples=80)
def test_concurrent_fills_write_the_reference_and_fetch_each_span_once(
    request_: tuple[Device, list[tuple[int, int]]], min_fetch: int, max_fetch: int
) -> None:
    device, ranges = request_
    limits = FillLimits(min_fetch=min_fetch, max_fetch=max_fetch, merge_gap=1000, decode_workers=2)
    blob, sink, engine = fill_all(device, ranges, limits)
    assert sink.agrees(device.content)
    for offset, length in ranges:
        assert sink.has(offset, length)
    starts = [device.table.blob_range(number)[0] for number in range(device.table.span_count)]
    for start in starts:  # spans may be parts of the same bytes
        reads = sum(offset <= start < offset + length for offset, length in blob.reads)
        assert reads <= starts.count(start)
    assert engine.counters.fetched == sum(length for _, length in blob.reads)


@given(
    requests(),
    st.lists(st.sampled_from(["", "", "away", "corrupt", "short"]), max_size=8),
    st.sets(st.integers(0, 5), max_size=2),
)
@settings(max_examples=60)
def test_faults_fail_fills_and_leave_no_wrong_byte(
    request_: tuple[Device, list[tuple[int, int]]], faults: list[str], cancelled: set[int]
) -> None:
    device, ranges = request_

    async def run() -> None:
        blob, sink = FaultyBlob(device.blob, faults), MemorySink()
        engine = Engine(limits=FillLimits(min_fetch=5000, merge_gap=100, max_fetch=20_000))
        engine.add_device(device.table, blob)
        tasks = [asyncio.create_task(engine.fill(device.name, *part, sink)) for part in ranges]
        for number in cancelled & set(range(len(tasks))):
            asyncio.get_running_loop().call_soon(tasks[number].cancel)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for part, result in zip(ranges, results, strict=True):
            assert result is None or isinstance(
                result, RegistryError | CorruptError | asyncio.CancelledError
            )
            assert result is not None or sink.has(*part)
        assert sink.agrees(device.content)
        blob.faults.clear()
        left = [
            flight.task for flight in engine._flights._flights
        ]  # a fill might join their failure
        await asyncio.gather(*left, return_exceptions=True)
        await engine.fill(device.name, 0, device.table.size + 1, sink)
        assert sink.has(0, device.table.size)
        assert sink.agrees(device.content)
        await engine.close()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


async def test_fills_of_one_range_share_one_fetch(engine: Engine) -> None:
    device = aligned_device(4)
    blob, sink = held_blob(device), MemorySink()
    engine.add_device(device.table, blob)
    fills = [asyncio.create_task(engine.fill(device.name, 0, 8192, sink)) for _ in range(3)]
    await blob.started.wait()
    blob.gate.set()
    await asyncio.gather(*fills)
    assert len(blob.reads) == 1
    assert len(sink.writes) == 1
    assert engine.counters.joined == 2
    assert (engine.counters.reads, engine.counters.reads_failed) == (3, 0)
    assert engine.counters.fetches == 1
    assert engine.counters.fetched == engine.fetched(device.name) == len(device.blob)
    assert engine.counters.decoded == engine.counters.written == 32_768


async def test_failure_reaches_all_that_joined_and_the_next_fill_tries_again(
    engine: Engine,
) -> None:
    device = aligned_device(1)
    blob, sink = FaultyBlob(device.blob, ["away"]), MemorySink()
    blob.gate.clear()
    engine.add_device(device.table, blob)
    fills = [asyncio.create_task(engine.fill(device.name, 0, 8192, sink)) for _ in range(2)]
    await blob.started.wait()
    blob.gate.set()
    results = await asyncio.gather(*fills, return_exceptions=True)
    assert [str(result) for result in results] == ["registry: away"] * 2
    assert not sink.writes
    await engine.fill(device.name, 0, 8192, sink)
    assert sink.data == device.content
    assert (engine.counters.reads, engine.counters.reads_failed) == (3, 2)


async def test_corrupt_blob_writes_nothing_and_repaired_it_works(engine: Engine) -> None:
    device = aligned_device(1)
    blob, sink = MemoryBlob(b"!" + device.blob[1:]), MemorySink()
    engine.add_device(device.table, blob)
    with pytest.raises(CorruptError, match=rf"^device {device.name}: bytes 0-8191 of its blob: "):
        await engine.fill(device.name, 4096, 4096, sink)
    assert not sink.writes
    blob.data = device.blob
    await engine.fill(device.name, 4096, 4096, sink)
    assert sink.data == device.content
    assert engine.counters.reads_failed == 1


async def test_corrupt_neighbour_fails_only_those_who_need_it(engine: Engine) -> None:
    device = make_device([SpanPlan(pattern(5000, i)) for i in range(8)])
    damaged = bytearray(device.blob)
    damaged[3 * 5000] ^= 1
    blob, sink = MemoryBlob(bytes(damaged)), MemorySink()
    engine.add_device(device.table, blob)
    await engine.fill(device.name, 0, 8192, sink)
    assert len(blob.reads) == 1
    assert sink.blocks == {0, 1, 2, 5, 6, 7, 8, 9}
    with pytest.raises(CorruptError, match="bytes 15000-19999 of its blob"):
        await engine.fill(device.name, 12_288, 4096, sink)
    assert 3 not in sink.blocks
    blob.data = device.blob
    await engine.fill(device.name, 12_288, 4096, sink)
    assert sink.agrees(device.content)
    assert blob.reads[1:] == [(15_000, 5000)] * 2


async def test_unknown_device(engine: Engine) -> None:
    with pytest.raises(NotFoundError, match=r"^device x: no mounted image has it$"):
        await engine.fill("x", 0, 4096, MemorySink())
    assert engine.counters.reads_failed == 1
    assert engine.size("x") is None


async def test_cancelled_fill_leaves_the_others_alone(engine: Engine) -> None:
    device = aligned_device(1)
    blob, sink = held_blob(device), MemorySink()
    engine.add_device(device.table, blob)
    fills = [asyncio.create_task(engine.fill(device.name, 0, 8192, sink)) for _ in range(2)]
    await blob.started.wait()
    fills[0].cancel()
    await asyncio.wait([fills[0]])
    blob.gate.set()
    await fills[1]
    assert sink.data == device.content
    assert len(blob.reads) == 1
    assert engine.counters.reads_failed == 0


async def test_deadline_fails_the_read_and_the_next_one_starts_anew() -> None:
    device = aligned_device(1)
    blob, sink = held_blob(device), MemorySink()
    engine = Engine(limits=FillLimits(read_deadline=0.4))
    engine.add_device(device.table, blob)
    patient = asyncio.create_task(
        engine.fill(device.name, 0, 8192, sink, priority=Priority.BACKGROUND)
    )
    await blob.started.wait()
    with pytest.raises(RegistryError) as caught:
        await engine.fill(device.name, 0, 5000, sink)
    assert str(caught.value) == f"device {device.name}: bytes 0-8191 did not arrive within 0.4 s"
    assert caught.value.retryable
    blob.started.clear()
    anew = asyncio.create_task(
        engine.fill(device.name, 0, 4096, sink, priority=Priority.TRACED)  # has no deadline
    )
    await blob.started.wait()
    assert len(blob.reads) == 2
    blob.gate.set()
    await asyncio.gather(patient, anew)
    await engine.close()


async def test_timeout_of_a_blob_is_not_the_deadline(engine: Engine) -> None:
    device = aligned_device(1)
    blob = MemoryBlob(device.blob)

    def fail(_offset: int, _length: int) -> None:
        raise TimeoutError("of its own")

    blob.fault = fail
    engine.add_device(device.table, blob)
    with pytest.raises(TimeoutError, match=r"^of its own$"):
        await engine.fill(device.name, 0, 4096, MemorySink())
    assert engine.counters.reads_failed == 1


async def test_without_deadline_a_read_waits() -> None:
    device = aligned_device(1)
    blob, sink = held_blob(device), MemorySink()
    engine = Engine(limits=FillLimits(read_deadline=None))
    engine.add_device(device.table, blob)
    fill = asyncio.create_task(engine.fill(device.name, 0, 8192, sink))
    await blob.started.wait()
    blob.gate.set()
    await fill
    await engine.close()


async def test_without_deadline_a_read_tries_again_until_it_can_be_filled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.001)
    device = aligned_device(1)
    blob, sink = FaultyBlob(device.blob, ["away", "short", "away"]), MemorySink()
    engine = Engine(limits=FillLimits(read_deadline=None))
    engine.add_device(device.table, blob)
    with pytest.raises(RegistryError):  # a prefetch does not
        await engine.fill(device.name, 0, 8192, sink, priority=Priority.TRACED)
    await engine.fill(device.name, 0, 8192, sink)
    assert sink.agrees(device.content)
    assert engine.counters.reads_failed == 0
    blob.faults[:] = ["away"] * 1000
    engine._recent.drop_device(device.name)
    waiting = asyncio.create_task(engine.fill(device.name, 0, 8192, MemorySink()))
    while len(blob.faults) > 990:  # noqa: ASYNC110 - until it has tried several times
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    await engine.close()


async def test_read_that_tries_again_ends_with_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.001)
    device = aligned_device(1)
    blob = FaultyBlob(device.blob, ["away"] * 1000)
    engine = Engine(limits=FillLimits(read_deadline=None))
    engine.add_device(device.table, blob)
    waiting = asyncio.create_task(engine.fill(device.name, 0, 8192, MemorySink()))
    while len(blob.faults) > 995:  # noqa: ASYNC110 - until it has tried several times
        await asyncio.sleep(0)
    await engine.close()
    with pytest.raises(LazyimgError):
        await waiting


async def test_read_that_tries_again_ends_with_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.001)
    device = aligned_device(1)
    blob = FaultyBlob(device.blob, ["away"] * 1000)
    engine = Engine(limits=FillLimits(read_deadline=None))
    engine.add_device(device.table, blob)
    waiting = asyncio.create_task(engine.fill(device.name, 0, 8192, MemorySink()))
    while len(blob.faults) > 995:  # noqa: ASYNC110 - until it has tried several times
        await asyncio.sleep(0)
    engine.remove_device(device.name)
    with pytest.raises(LazyimgError):
        await waiting
    assert len(blob.faults) > 990
    await engine.close()


async def test_read_of_what_the_kernel_has_closed_does_not_try_again() -> None:
    def closed(_offset: int, _length: int) -> None:
        raise KernelError("object", "the kernel has closed this object meanwhile")

    device = aligned_device(1)
    engine = Engine(limits=FillLimits(read_deadline=None))
    engine.add_device(device.table, MemoryBlob(device.blob))
    with pytest.raises(KernelError):
        await engine.fill(device.name, 0, 8192, MemorySink(fault=closed))
    assert engine.counters.fetches == 1
    await engine.close()


@pytest.mark.parametrize(
    "place", [("works.test", "works.test/good"), ("hangs.test", "hangs.test/good")]
)
async def test_registry_or_repository_that_hangs_leaves_room_for_others(
    place: tuple[str, str],
) -> None:
    bad, good = aligned_device(40), aligned_device(3, shift=1)
    engine = Engine(limits=FillLimits(min_fetch=0, merge_gap=0))
    engine.add_device(bad.table, held_blob(bad), ("hangs.test", "hangs.test/bad"))
    engine.add_device(good.table, MemoryBlob(good.blob), place)
    reads = [
        asyncio.create_task(engine.fill(bad.name, at, 4096, MemorySink()))
        for at in range(0, 40 * 8192, 8192)
    ]
    await asyncio.sleep(0)
    sink = MemorySink()
    await engine.fill(good.name, 0, 8192, sink)
    assert sink.agrees(good.content)
    for read in reads:
        read.cancel()
    await asyncio.wait(reads)
    await engine.close()


async def test_device_goes_with_its_last_source(engine: Engine) -> None:
    device = aligned_device(1)
    first, second = MemoryBlob(device.blob), MemoryBlob(device.blob)
    engine.add_device(device.table, first)
    engine.add_device(device.table, second)
    assert engine.size(device.name) == 8192
    engine.remove_device(device.name, second)
    with pytest.raises(NotFoundError, match="this blob is not a source of it"):
        engine.remove_device(device.name, second)
    await engine.fill(device.name, 0, 4096, MemorySink())
    assert (len(first.reads), len(second.reads)) == (1, 0)
    engine.remove_device(device.name)
    assert engine.size(device.name) is None
    with pytest.raises(NotFoundError):
        engine.remove_device(device.name)


async def test_other_sink_waits_and_is_filled_too(engine: Engine) -> None:
    device = aligned_device(1)
    blob, first, second = held_blob(device), MemorySink(), MemorySink()
    engine.add_device(device.table, blob)
    fills = [
        asyncio.create_task(engine.fill(device.name, 0, 8192, sink)) for sink in (first, second)
    ]
    await blob.started.wait()
    blob.gate.set()
    await asyncio.gather(*fills)
    assert first.data == second.data == device.content
    assert len(blob.reads) == 1


async def test_full_disk_reaches_the_reader(engine: Engine) -> None:
    device = aligned_device(1)
    sink = MemorySink()

    def full(_offset: int, _length: int) -> None:
        raise StorageError("cache", "the disk is full")

    sink.fault = full
    engine.add_device(device.table, MemoryBlob(device.blob))
    with pytest.raises(StorageError, match=r"^cache: the disk is full$"):
        await engine.fill(device.name, 0, 4096, sink)


async def test_small_reads_are_widened_and_what_came_along_costs_no_fetch(engine: Engine) -> None:
    device = aligned_device(64, BLOCK_SIZE)
    blob, sink = MemoryBlob(device.blob), MemorySink()
    engine.add_device(device.table, blob)
    await engine.fill(device.name, 32 * BLOCK_SIZE, BLOCK_SIZE, sink)
    assert blob.reads == [(24 * BLOCK_SIZE, 32 * BLOCK_SIZE)]
    assert sink.blocks == set(range(24, 56))
    await engine.fill(device.name, 40 * BLOCK_SIZE, BLOCK_SIZE, sink)  # say it was thrown away
    assert len(blob.reads) == 1
    assert len(sink.writes) == 2
    await engine.fill(device.name, 56 * BLOCK_SIZE, BLOCK_SIZE, sink)
    assert blob.reads[1:] == [(56 * BLOCK_SIZE, 8 * BLOCK_SIZE)]


async def read_in_order(engine: Engine, device: Device, sink: MemorySink, length: int) -> int:
    """Read a device as the kernel does, which asks for what is absent; gives the requests."""
    requests = 0
    for offset in range(0, device.table.size, length):
        while not sink.has(offset, length):
            await engine.fill(device.name, offset, length, sink)
            requests += 1
    return requests


async def test_reader_in_order_is_served_ahead(engine: Engine) -> None:
    device = aligned_device(512, 1 << 16)  # 32 MiB
    blob, sink = MemoryBlob(device.blob), MemorySink()
    engine.add_device(device.table, blob)
    requests = await read_in_order(engine, device, sink, 1 << 18)
    assert sink.data == device.content
    assert sum(length for _, length in blob.reads) == len(device.blob)
    assert requests < 64
    assert len(blob.reads) < 32


async def test_nothing_is_fetched_ahead_of_those_who_do_not_read_in_order(engine: Engine) -> None:
    device = aligned_device(512, 1 << 16)
    blob = MemoryBlob(device.blob)
    engine.add_device(device.table, blob)
    for number in (7, 400, 100, 350, 50, 300, 200):
        await engine.fill(device.name, number << 16, 1 << 18, MemorySink())
    assert sum(length for _, length in blob.reads) == 7 << 18


async def test_reader_that_stops_costs_no_more_than_it_has_read(engine: Engine) -> None:
    device = aligned_device(512, 1 << 16)
    blob, sink = MemoryBlob(device.blob), MemorySink()
    engine.add_device(device.table, blob)
    for number in range(3):
        await engine.fill(device.name, number << 18, 1 << 18, sink)
    await engine.close()
    assert sum(length for _, length in blob.reads) == 2 * (3 << 18)


async def test_reader_joins_what_is_fetched_ahead_of_it(engine: Engine) -> None:
    device = aligned_device(512, 1 << 16)
    blob, sink = MemoryBlob(device.blob), MemorySink()
    engine.add_device(device.table, blob)
    for number in range(2):
        await engine.fill(device.name, number << 18, 1 << 18, sink)
    blob.gate.clear()
    third, fourth = (
        asyncio.create_task(engine.fill(device.name, number << 18, 1 << 18, sink))
        for number in (2, 3)
    )
    for _ in range(3):  # each begins, and the fourth joins
        await asyncio.sleep(0)
    assert engine.counters.joined == 1
    (flight,) = engine._devices[device.name].flights_of([12])
    assert flight.ticket.priority is Priority.ON_DEMAND
    blob.gate.set()
    await asyncio.gather(third, fourth)
    assert sink.has(0, 4 << 18)
    assert len({offset for offset, _ in blob.reads}) == len(blob.reads)


async def test_failure_ahead_is_told_to_those_only_who_wait_for_it(engine: Engine) -> None:
    device = aligned_device(512, 1 << 16)
    blob, sink = MemoryBlob(device.blob), MemorySink()
    engine.add_device(device.table, blob)

    def fail(offset: int, _length: int) -> None:
        if offset >= 3 << 18:
            raise RegistryError("registry", "away")

    blob.fault = fail
    for number in range(3):
        await engine.fill(device.name, number << 18, 1 << 18, sink)
    with pytest.raises(RegistryError, match=r"^registry: away$"):
        await engine.fill(device.name, 3 << 18, 1 << 18, sink)
    blob.fault = lambda _offset, _length: None
    await read_in_order(engine, device, sink, 1 << 18)
    assert sink.data == device.content


async def test_prefetch_is_not_widened(engine: Engine) -> None:
    device = aligned_device(8)
    blob = MemoryBlob(device.blob)
    engine.add_device(device.table, blob)
    await engine.fill(device.name, 8192, 1, MemorySink(), priority=Priority.TRACED)
    assert blob.reads == [(8192, 8192)]
    assert engine.counters.reads == 0


async def test_what_is_present_is_not_fetched_again_by_widening(engine: Engine) -> None:
    device = make_device(
        [SpanPlan(pattern(8192, i), extents=[(0, 0, 4096), (4096, 4096, 4096)]) for i in range(8)]
    )
    blob, sink = MemoryBlob(device.blob), MemorySink()
    engine.add_device(device.table, blob)
    # spans of 12 KiB of device: all of span 0, half of span 1, none of 2 and 3, 5 to the end
    ranges = [range(14_000), range(30_000, 30_001), range(65_536, 98_304), range(200_000, 200_001)]
    engine.note_present(device.name, sink, ranges)
    await engine.fill(device.name, 4 * 12_288, 4096, sink)
    assert blob.reads == [(8192, 4 * 8192)]


async def test_zeros_before_between_and_behind(engine: Engine) -> None:
    device = make_device([SpanPlan(b"x" * 10, extents=[(200_000, 0, 10)])], tail=3 << 20)
    blob, sink = MemoryBlob(device.blob), MemorySink()
    engine.add_device(device.table, blob)
    await engine.fill(device.name, 4096, 8192, sink)
    assert not blob.reads
    assert sink.blocks == {1, 2}
    size = device.table.size
    await engine.fill(device.name, 0, size + 65_536, sink)
    assert sink.data == device.content + bytes(65_536)
    await engine.fill(device.name, 1 << 40, 4096, Discard())


async def test_huge_request_is_filled_in_steps(engine: Engine) -> None:
    device = make_device([SpanPlan(b"x" * 4096, extents=[(60 << 20, 0, 4096)])])
    sink = Discard()
    engine.add_device(device.table, MemoryBlob(device.blob))
    await engine.fill(device.name, 0, 64 << 20, sink)
    assert sink.written == 64 << 20


async def test_span_larger_than_the_whole_budget() -> None:
    device = make_device([SpanPlan(pattern(3 << 20, i), Codec.ZSTD) for i in range(3)])
    engine = Engine(limits=FillLimits(memory=1 << 20, background_memory=1 << 20, fetches=1))
    sink = MemorySink()
    engine.add_device(device.table, MemoryBlob(device.blob))
    await engine.fill(device.name, 0, device.table.size, sink)
    assert sink.data == device.content
    assert engine._budget.memory == 0
    await engine.close()


async def test_request_with_very_many_files(engine: Engine) -> None:
    device = make_device(
        [SpanPlan(pattern(100, i), extents=[(-100 * (i > 0) % 4096, 0, 100)]) for i in range(700)]
    )
    sink = MemorySink()
    engine.add_device(device.table, MemoryBlob(device.blob))
    await engine.fill(device.name, 0, device.table.size + 4096, sink)
    assert sink.data == device.content + bytes(4096)


async def test_reader_makes_a_waiting_prefetch_urgent() -> None:
    device, other = aligned_device(1), aligned_device(2)
    engine = Engine(limits=FillLimits(background_fetches=1))
    blob, blocked = MemoryBlob(device.blob), held_blob(other)
    engine.add_device(device.table, blob)
    engine.add_device(other.table, blocked)
    sink = MemorySink()
    background = [
        asyncio.create_task(engine.fill(name, 0, 8192, target, priority=Priority.BACKGROUND))
        for name, target in ((other.name, MemorySink()), (device.name, sink))
    ]
    await blocked.started.wait()
    assert not blob.reads
    await engine.fill(device.name, 0, 4096, sink)
    assert len(blob.reads) == 1
    assert sink.data == device.content
    blocked.gate.set()
    await asyncio.gather(*background)
    await engine.close()


async def test_mixed_priorities_under_a_tight_budget_all_end() -> None:
    device = aligned_device(200)
    limits = FillLimits(
        memory=60_000, background_memory=30_000, fetches=3, background_fetches=1, max_fetch=16_384
    )
    engine, sink = Engine(limits=limits), MemorySink()
    blob = MemoryBlob(device.blob)
    engine.add_device(device.table, blob)
    await asyncio.gather(
        *(
            engine.fill(device.name, i * 40_960, 100_000, sink, priority=Priority(i % 3))
            for i in range(40)
        )
    )
    assert sink.agrees(device.content)
    assert sink.has(0, device.table.size)
    assert sum(length for _, length in blob.reads) == len(device.blob)
    await engine.close()
