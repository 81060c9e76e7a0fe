"""Decoded spans to whole blocks of a device. Runs in worker threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lazyimg.fill.plan import known_range, parts_in, plan_segments
from lazyimg_formats.device_table import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lazyimg.fill.ports import Sink
    from lazyimg_formats.device_table import DeviceTable


ZEROS: Final = memoryview(bytes(1 << 20))
"""To be written where there are no others."""


def gather(
    table: DeviceTable, start: int, stop: int, decoded: Mapping[int, bytes]
) -> list[memoryview]:
    """Give the bytes of a range of whole blocks, as parts that follow each other. Copies nothing.

    Args:
        table: the device.
        start: the range's first byte.
        stop: the range's end.
        decoded: each span that the range needs.
    """
    parts: list[memoryview] = []
    for extent, first, last in parts_in(table, start, stop):
        parts += _zeros(first - start)
        inner = extent.inner_offset + first - extent.device_offset
        parts.append(memoryview(decoded[extent.span])[inner : inner + last - first])
        start = last
    parts += _zeros(stop - start)
    return parts


def _zeros(length: int) -> Iterator[memoryview]:
    while length:
        yield ZEROS[:length]
        length -= min(length, len(ZEROS))


def edge_fragments(
    table: DeviceTable, spans: range, decoded: Mapping[int, bytes]
) -> Iterator[tuple[int, bytes]]:
    """Give device offset and bytes of what a run has in blocks that it does not know whole."""
    low, high = known_range(table, spans)
    extents = table.extents_of(spans)
    first, final = table.extent(extents[0]), table.extent(extents[-1])
    end = final.device_offset + final.length
    for start, stop in ((first.device_offset, min(low, end)), (high, end)):
        for extent, begin, until in parts_in(table, start, stop) if start < stop else ():
            inner = extent.inner_offset + begin - extent.device_offset
            yield begin, decoded[extent.span][inner : inner + until - begin]


def assemble_shared(table: DeviceTable, block: int, fragments: Mapping[int, bytes]) -> memoryview:
    """Give a block that several runs of spans have a part of.

    Args:
        table: the device.
        block: device offset of the block.
        fragments: device offset and bytes of every part; those of other blocks do no harm.

    Raises:
        ValueError: a part is missing.
    """
    view = memoryview(bytearray(BLOCK_SIZE))
    for extent, start, stop in parts_in(table, block, block + BLOCK_SIZE):
        data = fragments.get(start, b"")
        if len(data) != stop - start:
            raise ValueError(f"no fragment for bytes {start}-{stop - 1}, span {extent.span}")
        view[start - block : stop - block] = data
    return view


class Assembly:
    """What is written of decoded spans, batch by batch.

    Args:
        table: the device.
        runs: of spans, disjoint and in order.
        decoded: the bytes of each of them.
        batch: bytes after which a batch ends, a multiple of `BLOCK_SIZE`.

    Attributes:
        decoded: see above.
        runs: see above.
        fragments: what the runs have of blocks that they do not know whole.
        ended: nothing more comes.
    """

    def __init__(
        self,
        table: DeviceTable,
        runs: Sequence[range],
        decoded: Mapping[int, bytes],
        batch: int,
    ) -> None:
        self.runs = runs
        self.decoded = decoded
        self.fragments: dict[int, bytes] = {}
        for run in runs:
            self.fragments.update(edge_fragments(table, run, decoded))
        self.ended = False
        self._table = table
        self._batch = batch
        self._segments = (
            segment
            for run in runs
            for segment in plan_segments(table, run, table.extents_of(run), batch)
        )

    def write_batch(self, sink: Sink) -> int:
        """Write the next batch, in this thread; gives its bytes."""
        size = 0
        for start, stop in self._segments:
            sink.write_now(start, gather(self._table, start, stop, self.decoded))
            size += stop - start
            if size >= self._batch:
                return size
        self.ended = True
        return size
