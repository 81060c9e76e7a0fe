"""Ranges that are read at once, because their spans are in memory."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyimg.fill.device import Device, Source
from lazyimg.fill.local import MAX_SIZE, MAX_SPANS, read_local
from lazyimg.fill.recent import RecentSpans
from lazyimg_formats.device_table import BLOCK_SIZE, Codec
from tests.fakes.devices import Device as Made
from tests.fakes.devices import (
    MemoryBlob,
    SpanPlan,
    aligned_device,
    devices,
    make_device,
    pattern,
)


def device_of(made: Made, *blobs: bytes, at_hand: bool = True) -> Device:
    sources = [
        Source(made.table, MemoryBlob(data, at_hand=at_hand)) for data in blobs or (made.blob,)
    ]
    device = Device(sources[0])
    device.sources = sources
    return device


def read(
    device: Device, recent: RecentSpans, offset: int, length: int, ahead: int = 0
) -> bytes | None:
    """Read into a buffer that is full of other bytes."""
    buffer = memoryview(bytearray(b"!") * max(length, ahead))
    size = read_local(device, recent, offset, length, buffer)
    return None if size is None else bytes(buffer[:size])


@given(devices(), st.integers(0, 40), st.integers(1, 40), st.integers(0, 300_000))
@settings(max_examples=150, deadline=None)
def test_bytes_are_the_device_s(made: Made, block: int, blocks: int, ahead: int) -> None:
    offset, length = block * BLOCK_SIZE, blocks * BLOCK_SIZE
    recent = RecentSpans(1 << 20)
    data = read(device_of(made), recent, offset, length, ahead)
    if made.table.has_parts and len(made.table.spans_in(offset, length)) > 1:
        assert data is None
        return
    assert data is not None
    assert len(data) <= max(length, ahead)
    given_end = offset + max(length, len(data))
    expected = made.content[offset:given_end]
    assert bytes(data).ljust(length, b"\0") == expected.ljust(length, b"\0")


def test_what_is_not_in_memory_is_not_given() -> None:
    made = aligned_device(2)
    recent = RecentSpans(1 << 20)
    device = device_of(made, at_hand=False)
    assert read(device, recent, 0, BLOCK_SIZE) is None
    recent.put(made.name, 0, made.content[:8192])
    assert read(device, recent, 0, BLOCK_SIZE) == made.content[:4096]
    assert read(device, recent, BLOCK_SIZE, 2 * BLOCK_SIZE) is None


def test_zeros_need_nothing() -> None:
    made = make_device([SpanPlan(b"x" * 10)], tail=40_000)
    device = device_of(made, at_hand=False)
    assert read(device, RecentSpans(0), BLOCK_SIZE, 2 * BLOCK_SIZE) == b""
    assert read(device, RecentSpans(0), 1 << 30, BLOCK_SIZE) == b""


def test_rest_of_a_span_is_given_along_or_kept() -> None:
    made = make_device([SpanPlan(pattern(65_536, i), Codec.ZSTD) for i in range(2)])
    recent = RecentSpans(1 << 20)
    data = read(device_of(made), recent, 8192, BLOCK_SIZE, 1 << 20)
    assert data == made.content[8192:65_536]
    assert recent.get(made.name, 0) == made.content[:65_536]
    assert recent.get(made.name, 1) is None
    recent.drop_device(made.name)
    assert read(device_of(made), recent, 0, BLOCK_SIZE, 1 << 20) == made.content[:65_536]
    assert recent.size == 0


@pytest.mark.parametrize("codec", list(Codec))
def test_what_is_kept_stays_when_other_bytes_are_looked_for(codec: Codec) -> None:
    made = make_device([SpanPlan(pattern(65_536, i), codec) for i in range(2)])
    device, recent = device_of(made), RecentSpans(1 << 20)
    assert read(device, recent, 0, BLOCK_SIZE) == made.content[:BLOCK_SIZE]
    assert read(device, recent, 65_536, 65_536) == made.content[65_536:]
    assert recent.get(made.name, 0) == made.content[:65_536]


def test_damaged_bytes_are_not_given() -> None:
    made = aligned_device(1)
    damaged = b"!" + made.blob[1:]
    device = device_of(made, made.blob, damaged)
    assert read(device, RecentSpans(0), 0, BLOCK_SIZE) is None


def test_what_takes_long_is_left_to_others() -> None:
    many = make_device([SpanPlan(pattern(10, i)) for i in range(MAX_SPANS + 1)])
    assert read(device_of(many), RecentSpans(0), 0, BLOCK_SIZE) is None
    large = make_device([SpanPlan(bytes(MAX_SIZE + 1), Codec.ZSTD)])
    assert read(device_of(large), RecentSpans(0), 0, BLOCK_SIZE) is None


def test_span_that_is_wanted_whole_is_taken_from_those_that_were_decoded_lately() -> None:
    made = aligned_device(1)
    recent = RecentSpans(1 << 20)
    recent.put(made.name, 0, made.content)
    assert read(device_of(made, at_hand=False), recent, 0, 2 * BLOCK_SIZE) == made.content


def test_damaged_span_of_which_a_part_is_wanted() -> None:
    made = aligned_device(1)
    device = device_of(made, b"!" + made.blob[1:])
    assert read(device, RecentSpans(0), BLOCK_SIZE, BLOCK_SIZE) is None


def test_span_of_several_extents_is_decoded_once() -> None:
    parts = [(0, 0, BLOCK_SIZE), (BLOCK_SIZE, BLOCK_SIZE, BLOCK_SIZE)]
    made = make_device([SpanPlan(pattern(3 * BLOCK_SIZE, 1), Codec.ZSTD, extents=parts)])
    assert made.table.extent_count == 2
    device = device_of(made)
    blob = device.sources[0].blob
    assert isinstance(blob, MemoryBlob)
    assert read(device, RecentSpans(0), 0, made.table.size) == made.content
    assert blob.peeks == 1


def test_spans_close_to_each_other_are_looked_for_together() -> None:
    plans = [SpanPlan(pattern(BLOCK_SIZE, i), gap=(0, 4096, 4097, 0)[i]) for i in range(4)]
    made = make_device(plans)
    device = device_of(made)
    blob = device.sources[0].blob
    assert isinstance(blob, MemoryBlob)
    assert read(device, RecentSpans(0), 0, 4 * BLOCK_SIZE) == made.content
    assert blob.peeks == 2


def test_source_that_has_a_span_is_found_behind_one_that_has_not() -> None:
    made = aligned_device(2)
    device = device_of(made, made.blob, made.blob)
    nothing = device.sources[1].blob
    assert isinstance(nothing, MemoryBlob)
    nothing.at_hand = False
    assert read(device, RecentSpans(0), 0, 4 * BLOCK_SIZE) == made.content
    assert nothing.peeks == 1
