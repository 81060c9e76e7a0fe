"""Ranges whose spans are in memory: read at once, in the thread that asks, into its buffer.

Nothing is waited for here, and nothing is fetched; what is decoded is checked as ever. Whatever
does not work is left to the engine, which has other sources, and says what is wrong. A span that is
wanted whole is decoded where it is to lie: fresh memory costs more than decoding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lazyimg.errors import CorruptError
from lazyimg.fill.assembly import ZEROS
from lazyimg.fill.decode import decode_into, decode_span
from lazyimg.fill.plan import block_ceil, known_range, parts_in

if TYPE_CHECKING:
    from lazyimg.fill.device import Device
    from lazyimg.fill.recent import RecentSpans
    from lazyimg_formats.device_table import Span

MAX_SIZE: Final = 4 << 20
"""Bytes of the spans of a range that are decoded in one go: others wait meanwhile."""

MAX_SPANS: Final = 256
"""Spans that are read in one go."""


def read_local(
    device: Device, recent: RecentSpans, offset: int, length: int, buffer: memoryview
) -> int | None:
    """Put the bytes of a range into `buffer`, unless a span that it needs is not in memory.

    Args:
        device: what is read.
        recent: spans that were decoded lately; what is decoded here, and not used up, is added.
        offset: first byte, a multiple of `BLOCK_SIZE`.
        length: bytes, a multiple of it; may reach past the device's end: zeros.
        buffer: takes at least `length` bytes; it gets more where the spans that are needed have
            more.

    Returns:
        How many bytes there are, less than `length` where only zeros follow; None if a span is
        missing, and the buffer holds anything then.
    """
    table = device.table
    spans = table.spans_in(offset, length)
    if not spans:
        return 0
    if len(spans) > MAX_SPANS or sum(map(table.span_length, spans)) > MAX_SIZE:
        return None
    stop = max(offset + length, min(offset + len(buffer), _known_end(device, spans)))
    end = offset
    number, data = -1, b""  # a span that is used in parts: by several extents, or not all of it
    for extent, first, last in parts_in(table, offset, stop):
        _put_zeros(buffer[end - offset : first - offset])
        part = buffer[first - offset : last - offset]
        end = last
        if len(part) == table.span_length(extent.span):
            if not _read_whole(device, recent, extent.span, part):
                return None
            continue
        if extent.span != number:
            number, found = extent.span, _read_span(device, recent, extent.span)
            if found is None:
                return None
            data = found
        inner = extent.inner_offset + first - extent.device_offset
        part[:] = memoryview(data)[inner : inner + len(part)]
        if len(part) < extent.length:  # the range's edge goes through it: the rest comes next
            recent.put(table.name, number, data)
    return end - offset


def _put_zeros(part: memoryview) -> None:
    for start in range(0, len(part), len(ZEROS)):
        piece = part[start : start + len(ZEROS)]
        piece[:] = ZEROS[: len(piece)]


def _read_whole(device: Device, recent: RecentSpans, number: int, part: memoryview) -> bool:
    data = recent.get(device.table.name, number)
    if data is not None:
        part[:] = data
        return True
    found = _peek(device, number)
    if found is None:
        return False
    try:
        decode_into(device.table.name, *found, part)
    except CorruptError:
        return False
    return True


def _read_span(device: Device, recent: RecentSpans, number: int) -> bytes | None:
    data = recent.get(device.table.name, number)
    if data is not None:
        return data
    found = _peek(device, number)
    if found is None:
        return None
    try:
        return decode_span(device.table.name, *found)
    except CorruptError:
        return None


def _peek(device: Device, number: int) -> tuple[Span, memoryview] | None:
    for source in reversed(device.sources):
        offset, length = source.table.blob_range(number)
        data = source.blob.peek(offset, length)
        if data is not None:
            return source.table.span(number), memoryview(data)
    return None


def _known_end(device: Device, spans: range) -> int:
    """Give the end of the last whole block that these spans alone have bytes of."""
    table = device.table
    last = table.extent(table.extents_of(spans)[-1])
    return min(known_range(table, spans)[1], block_ceil(last.device_offset + last.length))
