"""What a fill must fetch, decode and write: decisions only, no bytes, no waiting.

Spans are used in device order, so the spans that a device range needs are one run, and a run of
spans gives one run of the device. Only whole blocks are written. Of the blocks that a run of spans
touches, those at its two edges may hold bytes of the spans beside it: the run does not *know* them,
and gives its part of them as fragments.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from lazyimg_formats.device_table import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from lazyimg.limits import FillLimits
    from lazyimg_formats.device_table import DeviceTable, Extent

ZERO_GAP: Final = 64 << 10
"""Bytes of zeros between two extents that are written together with them."""

MAX_STEP: Final = 16 << 20
"""Bytes of a device that one step of a fill covers."""

MAX_STEP_SPANS: Final = 2048
"""Spans that one step of a fill needs, unless one block alone has more."""

_WIDEN_DEVICE: Final = 8
"""How many times `min_fetch` of the device, in each direction, a request may be widened by."""


@dataclass(frozen=True, slots=True)
class BlobRange:
    """`length` bytes at `offset` of a blob, which hold `spans`."""

    offset: int
    length: int
    spans: tuple[int, ...]


def block_floor(offset: int) -> int:
    """Give the start of the block that byte `offset` lies in."""
    return offset - offset % BLOCK_SIZE


def block_ceil(offset: int) -> int:
    """Give the end of the last block that holds a byte before `offset`."""
    return offset + -offset % BLOCK_SIZE


def plan_steps(table: DeviceTable, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Cut a range of whole blocks into ranges whose fill takes bounded work."""
    while start < stop:
        end = min(start + MAX_STEP, stop)
        spans = table.spans_in(start, end - start)
        if len(spans) > MAX_STEP_SPANS:
            first = table.extents_of(range(spans[MAX_STEP_SPANS], spans[MAX_STEP_SPANS] + 1))[0]
            end = max(start + BLOCK_SIZE, block_floor(table.extent(first).device_offset))
        yield start, end
        start = end


def plan_runs(spans: Iterable[int]) -> Iterator[range]:
    """Give the runs of consecutive numbers in ascending `spans`."""
    start = stop = -1
    for span in spans:
        if span != stop:
            if start != stop:
                yield range(start, stop)
            start = span
        stop = span + 1
    if start != stop:
        yield range(start, stop)


def widen_run(
    table: DeviceTable, run: range, free: Callable[[int], bool], limits: FillLimits
) -> range:
    """Add spans beside `run` until about `limits.min_fetch` bytes of blob are fetched.

    Most of them are taken from behind the run, since files are read forwards.

    Args:
        table: the device.
        run: spans that are wanted, not empty.
        free: whether a span may be added: neither present nor being filled.
        limits: `min_fetch`, and `merge_gap` between neighbours.
    """
    first, last = table.blob_range(run[0]), table.blob_range(run[-1])
    spare = limits.min_fetch - (last[0] + last[1] - first[0])
    if spare <= 0:
        return run
    grow = partial(_grow, table, free, limits)
    behind = grow(run[-1], spare * 3 // 4, direction=1)
    before = grow(run[0], spare - behind[1], direction=-1)
    if before[1] < spare - spare * 3 // 4:
        behind = grow(run[-1], spare - before[1], direction=1)
    return range(before[0], behind[0] + 1)


def _grow(
    table: DeviceTable,
    free: Callable[[int], bool],
    limits: FillLimits,
    /,
    span: int,
    spare: int,
    *,
    direction: int,
) -> tuple[int, int]:
    """Give the last span in a direction that `spare` bytes of blob reach, and the bytes used."""
    used = 0
    home = _device_start(table, span)
    reach = _WIDEN_DEVICE * limits.min_fetch
    position, length = table.blob_range(span)
    while 0 <= span + direction < table.span_count and free(span + direction):
        offset, size = table.blob_range(span + direction)
        gap = offset - position - length if direction > 0 else position - offset - size
        if offset == position:  # parts of the same bytes
            gap = size = 0
        far = abs(_device_start(table, span + direction) - home)
        if not 0 <= gap <= limits.merge_gap or used + gap + size > spare or far > reach:
            break
        used += gap + size
        span += direction
        position, length = table.blob_range(span)
    return span, used


def _device_start(table: DeviceTable, span: int) -> int:
    return table.extent(table.extents_of(range(span, span + 1))[0]).device_offset


def plan_groups(table: DeviceTable, run: range, limits: FillLimits) -> Iterator[range]:
    """Cut a run of spans into runs that are fetched by one request each, as far as possible."""
    first = run.start
    decoded = 0
    low = high = -1
    for span in run:
        offset, length = table.blob_range(span)
        size = table.span_length(span)
        joined = offset + length == high  # parts of the same bytes
        apart = not joined and (
            not 0 <= offset - high <= limits.merge_gap or offset + length - low > limits.max_fetch
        )
        if span > first and (apart or decoded + size > limits.max_decode):
            yield range(first, span)
            first, decoded, low = span, 0, offset
        elif span == first:
            low = offset
        high = offset + length
        decoded += size
    yield range(first, run.stop)


def plan_blob_ranges(
    table: DeviceTable, spans: Iterable[int], limits: FillLimits
) -> list[BlobRange]:
    """Give the ranges of the blob that hold `spans`, near neighbours merged, in blob order."""
    ranges: list[BlobRange] = []
    start = stop = 0
    members: list[int] = []
    for offset, length, span in sorted((*table.blob_range(span), span) for span in spans):
        end = max(stop, offset + length)
        too_large = end > stop and end - start > limits.max_fetch  # parts of the same bytes are not
        if members and (offset > stop + limits.merge_gap or too_large):
            ranges.append(BlobRange(start, stop - start, tuple(members)))
            members = []
        if not members:
            start, end = offset, offset + length
        members.append(span)
        stop = end
    if members:
        ranges.append(BlobRange(start, stop - start, tuple(members)))
    return ranges


def known_range(table: DeviceTable, spans: range) -> tuple[int, int]:
    """Give the range of whole blocks (start, stop) in which only `spans` and zeros are."""
    extents = table.extents_of(spans)
    start, stop = 0, table.size
    if extents.start:
        before = table.extent(extents.start - 1)
        start = block_ceil(before.device_offset + before.length)
    if extents.stop < table.extent_count:
        stop = block_floor(table.extent(extents.stop).device_offset)
    return start, max(start, stop)


def plan_segments(
    table: DeviceTable, spans: range, extents: range, max_length: int
) -> Iterator[tuple[int, int]]:
    """Give the ranges of whole blocks (start, stop) that filling `spans` writes, in order.

    Args:
        table: the device.
        spans: the run that is filled.
        extents: the run's extents, or some consecutive ones of them.
        max_length: bytes that no range is longer than, a multiple of `BLOCK_SIZE`.
    """
    low, high = known_range(table, spans)
    start = stop = -1
    for index in extents:
        extent = table.extent(index)
        first = max(block_floor(extent.device_offset), low)
        last = min(block_ceil(extent.device_offset + extent.length), high)
        if first >= last:
            continue
        if start >= 0 and first > stop + ZERO_GAP:
            yield start, stop
            start = first
        elif start < 0:
            start = first
        stop = last
        while stop - start > max_length:
            yield start, start + max_length
            start += max_length
    if start >= 0:
        yield start, stop


def plan_rest(
    table: DeviceTable, start: int, stop: int, runs: Sequence[range]
) -> Iterator[tuple[int, int]]:
    """Give what of a range of whole blocks is not written once `runs` of spans are filled.

    It holds zeros, and blocks that spans of two runs share.

    Args:
        table: the device.
        start: the range's first byte.
        stop: the range's end, may lie past the device's.
        runs: disjoint and in order; together they have every span that the range needs.
    """
    wanted = table.extents_in(start, stop - start)
    for run in runs:
        mine = table.extents_of(run)
        extents = range(max(wanted.start, mine.start), min(wanted.stop, mine.stop))
        for first, last in plan_segments(table, run, extents, table.size):
            if first > start:
                yield start, first
            start = max(start, last)
    if start < stop:
        yield start, stop


def parts_in(table: DeviceTable, start: int, stop: int) -> Iterator[tuple[Extent, int, int]]:
    """Give each extent in a device range with the part of it (start, stop) inside the range."""
    for index in table.extents_in(start, stop - start):
        extent = table.extent(index)
        end = extent.device_offset + extent.length
        yield extent, max(start, extent.device_offset), min(stop, end)
