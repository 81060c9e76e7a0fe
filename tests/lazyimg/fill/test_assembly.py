"""Decoded spans become whole blocks."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg.fill.assembly import Assembly, assemble_shared, edge_fragments, gather
from lazyimg.fill.decode import decode_spans
from lazyimg_formats.device_table import BLOCK_SIZE, DeviceTable
from tests.fakes.devices import Device, SpanPlan, aligned_device, devices, make_device, pattern

if TYPE_CHECKING:
    from collections.abc import Sequence


def decoded_spans(device: Device, spans: range) -> dict[int, bytes]:
    return decode_spans(device.table, spans, 0, device.blob)[0]


class Collector:
    """A sink that keeps what workers write."""

    def __init__(self) -> None:
        self.writes: list[tuple[int, bytes]] = []

    async def write(self, offset: int, data: memoryview) -> None:
        raise AssertionError("in a worker")

    def write_now(self, offset: int, parts: Sequence[memoryview]) -> None:
        self.writes.append((offset, b"".join(parts)))


def test_parts_with_zeros_before_between_and_behind() -> None:
    device = make_device([SpanPlan(b"x" * 10, extents=[(100, 0, 4), (5000, 4, 6)])], tail=3 << 20)
    stop = device.table.size
    assert b"".join(gather(device.table, 0, stop, {0: b"x" * 10})) == device.content


def three_in_a_block() -> Device:
    return make_device([SpanPlan(pattern(length, length)) for length in (1000, 2000, 500)])


def test_block_of_several_runs() -> None:
    device = three_in_a_block()
    fragments: dict[int, bytes] = {}
    for span in range(3):
        run = range(span, span + 1)
        fragments |= edge_fragments(device.table, run, decoded_spans(device, run))
    assert sorted(fragments) == [0, 1000, 3000]
    assert assemble_shared(device.table, 0, fragments) == device.content
    del fragments[1000]
    with pytest.raises(ValueError, match="no fragment for bytes 1000-2999, span 1"):
        assemble_shared(device.table, 0, fragments)


def test_batches_end_when_they_are_full() -> None:
    device = aligned_device(6)
    assembly = Assembly(device.table, [range(6)], decoded_spans(device, range(6)), 4 * BLOCK_SIZE)
    batches = []
    while not assembly.ended:
        sink = Collector()
        size = assembly.write_batch(sink)
        assert size == sum(len(data) for _, data in sink.writes)
        batches.append(sink.writes)
    assert [[(offset, len(data)) for offset, data in batch] for batch in batches] == [
        [(0, 16_384)],
        [(16_384, 16_384)],
        [(32_768, 16_384)],
        [],
    ]
    assert b"".join(data for batch in batches for _, data in batch) == device.content


@given(devices(), st.data())
def test_runs_and_their_fragments_give_every_byte(device: Device, data: st.DataObject) -> None:
    table: DeviceTable = device.table
    cuts = sorted(
        data.draw(st.sets(st.integers(1, max(1, table.span_count - 1)), max_size=4))
        if table.span_count > 1
        else ()
    )
    borders = [0, *cuts, table.span_count]
    seen = bytearray(table.size)
    covered = 0
    fragments: dict[int, bytes] = {}
    for start, stop in itertools.pairwise(borders):
        if start == stop:
            continue
        run = range(start, stop)
        assembly = Assembly(table, [run], decoded_spans(device, run), 2 * BLOCK_SIZE)
        fragments |= assembly.fragments
        sink = Collector()
        while not assembly.ended:
            assembly.write_batch(sink)
            for offset, blocks in sink.writes:
                assert len(blocks) <= 2 * BLOCK_SIZE
                assert blocks == device.content[offset : offset + len(blocks)]
                assert not any(seen[offset : offset + len(blocks)])  # nothing is written twice
                seen[offset : offset + len(blocks)] = b"\1" * len(blocks)
                covered += len(blocks)
            sink.writes.clear()
    for offset in range(0, table.size, BLOCK_SIZE):
        if not seen[offset]:
            assert (
                assemble_shared(table, offset, fragments)
                == device.content[offset : offset + BLOCK_SIZE]
            )
