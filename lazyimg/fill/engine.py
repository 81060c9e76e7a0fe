"""The fill engine: joins fills, plans and runs flights. See the package's text."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from lazyimg.errors import CorruptError, LazyimgError, NotFoundError, RegistryError
from lazyimg.fill.assembly import ZEROS, Assembly, assemble_shared
from lazyimg.fill.budget import Budget, Priority, Ticket
from lazyimg.fill.decode import decode_spans
from lazyimg.fill.device import Device, Flight, Source
from lazyimg.fill.local import read_local
from lazyimg.fill.patience import insist
from lazyimg.fill.plan import (
    block_ceil,
    block_floor,
    plan_blob_ranges,
    plan_groups,
    plan_rest,
    plan_runs,
    plan_steps,
    widen_run,
)
from lazyimg.fill.recent import RecentSpans
from lazyimg.host.workers import Workers
from lazyimg.registry.turns import URGENCY
from lazyimg_formats.device_table import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lazyimg.fill.budget import Place
    from lazyimg.fill.plan import BlobRange
    from lazyimg.fill.ports import BlobReader, Memory, Sink
    from lazyimg.limits import FillLimits
    from lazyimg_formats.device_table import DeviceTable

_BATCH: Final = 4 << 20
"""Bytes of a device that a worker writes in one go: others want it too."""

_SMALL: Final = 8
"""The part of what is kept for the next reads that the spans of one flight may take."""

REST: Final = 30.0
"""Seconds without a fill after which memory is given back."""

_MANY_EXTENTS: Final = 512
"""Extents of one step from which on planning its rest is work for a thread."""

_Blobs = list[tuple["BlobRange", bytes]]
_Begun = tuple[Assembly, int]
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class Counters:
    """What the engine has done since it started.

    Attributes:
        reads: fills that readers asked for.
        reads_failed: those of them that raised; not those that were cancelled.
        joined: times that a fill found spans it needed in flight already.
        fetches: requests to blobs.
        fetched: bytes of blobs that they gave.
        decoded: bytes of spans that were decoded and verified.
        written: bytes of devices that were written, zeros included.
    """

    reads: int = 0
    reads_failed: int = 0
    joined: int = 0
    fetches: int = 0
    fetched: int = 0
    decoded: int = 0
    written: int = 0


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
        self._flights: set[Flight] = set()
        self._workers = Workers(limits.decode_workers, "decode")
        self._memory = memory
        self._resting: asyncio.TimerHandle | None = None  # until it is given back
        self._working = False  # since it was told so
        self._closed = False

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
        self._closed = True
        if self._resting is not None:
            self._resting.cancel()
        for flight in list(self._flights):
            if flight.cancellable:
                flight.device.forget(flight)
                flight.task.cancel()
        if self._flights:
            await asyncio.wait([flight.task for flight in self._flights])
        await asyncio.to_thread(self._workers.close)

    def _is_over(self, device: Device) -> bool:
        """Tell whether nothing fills a device any more."""
        return self._closed or not device.sources

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
        if self._closed:
            raise _stopping(device)
        device.use_sink(wish.sink)
        flights = device.flights_of(needed)
        self.counters.joined += len(flights)
        for run in list(plan_runs(device.unclaimed(needed))):
            for spans in self._plan(device, run, wish.priority):
                flights.append(self._launch(device, spans, wish.sink, wish.priority, wish.at_hand))
        return sorted(flights, key=lambda flight: flight.spans.start)

    def _fetch_ahead(self, device: Device, step: tuple[int, int], sink: Sink) -> None:
        """Launch flights for what follows a reader's request, if that reader goes on and on."""
        ahead = device.readers.note(*step, self.limits)
        if ahead:
            wanting = filter(device.is_wanting, device.table.spans_in(ahead.start, len(ahead)))
            for run in plan_runs(wanting):
                for spans in plan_groups(device.table, run, self.limits):
                    self._launch(device, spans, sink, Priority.AHEAD)

    def _plan(self, device: Device, run: range, priority: Priority) -> Iterator[range]:
        """Give the runs to fetch for a run of spans that nobody fetches."""
        name = device.table.name
        missing = any(self._recent.get(name, span) is None for span in run)
        if missing and priority is Priority.ON_DEMAND:
            run = widen_run(device.table, run, device.is_wanting, self.limits)
        return plan_groups(device.table, run, self.limits)

    def _launch(
        self,
        device: Device,
        spans: range,
        sink: Sink,
        priority: Priority,
        at_hand: Source | None = None,
    ) -> Flight:
        table = device.table
        ranges = plan_blob_ranges(table, spans, self.limits)
        decoded = sum(table.span_length(span) for span in spans)
        memory = sum(part.length for part in ranges) + decoded
        ticket = Ticket(priority, memory, place=() if at_hand else device.place)
        flight = Flight(device, spans, sink, ticket, at_hand=at_hand)
        flight.task = asyncio.create_task(self._fly(flight))
        self._flights.add(flight)
        device.start(flight)
        flight.task.add_done_callback(lambda task: self._landed(flight, task))
        return flight

    def _landed(self, flight: Flight, task: asyncio.Task[None]) -> None:
        flight.device.forget(flight)
        self._flights.discard(flight)
        self._budget.release(flight.ticket)
        if not task.cancelled():
            task.exception()  # its waiters raise it; there may be none left
        if not self._flights and self._working and not self._closed:
            self._resting = asyncio.get_running_loop().call_later(REST, self._rest)

    def _work_begins(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        if self._memory is not None and not self._working:
            self._working = True
            self._workers.submit(self._memory.take)

    def _rest(self) -> None:
        self._resting, self._working = None, False
        if self._memory is not None:
            self._workers.submit(self._memory.give_back)

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
                self._leave(flight, too_late=wish.deadline.expired())

    def _leave(self, flight: Flight, *, too_late: bool) -> None:
        flight.waiters -= 1
        if flight.task.done():
            return
        if too_late:  # the next read is to try again, not to join what hangs
            flight.device.forget(flight)
            if flight.source is not None:
                flight.device.note_unanswered(flight.source)
        if not flight.waiters and flight.cancellable:
            flight.device.forget(flight)
            flight.task.cancel()

    async def _fly(self, flight: Flight) -> None:
        device, spans = flight.device, flight.spans
        name = device.table.name
        self._work_begins()  # while this one waits for its blob
        have = {span: data for span in spans if (data := self._recent.get(name, span)) is not None}
        URGENCY.set(flight.ticket)  # this task is the flight's own
        flight.ticket.fetching = len(have) < len(spans)
        await self._budget.admit(flight.ticket)
        assembly, written = await self._obtain(flight, have)
        self._budget.fetched(flight.ticket)
        self.counters.decoded += sum(map(len, assembly.decoded.values()))
        self.counters.written += written
        flight.runs, flight.fragments = assembly.runs, assembly.fragments
        while not assembly.ended:
            self.counters.written += await self._work(assembly.write_batch, flight.sink)
        device.note_written(flight)

    async def _obtain(self, flight: Flight, decoded: dict[int, bytes]) -> _Begun:
        """Decode what is not in `decoded`, from as many sources as it takes; begin to write.

        Spans that no source has are the flight's `failed`. It raises when no span is good, or when
        the sink takes nothing.
        """
        table, spans = flight.device.table, flight.spans
        failed: dict[int, LazyimgError] = {}
        sources = flight.device.sources_to_ask()
        if flight.at_hand is not None:
            sources.insert(0, flight.at_hand)
        while sources:
            source = sources.pop(0)
            bad: Mapping[int, LazyimgError]
            flight.source = source
            try:
                blobs = await self._fetch(flight, source, decoded)
            except LazyimgError as error:
                flight.device.note_unanswered(source)
                bad = dict.fromkeys(spans, error)
            else:
                flight.cancellable, flight.source = False, None
                if not sources:  # else it may fetch once more
                    self._budget.fetched(flight.ticket)
                bad, begun = await self._work(self._decode, flight, source, blobs, decoded)
                if begun is not None:
                    return begun
                flight.cancellable = True
                if _distrust(source, blobs, bad):
                    sources.insert(0, source)
            failed = {**bad, **failed}
            if self._closed:
                break
        missing = [span for span in spans if span not in decoded]
        if len(missing) == len(spans):
            raise failed.get(spans[0]) or NotFoundError(f"device {table.name}", "has been removed")
        flight.failed = {span: failed[span] for span in missing}
        flight.cancellable = False
        return await self._work(self._begin, flight, list(plan_runs(sorted(decoded))), decoded)

    async def _fetch(self, flight: Flight, source: Source, have: Mapping[int, bytes]) -> _Blobs:
        blobs = []
        missing = [span for span in flight.spans if span not in have]
        for part in plan_blob_ranges(source.table, missing, self.limits):
            self.counters.fetches += 1
            data = await source.blob.read(part.offset, part.length)
            self.counters.fetched += len(data)
            flight.device.fetched += len(data)
            if len(data) != part.length:
                raise CorruptError(
                    f"device {source.table.name}",
                    f"expected {part.length} bytes at {part.offset} of its blob, got {len(data)}",
                )
            blobs.append((part, data))
        return blobs

    def _decode(
        self, flight: Flight, source: Source, blobs: _Blobs, decoded: dict[int, bytes]
    ) -> tuple[dict[int, CorruptError], _Begun | None]:
        """Add to `decoded`; give the bad spans, or begin to write. In a worker."""
        failed: dict[int, CorruptError] = {}
        for part, data in blobs:
            good, bad = decode_spans(source.table, part.spans, part.offset, data)
            decoded.update(good)
            failed.update(bad)
        return failed, None if failed else self._begin(flight, [flight.spans], decoded)

    def _begin(self, flight: Flight, runs: Sequence[range], decoded: dict[int, bytes]) -> _Begun:
        """Write the first batch of what is good. In a worker."""
        assembly = Assembly(flight.device.table, runs, decoded, _BATCH)
        self._remember(flight, decoded)
        return assembly, assembly.write_batch(flight.sink)

    def _remember(self, flight: Flight, decoded: Mapping[int, bytes]) -> None:
        """Keep what a reader may want next; of much, what the spans beside it share with it."""
        name, spans = flight.device.table.name, flight.spans
        if name in self._devices:
            small = sum(map(len, decoded.values())) <= self.limits.recent // _SMALL
            everything = small and flight.ticket.priority is Priority.ON_DEMAND
            for span in decoded if everything else decoded.keys() & {spans[0], spans[-1]}:
                self._recent.put(name, span, decoded[span])

    async def _work(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._workers.submit(function, *args, **kwargs)

    async def _write_rest(
        self, table: DeviceTable, step: tuple[int, int], flights: Sequence[Flight], sink: Sink
    ) -> None:
        """Write what no flight has: zeros, and blocks that several of them share."""
        runs = [run for flight in flights for run in flight.runs]
        fragments: dict[int, bytes] = {}
        for flight in flights:
            fragments.update(flight.fragments)
        many = len(table.extents_in(step[0], step[1] - step[0])) > _MANY_EXTENTS
        if many and not self._closed:
            rest = await self._work(lambda: list(plan_rest(table, *step, runs)))
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


def _distrust(source: Source, blobs: _Blobs, bad: Mapping[int, LazyimgError]) -> bool:
    """Tell a source which of its answers were wrong; gives whether to ask it again."""
    wrong = [part for part, _ in blobs if not bad.keys().isdisjoint(part.spans)]
    again = [source.blob.distrust(part.offset, part.length) for part in wrong]  # all are told
    return any(again)
