"""Ranges whose spans are in memory: read at once, in the thread that asks, into its buffer.

Nothing is waited for here, and nothing is fetched; what is decoded is checked as ever. Whatever
does not work is left to the engine, which has other sources, and says what is wrong. A span that is
wanted whole is decoded where it is to lie: fresh memory costs more than decoding.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from lazyimg.errors import LazyimgError
from lazyimg.fill.assembly import ZEROS
from lazyimg.fill.decode import decode_into, decode_span
from lazyimg.fill.plan import block_ceil, known_range, parts_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from lazyimg.fill.device import Device
    from lazyimg.fill.recent import RecentSpans
    from lazyimg_formats.device_table import DeviceTable, Span

MAX_SIZE: Final = 4 << 20
"""Bytes of the spans of a range that are decoded in one go: others wait meanwhile."""

MAX_SPANS: Final = 256
"""Spans that are read in one go."""

_MERGE_GAP: Final = 4 << 10
"""Bytes of a blob between two spans that are looked for in one go."""


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
    if table.has_parts and len(spans) > 1:
        return None  # those of one member or frame are better decoded in one pass
    stop = max(offset + length, min(offset + len(buffer), _known_end(device, spans)))
    at_hand = _AtHand(device, spans[-1])
    try:
        return _read(device, recent, at_hand, offset, buffer[: stop - offset])
    except (LazyimgError, _MissingError):
        return None


class _MissingError(Exception):
    """A span is not in memory."""


def _read(
    device: Device, recent: RecentSpans, at_hand: _AtHand, offset: int, buffer: memoryview
) -> int:
    name = device.table.name
    end = offset
    number, data = -1, b""  # a span that is used in parts: by several extents, or not all of it
    for extent, first, last in parts_in(device.table, offset, offset + len(buffer)):
        _put_zeros(buffer[end - offset : first - offset])
        part = buffer[first - offset : last - offset]
        end = last
        if len(part) == device.table.span_length(extent.span):
            _put_whole(name, recent, at_hand, extent.span, part)
            continue
        if extent.span != number:
            number = extent.span
            data = recent.get(name, number) or decode_span(name, *at_hand.find(number))
        inner = extent.inner_offset + first - extent.device_offset
        part[:] = memoryview(data)[inner : inner + len(part)]
        if len(part) < extent.length:  # the range's edge goes through it: the rest comes next
            recent.put(name, number, data)
    return end - offset


def _put_whole(
    name: str, recent: RecentSpans, at_hand: _AtHand, number: int, part: memoryview
) -> None:
    data = recent.get(name, number)
    if data is None:
        span, stored, window = at_hand.find(number)
        decode_into(name, span, stored, part, window)
    else:
        part[:] = data


def _put_zeros(part: memoryview) -> None:
    for start in range(0, len(part), len(ZEROS)):
        piece = part[start : start + len(ZEROS)]
        piece[:] = ZEROS[: len(piece)]


class _AtHand:
    """Compressed spans of a device that are in memory, looked for several at a time.

    Args:
        device: what is read.
        last: the last span that is wanted.
    """

    def __init__(self, device: Device, last: int) -> None:
        self._device = device
        self._last = last
        self._table = device.table  # of the source that `_data` is of
        self._start = 0  # of `_data` in its blob
        self._data = memoryview(b"")

    def find(self, number: int) -> tuple[Span, memoryview, Callable[[], bytes]]:
        """Give a span, its bytes, valid until the next call, and what gives its window.

        Raises:
            _MissingError: they are not there.
        """
        span, data = self._cut(number) or self._peek(number)
        return span, data, partial(self._table.window, number)

    def _cut(self, number: int) -> tuple[Span, memoryview] | None:
        """Give a span that was found together with another one."""
        span = self._table.span(number)
        start = span.blob_offset - self._start
        if not 0 <= start <= start + span.blob_length <= len(self._data):
            return None
        return span, self._data[start : start + span.blob_length]

    def _peek(self, number: int) -> tuple[Span, memoryview]:
        for source in reversed(self._device.sources):
            start, end = self._reach(source.table, number)
            data = source.blob.peek(start, end - start)
            if data is not None:
                self._table, self._start, self._data = source.table, start, memoryview(data)
                span = source.table.span(number)
                return span, self._data[: span.blob_length]
        raise _MissingError

    def _reach(self, table: DeviceTable, number: int) -> tuple[int, int]:
        """Give the range of the blob to look for: the span, and those that follow close by."""
        start, length = table.blob_range(number)
        end = start + length
        for following in range(number + 1, self._last + 1):
            offset, length = table.blob_range(following)
            if not 0 <= offset - end <= _MERGE_GAP or offset + length - start > MAX_SIZE:
                break
            end = offset + length
        return start, end


def _known_end(device: Device, spans: range) -> int:
    """Give the end of the last whole block that these spans alone have bytes of."""
    table = device.table
    last = table.extent(table.extents_of(spans)[-1])
    return min(known_range(table, spans)[1], block_ceil(last.device_offset + last.length))
