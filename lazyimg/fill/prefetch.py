"""Fill what is missing of a device before anybody reads it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lazyimg.fill.budget import Priority
from lazyimg.fill.plan import block_ceil, block_floor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from lazyimg.fill.engine import Engine
    from lazyimg.fill.ports import Sink
    from lazyimg_formats.device_table import DeviceTable


async def prefetch(
    engine: Engine,
    table: DeviceTable,
    sink: Sink,
    present: Callable[[], Sequence[range]],
    wanted: Sequence[range] | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    priority: Priority = Priority.BACKGROUND,
) -> None:
    """Fill what is missing of a device, in its order, in large pieces, a few side by side.

    Zeros are written too: afterwards a read of what was wanted asks nobody. Cancelling it stops
    what nobody else waits for.

    Args:
        engine: has the device.
        table: the device.
        sink: where to write.
        present: gives what `sink` has, in bytes of the device; asked once, at the start.
        wanted: ranges in bytes of the device, in any order; the whole device by default.
        progress: called in the event loop with the bytes present and the bytes wanted, of what is
            wanted: at the start, and after each piece.
        priority: how urgent it is.

    Raises:
        LazyimgError: the first failure; nothing more is filled after it.
    """
    whole = [range(table.size)] if wanted is None else wanted
    asked = union_blocks(whole, table.size)
    missing = list(subtract(asked, union_blocks(present(), table.size, inward=True)))
    total = sum(map(len, asked))
    done = total - sum(map(len, missing))
    if progress is not None:
        progress(done, total)
    pieces = cut(missing, engine.limits.prefetch_piece)

    async def work() -> None:
        nonlocal done
        for piece in pieces:  # all workers take from the same iterator
            await engine.fill(table.name, piece.start, len(piece), sink, priority=priority)
            done += len(piece)
            if progress is not None:
                progress(done, total)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(engine.limits.prefetch_pieces):
                group.create_task(work())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


def union_blocks(ranges: Iterable[range], size: int, *, inward: bool = False) -> list[range]:
    """Give the whole blocks of ranges as disjoint ranges in order, none past `size`.

    Args:
        ranges: in bytes, in any order, may overlap.
        size: bytes of the device.
        inward: leave out blocks that are not wholly in a range, rather than add their rest.
    """
    blocks: list[range] = []
    for part in sorted(ranges, key=lambda part: part.start):
        if inward:
            start, stop = block_ceil(part.start), block_floor(part.stop)
        else:
            start, stop = block_floor(part.start), block_ceil(part.stop)
        stop = min(stop, size)
        if not part or start >= stop:
            continue
        if blocks and start <= blocks[-1].stop:
            blocks[-1] = range(blocks[-1].start, max(stop, blocks[-1].stop))
        else:
            blocks.append(range(start, stop))
    return blocks


def subtract(ranges: Iterable[range], others: Sequence[range]) -> Iterator[range]:
    """Give what is in `ranges` and not in `others`: each disjoint and in order."""
    position = 0
    for part in ranges:
        start = part.start
        while position < len(others) and others[position].stop <= start:
            position += 1
        index = position
        while index < len(others) and others[index].start < part.stop:
            if others[index].start > start:
                yield range(start, others[index].start)
            start = max(start, others[index].stop)
            index += 1
        if start < part.stop:
            yield range(start, part.stop)


def cut(ranges: Iterable[range], length: int) -> Iterator[range]:
    """Give the ranges in pieces, each ending at the latest where `length` divides its offset."""
    for part in ranges:
        start = part.start
        while start < part.stop:
            stop = min(part.stop, start - start % length + length)
            yield range(start, stop)
            start = stop
