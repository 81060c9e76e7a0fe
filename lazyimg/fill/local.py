"""Ranges whose spans are in memory: read at once, in the thread that asks.

Nothing is waited for here, and nothing is fetched; what is decoded is checked as ever. Whatever
does not work is left to the engine, which has other sources, and says what is wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lazyimg.errors import CorruptError
from lazyimg.fill.decode import decode_span
from lazyimg.fill.plan import block_ceil, known_range, parts_in

if TYPE_CHECKING:
    from lazyimg.fill.device import Device
    from lazyimg.fill.recent import RecentSpans

MAX_SIZE: Final = 4 << 20
"""Bytes of a range, and of the spans that it needs, read in one go: others wait meanwhile."""

MAX_SPANS: Final = 256
"""Spans that are read in one go."""


def read_local(
    device: Device, recent: RecentSpans, offset: int, length: int, ahead: int
) -> bytes | memoryview | None:
    """Give the bytes of a range, or None when a span that it needs is not in memory.

    Less than `length` bytes means zeros from there on.

    Args:
        device: what is read.
        recent: spans that were decoded lately; what is decoded here, and not used up, is added.
        offset: first byte, a multiple of `BLOCK_SIZE`.
        length: bytes, a multiple of it; may reach past the device's end: zeros.
        ahead: bytes to give where the spans that are needed have so many.
    """
    table = device.table
    spans = table.spans_in(offset, length)
    if length > MAX_SIZE or len(spans) > MAX_SPANS:
        return None
    if not spans:
        return b""
    decoded: dict[int, bytes] = {}
    size = 0
    for span in spans:
        size += table.span_length(span)
        if size > MAX_SIZE:
            return None
        data = recent.get(table.name, span)
        if data is None:
            data = _decode(device, span)
        if data is None:
            return None
        decoded[span] = data
    stop = max(offset + length, min(offset + ahead, _known_end(device, spans)))
    for span in {spans[0], spans[-1]}:
        if len(decoded[span]) > stop - offset:
            recent.put(table.name, span, decoded[span])
    return _join(device, offset, stop, decoded)


def _decode(device: Device, span: int) -> bytes | None:
    for source in reversed(device.sources):
        found = source.table.span(span)
        data = source.blob.peek(found.blob_offset, found.blob_length)
        if data is not None:
            try:
                return decode_span(device.table.name, found, memoryview(data))
            except CorruptError:
                return None
    return None


def _known_end(device: Device, spans: range) -> int:
    """Give the end of the last whole block that these spans alone have bytes of."""
    table = device.table
    last = table.extent(table.extents_of(spans)[-1])
    return min(known_range(table, spans)[1], block_ceil(last.device_offset + last.length))


def _join(device: Device, start: int, stop: int, decoded: dict[int, bytes]) -> bytes | memoryview:
    parts = list(parts_in(device.table, start, stop))
    if len(parts) == 1:
        extent, first, last = parts[0]
        if first == start:  # zeros may follow: the caller's business
            inner = extent.inner_offset + first - extent.device_offset
            return memoryview(decoded[extent.span])[inner : inner + last - first]
    joined = memoryview(bytearray(stop - start))
    for extent, first, last in parts:
        inner = extent.inner_offset + first - extent.device_offset
        source = memoryview(decoded[extent.span])
        joined[first - start : last - start] = source[inner : inner + last - first]
    return joined
