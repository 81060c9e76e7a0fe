"""The fill engine over blobs and sinks in memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazyimg.fill.engine import Engine
from lazyimg.limits import FillLimits
from lazyimg_formats.device_table import BLOCK_SIZE
from tests.fakes.devices import Device, MemoryBlob, MemorySink, devices

if TYPE_CHECKING:
    from collections.abc import Sequence

LIMITS = FillLimits(decode_workers=2)


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
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_concurrent_fills_write_the_reference_and_fetch_each_span_once(
    request_: tuple[Device, list[tuple[int, int]]], min_fetch: int, max_fetch: int
) -> None:
    device, ranges = request_
    limits = FillLimits(min_fetch=min_fetch, max_fetch=max_fetch, merge_gap=1000, decode_workers=2)
    blob, sink, engine = fill_all(device, ranges, limits)
    assert sink.agrees(device.content)
    for offset, length in ranges:
        assert sink.has(offset, length)
    fetched = [byte for offset, length in blob.reads for byte in range(offset, offset + length)]
    for number in range(device.table.span_count):
        assert fetched.count(device.table.blob_range(number)[0]) <= 1
    assert engine.counters.fetched == len(fetched)
