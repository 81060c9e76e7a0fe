"""What a fill must fetch and write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from lazyimg.fill import plan
from lazyimg.fill.plan import (
    MAX_STEP,
    ZERO_GAP,
    BlobRange,
    block_ceil,
    block_floor,
    known_range,
    parts_in,
    plan_blob_ranges,
    plan_groups,
    plan_rest,
    plan_runs,
    plan_segments,
    plan_steps,
    widen_run,
)
from lazyimg.limits import FillLimits
from lazyimg_formats.device_table import (
    BLOCK_SIZE,
    Codec,
    DeviceTable,
    Extent,
    Span,
    serialize_device_table,
)
from tests.fakes.devices import SpanPlan, aligned_device, devices, make_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from tests.fakes.devices import Device

DIGEST = bytes(32)


def table_of(spans: Sequence[tuple[int, int]], length: int = BLOCK_SIZE) -> DeviceTable:
    """Give a device of spans that decode to `length` and lie in the blob as (offset, length)."""
    return DeviceTable(
        serialize_device_table(
            block_ceil(len(spans) * length),
            [Extent(i * length, length, i, 0) for i in range(len(spans))],
            [Span(offset, stored, length, DIGEST, Codec.ZSTD) for offset, stored in spans],
        )
    )


def test_blocks() -> None:
    assert [block_floor(n) for n in (0, 1, 4095, 4096)] == [0, 0, 0, 4096]
    assert [block_ceil(n) for n in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]


def test_runs() -> None:
    assert list(plan_runs([])) == []
    assert list(plan_runs([3])) == [range(3, 4)]
    assert list(plan_runs([0, 1, 2, 5, 6, 9])) == [range(3), range(5, 7), range(9, 10)]


def test_steps_of_a_long_request() -> None:
    table = table_of([(0, 1)])
    assert list(plan_steps(table, 4096, 2 * MAX_STEP)) == [
        (4096, 4096 + MAX_STEP),
        (4096 + MAX_STEP, 2 * MAX_STEP),
    ]
    assert list(plan_steps(table, 0, 0)) == []


def test_steps_are_bounded_by_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MAX_STEP_SPANS", 3)
    device = table_of([(i, 1) for i in range(8)])
    assert list(plan_steps(device, 0, device.size)) == [
        (0, 12_288),
        (12_288, 24_576),
        (24_576, 32_768),
    ]
    crowded = table_of([(i, 1) for i in range(20)], length=512)  # eight of them in each block
    assert list(plan_steps(crowded, 0, crowded.size)) == [(0, 4096), (4096, 8192), (8192, 12_288)]


@given(devices())
@settings(max_examples=30)
def test_steps_cover_the_request_once(device: Device) -> None:
    steps = list(plan_steps(device.table, 0, len(device.content) + 2 * BLOCK_SIZE))
    assert [start for start, _ in steps] == [0, *[stop for _, stop in steps[:-1]]]
    assert steps[-1][1] == len(device.content) + 2 * BLOCK_SIZE


def widened(
    table: DeviceTable, run: range, min_fetch: int, taken: Sequence[int] = (), gap: int = 10
) -> range:
    limits = FillLimits(min_fetch=min_fetch, merge_gap=gap)
    return widen_run(table, run, lambda span: span not in taken, limits)


def test_widening_prefers_what_comes_behind() -> None:
    table = table_of([(i * 100, 100) for i in range(20)], length=200)
    assert widened(table, range(10, 11), 100) == range(10, 11)
    assert widened(table, range(10, 11), 500) == range(9, 14)
    assert widened(table, range(19, 20), 500) == range(15, 20)
    assert widened(table, range(1), 500) == range(5)
    assert widened(table, range(10, 11), 500, taken=[12, 9]) == range(10, 12)
    assert widened(table, range(10, 11), 500, taken=[9]) == range(10, 15)
    assert widened(table, range(8, 12), 500) == range(7, 12)


def test_widening_stops_at_gaps_and_disorder_of_the_blob() -> None:
    assert widened(table_of([(0, 100), (100, 100), (300, 100)]), range(1, 2), 900) == range(2)
    assert widened(table_of([(0, 100), (110, 100)]), range(1), 900) == range(2)
    assert widened(table_of([(900, 100), (0, 100), (500, 100)]), range(1, 2), 900) == range(1, 2)


def test_widening_stops_where_the_device_gets_too_long() -> None:
    table = table_of([(i, 1) for i in range(100)], length=1 << 20)
    assert widened(table, range(50, 51), 1 << 20) == range(42, 59)


def groups(table: DeviceTable, **limits: int) -> list[range]:
    return list(plan_groups(table, range(table.span_count), FillLimits(**limits)))


def test_groups_end_at_limits_and_gaps() -> None:
    near = table_of([(i * 100, 100) for i in range(5)])
    assert groups(near) == [range(5)]
    assert groups(near, max_fetch=200) == [range(2), range(2, 4), range(4, 5)]
    assert groups(near, max_fetch=50) == [range(i, i + 1) for i in range(5)]
    assert groups(near, max_decode=3 * BLOCK_SIZE) == [range(3), range(3, 5)]
    apart = table_of([(0, 100), (150, 100), (301, 100), (0, 5)])
    assert groups(apart, merge_gap=50) == [range(2), range(2, 3), range(3, 4)]


def test_blob_ranges_merge_neighbours() -> None:
    table = table_of([(500, 100), (0, 100), (120, 80), (620, 10), (0, 100)])
    limits = FillLimits(merge_gap=20)
    assert plan_blob_ranges(table, range(5), limits) == [
        BlobRange(0, 200, (1, 4, 2)),
        BlobRange(500, 130, (0, 3)),
    ]
    assert plan_blob_ranges(table, [2, 0], limits) == [
        BlobRange(120, 80, (2,)),
        BlobRange(500, 100, (0,)),
    ]
    assert plan_blob_ranges(table, [], limits) == []
    capped = FillLimits(merge_gap=20, max_fetch=100)
    assert [part.length for part in plan_blob_ranges(table, range(5), capped)] == [100, 80, 100, 10]


def test_span_inside_another_in_the_blob() -> None:
    table = table_of([(0, 100), (10, 20), (90, 30)])
    assert plan_blob_ranges(table, range(3), FillLimits(merge_gap=0)) == [
        BlobRange(0, 120, (0, 1, 2))
    ]


def test_known_blocks_of_a_run() -> None:
    table = table_of([(i, 1) for i in range(6)], length=3000)  # 18,000 bytes
    assert known_range(table, range(6)) == (0, 20_480)
    assert known_range(table, range(2, 4)) == (8192, 8192)
    assert known_range(table, range(2, 5)) == (8192, 12_288)
    assert known_range(table, range(1, 2)) == (4096, 4096)
    assert known_range(table, range(5, 6)) == (16_384, 20_480)


def segments(table: DeviceTable, spans: range, max_length: int = 1 << 20) -> list[tuple[int, int]]:
    return list(plan_segments(table, spans, table.extents_of(spans), max_length))


def test_segments_leave_out_long_zeros() -> None:
    table = DeviceTable(
        serialize_device_table(
            1 << 20,
            [
                Extent(5000, 10, 0, 0),
                Extent(8192 + ZERO_GAP, 10, 1, 0),
                Extent(3 * ZERO_GAP, 5000, 1, 10),
            ],
            [Span(0, 1, 10, DIGEST, Codec.RAW), Span(1, 1, 9000, DIGEST, Codec.RAW)],
        )
    )
    assert segments(table, range(2)) == [
        (4096, 12_288 + ZERO_GAP),
        (3 * ZERO_GAP, 3 * ZERO_GAP + 8192),
    ]
    assert list(plan_rest(table, 0, 1 << 20, [range(2)])) == [
        (0, 4096),
        (12_288 + ZERO_GAP, 3 * ZERO_GAP),
        (3 * ZERO_GAP + 8192, 1 << 20),
    ]


def test_segments_are_cut() -> None:
    table = table_of([(0, 1)], length=10 * BLOCK_SIZE)
    assert segments(table, range(1), 4 * BLOCK_SIZE) == [
        (0, 16_384),
        (16_384, 32_768),
        (32_768, 40_960),
    ]


@given(devices(), st.data())
def test_segments_and_rest_cover_a_request(device: Device, data: st.DataObject) -> None:
    table = device.table
    blocks = table.size // BLOCK_SIZE + 2
    start = data.draw(st.integers(0, blocks - 1)) * BLOCK_SIZE
    stop = start + data.draw(st.integers(1, blocks)) * BLOCK_SIZE
    needed = table.spans_in(start, stop - start)
    runs = [needed] if needed else []
    if len(needed) > 1:
        cut = data.draw(st.integers(needed.start + 1, needed.stop - 1))
        runs = [range(needed.start, cut), range(cut, needed.stop)]
    pieces = [part for run in runs for part in segments(table, run)]
    rest = list(plan_rest(table, start, stop, runs))
    count = dict.fromkeys(range(start, stop, BLOCK_SIZE), 0)
    for first, last in rest:
        assert start <= first < last <= stop
    for first, last in pieces + rest:
        for block in range(first, last, BLOCK_SIZE):
            if block in count:
                count[block] += 1
    for block, times in count.items():  # zeros that the request begins in may be written twice
        assert times == 1 or (times == 2 and not table.spans_in(block, BLOCK_SIZE))
    for first, last in rest:
        for block in range(first, last, BLOCK_SIZE):
            spans = table.spans_in(block, BLOCK_SIZE)
            assert not spans or not any(set(spans) <= set(run) for run in runs)


def test_parts_of_extents() -> None:
    table = aligned_device(2).table
    parts = [(extent.span, start, stop) for extent, start, stop in parts_in(table, 5000, 9000)]
    assert parts == [(0, 5000, 8192), (1, 8192, 9000)]


def test_parts_of_the_same_bytes_go_together() -> None:
    """They cost no further byte, whatever the limits for gaps and requests are."""
    plans = [SpanPlan(bytes(BLOCK_SIZE), Codec.GZIP, 10, joined=i % 4 > 0) for i in range(8)]
    table = make_device(plans).table
    offset, stored = table.blob_range(0)
    limits = FillLimits(merge_gap=0, max_fetch=1)
    for span in range(4):
        assert widen_run(table, range(span, span + 1), lambda _: True, limits) == range(4)
    assert list(plan_groups(table, range(8), limits)) == [range(4), range(4, 8)]
    assert plan_blob_ranges(table, range(4), limits) == [BlobRange(offset, stored, (0, 1, 2, 3))]
