"""Flights: runs of spans on their way from a blob to a sink. See the package's text."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from lazyimg.errors import CorruptError, LazyimgError, NotFoundError
from lazyimg.fill.assembly import Assembly
from lazyimg.fill.budget import Priority, Ticket
from lazyimg.fill.decode import decode_spans
from lazyimg.fill.device import Flight
from lazyimg.fill.plan import plan_blob_ranges, plan_runs
from lazyimg.fill.ports import NotAskedError
from lazyimg.host.workers import Workers
from lazyimg.registry.turns import URGENCY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lazyimg.fill.budget import Budget
    from lazyimg.fill.device import Device, Source
    from lazyimg.fill.plan import BlobRange
    from lazyimg.fill.ports import Memory, Sink
    from lazyimg.fill.recent import RecentSpans
    from lazyimg.limits import FillLimits

_BATCH: Final = 4 << 20
"""Bytes of a device that a worker writes in one go: others want it too."""

_SMALL: Final = 8
"""The part of what is kept for the next reads that the spans of one flight may take."""

REST: Final = 30.0
"""Seconds without a flight after which memory is given back."""

_Blobs = list[tuple["BlobRange", bytes]]
_Begun = tuple[Assembly, int]
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class Counters:
    """What an engine has done since it started.

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


class Flights:
    """All flights of an engine, and the threads that work for them.

    Args:
        limits: of the engine.
        budget: admits flights.
        recent: spans that were decoded lately.
        counters: are kept up to date.
        memory: is told when there is work and when there has been none for a while.

    Attributes:
        closed: nothing is launched any more.
    """

    def __init__(
        self,
        limits: FillLimits,
        *,
        budget: Budget,
        recent: RecentSpans,
        counters: Counters,
        memory: Memory | None,
    ) -> None:
        self.closed = False
        self._limits = limits
        self._budget = budget
        self._recent = recent
        self._counters = counters
        self._flights: set[Flight] = set()
        self._workers = Workers(limits.decode_workers, "decode")
        self._memory = memory
        self._resting: asyncio.TimerHandle | None = None  # until it is given back
        self._working = False  # since it was told so

    def launch(
        self,
        device: Device,
        spans: range,
        sink: Sink,
        priority: Priority,
        at_hand: Source | None = None,
    ) -> Flight:
        """Start a flight, which nobody waits for yet.

        Args:
            device: what it fills.
            spans: a run of spans that are in no flight.
            sink: where it writes.
            priority: how urgent it is.
            at_hand: is asked before the device's sources.
        """
        table = device.table
        ranges = plan_blob_ranges(table, spans, self._limits)
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
        if not self._flights and self._working and not self.closed:
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

    def leave(self, flight: Flight, *, too_late: bool) -> None:
        """Tell that one who waited for a flight does not any more.

        Args:
            flight: which.
            too_late: it took too long: others wait on, and what comes next starts anew.
        """
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
        self._counters.decoded += sum(map(len, assembly.decoded.values()))
        self._counters.written += written
        flight.runs, flight.fragments = assembly.runs, assembly.fragments
        while not assembly.ended:
            self._counters.written += await self.work(assembly.write_batch, flight.sink)
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
                bad, begun = await self.work(self._decode, flight, source, blobs, decoded)
                if begun is not None:
                    return begun
                flight.cancellable = True
                if _distrust(source, blobs, bad):
                    sources.insert(0, source)
            _add_failures(failed, bad)
            if self.closed:
                break
        missing = [span for span in spans if span not in decoded]
        if len(missing) == len(spans):
            raise failed.get(spans[0]) or NotFoundError(f"device {table.name}", "has been removed")
        flight.failed = {span: failed[span] for span in missing}
        flight.cancellable = False
        return await self.work(self._begin, flight, list(plan_runs(sorted(decoded))), decoded)

    async def _fetch(self, flight: Flight, source: Source, have: Mapping[int, bytes]) -> _Blobs:
        blobs = []
        missing = [span for span in flight.spans if span not in have]
        for part in plan_blob_ranges(source.table, missing, self._limits):
            self._counters.fetches += 1
            data = await source.blob.read(part.offset, part.length)
            self._counters.fetched += len(data)
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
        if flight.device.sources:  # else it has been removed
            small = sum(map(len, decoded.values())) <= self._limits.recent // _SMALL
            everything = small and flight.ticket.priority is Priority.ON_DEMAND
            for span in decoded if everything else decoded.keys() & {spans[0], spans[-1]}:
                self._recent.put(name, span, decoded[span])

    async def close(self) -> None:
        """Cancel the flights that wait, let those that write end, and stop the workers."""
        self.closed = True
        if self._resting is not None:
            self._resting.cancel()
        for flight in list(self._flights):
            if flight.cancellable:
                flight.device.forget(flight)
                flight.task.cancel()
        if self._flights:
            await asyncio.wait([flight.task for flight in self._flights])
        await asyncio.to_thread(self._workers.close)

    async def work(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in one of the threads."""
        return await self._workers.submit(function, *args, **kwargs)


def _add_failures(failed: dict[int, LazyimgError], bad: Mapping[int, LazyimgError]) -> None:
    """Add why a source has not given some spans; the first one that was asked counts."""
    for span, error in bad.items():
        if span not in failed or isinstance(failed[span], NotAskedError):
            failed[span] = error


def _distrust(source: Source, blobs: _Blobs, bad: Mapping[int, LazyimgError]) -> bool:
    """Tell a source which of its answers were wrong; gives whether to ask it again."""
    wrong = [part for part, _ in blobs if not bad.keys().isdisjoint(part.spans)]
    again = [source.blob.distrust(part.offset, part.length) for part in wrong]  # all are told
    return any(again)
