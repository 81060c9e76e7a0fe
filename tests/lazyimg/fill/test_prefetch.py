"""Prefetch fills what is missing, and only that."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyimg.errors import RegistryError, StorageError
from lazyimg.fill.engine import Engine
from lazyimg.fill.prefetch import cut, prefetch, subtract, union_blocks
from lazyimg.limits import FillLimits
from lazyimg_formats.device_table import BLOCK_SIZE
from tests.fakes.devices import Device, MemoryBlob, MemorySink, aligned_device, devices

LIMITS = FillLimits(prefetch_piece=4 * BLOCK_SIZE, decode_workers=2)


async def prefetched(
    device: Device, present: list[range], wanted: list[range] | None
) -> tuple[MemorySink, list[tuple[int, int]], MemoryBlob]:
    engine, sink, blob = Engine(limits=LIMITS), MemorySink(), MemoryBlob(device.blob)
    engine.add_device(device.table, blob)
    progress: list[tuple[int, int]] = []
    try:
        await prefetch(
            engine,
            device.table,
            sink,
            lambda: present,
            wanted,
            progress=lambda done, total: progress.append((done, total)),
        )
    finally:
        await engine.close()
    assert engine.counters.reads == 0  # nobody read
    return sink, progress, blob


@given(devices())
@settings(max_examples=40)
def test_whole_device_with_its_zeros(device: Device) -> None:
    sink, progress, blob = asyncio.run(prefetched(device, [], None))
    size = len(device.content)
    assert sink.has(0, size)
    assert sink.agrees(device.content)
    assert progress[0] == (0, size)
    assert progress[-1] == (size, size)
    assert progress == sorted(progress)
    starts = [device.table.blob_range(span)[0] for span in range(device.table.span_count)]
    for start in starts:
        reads = sum(offset <= start < offset + length for offset, length in blob.reads)
        assert 1 <= reads <= starts.count(start)


async def test_nothing_is_missing() -> None:
    device = aligned_device(4)
    sink, progress, blob = await prefetched(device, [range(1 << 20)], None)
    assert (sink.writes, blob.reads) == ([], [])
    assert progress == [(32_768, 32_768)]


async def test_only_what_is_wanted_and_missing() -> None:
    device = aligned_device(8, BLOCK_SIZE)
    wanted = [range(20_480, 28_672), range(1), range(4000, 9000)]
    sink, progress, _ = await prefetched(device, [range(4096, 8192), range(20_000, 25_000)], wanted)
    assert sink.blocks == {0, 2, 6}
    assert progress[0] == (8192, 20_480)
    assert progress[-1] == (20_480, 20_480)
    assert sink.agrees(device.content)


async def test_full_disk_stops_it() -> None:
    device = aligned_device(64)
    engine, sink = Engine(limits=LIMITS), MemorySink()

    def full(offset: int, _length: int) -> None:
        if offset >= 65_536:
            raise StorageError("cache", "the disk is full")

    sink.fault = full
    engine.add_device(device.table, MemoryBlob(device.blob))
    with pytest.raises(StorageError, match=r"^cache: the disk is full$"):
        await prefetch(engine, device.table, sink, list)
    await engine.close()
    assert len(sink.blocks) < 32
    assert sink.agrees(device.content)
    assert len(asyncio.all_tasks()) == 1


async def test_unreachable_registry_stops_it() -> None:
    device = aligned_device(64)
    blob = MemoryBlob(device.blob)

    def away(_offset: int, _length: int) -> None:
        raise RegistryError("registry", "away")

    blob.fault = away
    engine = Engine(limits=LIMITS)
    engine.add_device(device.table, blob)
    with pytest.raises(RegistryError, match=r"^registry: away$"):
        await prefetch(engine, device.table, MemorySink(), list)
    assert len(blob.reads) <= LIMITS.prefetch_pieces
    await engine.close()


async def test_cancelled() -> None:
    device = aligned_device(64)
    blob = MemoryBlob(device.blob)
    blob.gate.clear()
    engine = Engine(limits=LIMITS)
    engine.add_device(device.table, blob)
    task = asyncio.create_task(prefetch(engine, device.table, MemorySink(), list))
    await blob.started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await engine.close()
    assert len(asyncio.all_tasks()) == 1
    assert engine.counters.fetched == 0


ranges = st.lists(
    st.tuples(st.integers(0, 60_000), st.integers(0, 20_000)).map(
        lambda pair: range(pair[0], pair[0] + pair[1])
    ),
    max_size=6,
)


@given(ranges, ranges)
def test_ranges_as_sets_of_blocks(wanted: list[range], present: list[range]) -> None:
    size = 16 * BLOCK_SIZE

    def blocks(parts: list[range]) -> list[int]:
        return [block for part in parts for block in range(part.start, part.stop, BLOCK_SIZE)]

    asked = union_blocks(wanted, size)
    have = union_blocks(present, size, inward=True)
    every = range(0, size, BLOCK_SIZE)
    assert blocks(asked) == [
        block
        for block in every
        if any(part.start < block + BLOCK_SIZE and part.stop > block for part in wanted if part)
    ]
    assert set(blocks(have)) == {
        block
        for part in present
        for block in every
        if part.start <= block and block + BLOCK_SIZE <= part.stop
    }
    missing = list(subtract(asked, have))
    assert blocks(missing) == [block for block in blocks(asked) if block not in set(blocks(have))]
    pieces = list(cut(missing, 3 * BLOCK_SIZE))
    assert blocks(pieces) == blocks(missing)
    assert all(len(piece) <= 3 * BLOCK_SIZE for piece in pieces)


def test_pieces_end_where_the_length_divides() -> None:
    assert list(cut([range(5, 25)], 10)) == [range(5, 10), range(10, 20), range(20, 25)]
