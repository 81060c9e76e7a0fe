"""The fill engine: joins fills and plans flights. See the package's text."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from lazyimg.errors import LazyimgError, NotFoundError, RegistryError
from lazyimg.fill.assembly import ZEROS, assemble_shared
from lazyimg.fill.budget import Budget, Priority
from lazyimg.fill.device import Device, Flight, Source
from lazyimg.fill.flights import Counters, Flights
from lazyimg.fill.local import read_local
from lazyimg.fill.patience import insist
from lazyimg.fill.plan import (
    block_ceil,
    block_floor,
    plan_groups,
    plan_rest,
    plan_runs,
    plan_steps,
    widen_run,
)
from lazyimg.fill.recent import RecentSpans
from lazyimg_formats.device_table import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lazyimg.fill.budget import Place
    from lazyimg.fill.ports import BlobReader, Memory, Sink
    from lazyimg.limits import FillLimits
    from lazyimg_formats.device_table import DeviceTable

_MANY_EXTENTS: Final = 512
"""Extents of one step from which on planning its rest is work for a thread."""


@dataclass(frozen=True, slots=True)
class _Wish:
    """Where a fill writes, how urgent it is, when it gives up, and what it has at hand."""

    sink: Sink
    priority: Priority
    deadline: asyncio.Timeout
    at_hand: Source | None = None


class Engine:
    """Makes ranges of devices present.

    All methods but `size` and `read_local` are called in one event loop.

    Args:
        limits: of all fills together.
        memory: is told when there is work and when there has been none for a while.
    """

    def __init__(self, *, limits: FillLimits, memory: Memory | None = None) -> None:
        self.counters = Counters()
        self.limits = limits
        self._devices: dict[str, Device] = {}
        self._budget = Budget(limits)
        self._recent = RecentSpans(limits.recent)
        self._flights = Flights(
            limits,
            budget=self._budget,
            recent=self._recent,
            counters=self.counters,
            memory=memory,
        )

    def add_device(self, table: DeviceTable, blob: BlobReader, place: Place = ()) -> None:
        """Add a device, or one more source of a device that is there already.

        The source added last is asked first; the others are asked when it fails.

        Args:
            table: says what is where in the blob.
            blob: where it comes from.
            place: the registry that is asked, and the repository there: each has a share of the
                budget. () for none.
        """
        source = Source(table, blob, place)
        device = self._devices.get(table.name)
        if device is None:
            self._devices[table.name] = Device(source)
        else:
            device.sources.append(source)

    def remove_device(self, name: str, blob: BlobReader | None = None) -> None:
        """Take back one `add_device`: the one of `blob`, else the oldest.

        What is being fetched or written ends as it would have.

        Raises:
            NotFoundError: there is no such device, or `blob` is no source of it.
        """
        device = self._device(name)
        device.remove_source(blob)
        if not device.sources:
            del self._devices[name]
            self._recent.drop_device(name)

    def size(self, name: str) -> int | None:
        """Give a device's bytes, or None if there is no such device. Any thread may ask."""
        device = self._devices.get(name)
        return None if device is None else device.table.size

    def read_local(self, name: str, offset: int, length: int, buffer: memoryview) -> int | None:
        """Put a range's bytes into `buffer` if they are in memory. Any thread may ask.

        Args:
            name: the device.
            offset: first byte, a multiple of `BLOCK_SIZE`.
            length: bytes, a multiple of it.
            buffer: takes at least `length` bytes; more is put there where it costs nothing.

        Returns:
            How many bytes, checked; zeros follow where that is less than `length`. None if a span
            is not in memory, or is not what it should be: the buffer holds anything then.
        """
        device = self._devices.get(name)
        return None if device is None else read_local(device, self._recent, offset, length, buffer)

    def fetched(self, name: str) -> int:
        """Give the bytes of blobs that were fetched for a device since it was added."""
        return self._device(name).fetched

    def note_present(self, name: str, sink: Sink, ranges: Sequence[range]) -> None:
        """Say what `sink` has already, so that no request is widened to it.

        Args:
            name: the device.
            sink: the same object (or an equal one) that fills will be given.
            ranges: of the device, in bytes; what they do not contain is taken to be absent.
        """
        self._device(name).note_present(sink, ranges)

    async def fill(
        self,
        name: str,
        offset: int,
        length: int,
        sink: Sink,
        *,
        priority: Priority = Priority.ON_DEMAND,
        at_hand: Source | None = None,
    ) -> None:
        """Write a range of a device to `sink`; return when all of it is written.

        More may be written: what was decoded anyway. A range past the device's end is zeros.
        Cancelling it does not disturb other fills of the same range.

        Args:
            name: the device.
            offset: first byte, rounded down to a whole block.
            length: bytes, at least 1; the end is rounded up to a whole block.
            sink: where to write.
            priority: how urgent it is. Only `ON_DEMAND` is bound to the read deadline.
            at_hand: is asked before the device's sources, which are asked for what it does not
                give.

        Raises:
            LazyimgError: the range cannot be filled: NotFoundError without such a device,
                RegistryError (also when the deadline has passed), CorruptError, StorageError.
        """
        on_demand = priority is Priority.ON_DEMAND
        self.counters.reads += on_demand
        seconds = self.limits.read_deadline if on_demand else None
        start, stop = block_floor(offset), block_ceil(offset + length)
        deadline = asyncio.timeout(seconds)
        try:
            device = self._device(name)
            async with deadline:
                for step in plan_steps(device.table, start, stop):
                    wish = _Wish(sink, priority, deadline, at_hand)
                    if on_demand and seconds is None:
                        filling = partial(self._fill_step, device, step, wish)
                        await insist(f"device {name}", filling, partial(self._is_over, device))
                    else:
                        await self._fill_step(device, step, wish)
        except Exception as error:
            self.counters.reads_failed += on_demand
            if isinstance(error, TimeoutError) and deadline.expired():
                raise RegistryError(
                    f"device {name}",
                    f"bytes {start}-{stop - 1} did not arrive within {seconds:g} s",
                    retryable=True,
                ) from error
            raise

    async def close(self) -> None:
        """Fail the fills that wait for a blob, let those that write end, and stop the workers."""
        await self._flights.close()

    def _is_over(self, device: Device) -> bool:
        """Tell whether nothing fills a device any more."""
        return self._flights.closed or not device.sources

    def _device(self, name: str) -> Device:
        try:
            return self._devices[name]
        except KeyError:
            raise NotFoundError(f"device {name}", "no mounted image has it") from None

    async def _fill_step(self, device: Device, step: tuple[int, int], wish: _Wish) -> None:
        needed = device.table.spans_in(step[0], step[1] - step[0])
        while foreign := [
            flight for flight in device.flights_of(needed) if flight.sink != wish.sink
        ]:
            await self._await_flights(foreign, wish)
        flights = self._join(device, needed, wish)
        if wish.priority is Priority.ON_DEMAND:
            self._fetch_ahead(device, step, wish.sink)
        await self._await_flights(flights, wish)
        _raise_failure(device, flights, needed)
        await self._write_rest(device.table, step, flights, wish.sink)

    def _join(self, device: Device, needed: range, wish: _Wish) -> list[Flight]:
        """Give flights, in the order of the device, that together have all of `needed`."""
        if self._flights.closed:
            raise _stopping(device)
        device.use_sink(wish.sink)
        flights = device.flights_of(needed)
        self.counters.joined += len(flights)
        for run in list(plan_runs(device.unclaimed(needed))):
            for spans in self._plan(device, run, wish.priority):
                flights.append(
                    self._flights.launch(device, spans, wish.sink, wish.priority, wish.at_hand)
                )
        return sorted(flights, key=lambda flight: flight.spans.start)

    def _fetch_ahead(self, device: Device, step: tuple[int, int], sink: Sink) -> None:
        """Launch flights for what follows a reader's request, if that reader goes on and on."""
        ahead = device.readers.note(*step, self.limits)
        if ahead:
            wanting = filter(device.is_wanting, device.table.spans_in(ahead.start, len(ahead)))
            for run in plan_runs(wanting):
                for spans in plan_groups(device.table, run, self.limits):
                    self._flights.launch(device, spans, sink, Priority.AHEAD)

    def _plan(self, device: Device, run: range, priority: Priority) -> Iterator[range]:
        """Give the runs to fetch for a run of spans that nobody fetches."""
        name = device.table.name
        missing = any(self._recent.get(name, span) is None for span in run)
        if missing and priority is Priority.ON_DEMAND:
            run = widen_run(device.table, run, device.is_wanting, self.limits)
        return plan_groups(device.table, run, self.limits)

    async def _await_flights(self, flights: Sequence[Flight], wish: _Wish) -> None:
        """Wait until all have ended, or one has failed."""
        if not flights:
            return
        for flight in flights:
            flight.waiters += 1
            self._budget.hurry(flight.ticket, wish.priority)
        try:
            await asyncio.wait(
                [flight.task for flight in flights], return_when=asyncio.FIRST_EXCEPTION
            )
        finally:
            for flight in flights:
                self._flights.leave(flight, too_late=wish.deadline.expired())

    async def _write_rest(
        self, table: DeviceTable, step: tuple[int, int], flights: Sequence[Flight], sink: Sink
    ) -> None:
        """Write what no flight has: zeros, and blocks that several of them share."""
        runs = [run for flight in flights for run in flight.runs]
        fragments: dict[int, bytes] = {}
        for flight in flights:
            fragments.update(flight.fragments)
        many = len(table.extents_in(step[0], step[1] - step[0])) > _MANY_EXTENTS
        if many and not self._flights.closed:
            rest = await self._flights.work(lambda: list(plan_rest(table, *step, runs)))
        else:
            rest = list(plan_rest(table, *step, runs))
        for position, last in rest:
            start = position
            for block in sorted({block_floor(at) for at in fragments if position <= at < last}):
                await self._write_zeros(start, block, sink)
                await self._write(sink, block, assemble_shared(table, block, fragments))
                start = block + BLOCK_SIZE
            await self._write_zeros(start, last, sink)

    async def _write_zeros(self, start: int, stop: int, sink: Sink) -> None:
        for offset in range(start, stop, len(ZEROS)):
            await self._write(sink, offset, ZEROS[: stop - offset])

    async def _write(self, sink: Sink, offset: int, data: memoryview) -> None:
        await sink.write(offset, data)
        self.counters.written += len(data)


def _stopping(device: Device) -> LazyimgError:
    return LazyimgError(f"device {device.table.name}", "the daemon is stopping")


def _raise_failure(device: Device, flights: Sequence[Flight], needed: range) -> None:
    """Raise what went wrong: all flights have ended, unless one has failed as a whole."""
    ended = [flight.task for flight in flights if flight.task.done()]
    for task in ended:
        if not task.cancelled() and (failure := task.exception()) is not None:
            raise failure
    if any(task.cancelled() for task in ended):
        raise _stopping(device)
    for flight in flights:
        for span, failure in flight.failed.items():
            if span in needed:
                raise failure
