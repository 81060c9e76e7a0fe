"""Ranges that are read at once, because their spans are in memory."""

from __future__ import annotations

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


@given(devices(), st.integers(0, 40), st.integers(1, 40), st.integers(0, 300_000))
@settings(max_examples=150, deadline=None)
def test_bytes_are_the_device_s(made: Made, block: int, blocks: int, ahead: int) -> None:
    offset, length = block * BLOCK_SIZE, blocks * BLOCK_SIZE
    recent = RecentSpans(1 << 20)
    data = read_local(device_of(made), recent, offset, length, ahead)
    assert data is not None
    assert len(data) <= max(length, ahead)
    given_end = offset + max(length, len(data))
    expected = made.content[offset:given_end]
    assert bytes(data).ljust(length, b"\0") == expected.ljust(length, b"\0")


def test_what_is_not_in_memory_is_not_given() -> None:
    made = aligned_device(2)
    recent = RecentSpans(1 << 20)
    device = device_of(made, at_hand=False)
    assert read_local(device, recent, 0, BLOCK_SIZE, 0) is None
    recent.put(made.name, 0, made.content[:8192])
    assert read_local(device, recent, 0, BLOCK_SIZE, 0) == made.content[:4096]
    assert read_local(device, recent, BLOCK_SIZE, 2 * BLOCK_SIZE, 0) is None


def test_zeros_need_nothing() -> None:
    made = make_device([SpanPlan(b"x" * 10)], tail=40_000)
    device = device_of(made, at_hand=False)
    assert read_local(device, RecentSpans(0), BLOCK_SIZE, 2 * BLOCK_SIZE, 0) == b""
    assert read_local(device, RecentSpans(0), 1 << 30, BLOCK_SIZE, 0) == b""


def test_rest_of_a_span_is_given_along_or_kept() -> None:
    made = make_device([SpanPlan(pattern(65_536, i), Codec.ZSTD) for i in range(2)])
    recent = RecentSpans(1 << 20)
    data = read_local(device_of(made), recent, 8192, BLOCK_SIZE, 1 << 20)
    assert data == made.content[8192:65_536]
    assert recent.get(made.name, 0) == made.content[:65_536]
    assert recent.get(made.name, 1) is None
    recent.drop_device(made.name)
    assert read_local(device_of(made), recent, 0, BLOCK_SIZE, 1 << 20) == made.content[:65_536]
    assert recent.size == 0


def test_damaged_bytes_are_not_given() -> None:
    made = aligned_device(1)
    damaged = b"!" + made.blob[1:]
    device = device_of(made, made.blob, damaged)
    assert read_local(device, RecentSpans(0), 0, BLOCK_SIZE, 0) is None


def test_what_takes_long_is_left_to_others() -> None:
    many = make_device([SpanPlan(pattern(10, i)) for i in range(MAX_SPANS + 1)])
    assert read_local(device_of(many), RecentSpans(0), 0, BLOCK_SIZE, 0) is None
    large = make_device([SpanPlan(bytes(MAX_SIZE + 1), Codec.ZSTD)])
    assert read_local(device_of(large), RecentSpans(0), 0, BLOCK_SIZE, 0) is None
    assert read_local(device_of(large), RecentSpans(0), 1 << 30, MAX_SIZE + BLOCK_SIZE, 0) is None
