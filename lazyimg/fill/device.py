"""A device as the engine knows it: where its bytes come from, and what is on its way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lazyimg.errors import NotFoundError
from lazyimg.fill.ahead import Readers

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Mapping, Sequence

    from lazyimg.errors import LazyimgError
    from lazyimg.fill.budget import Place, Ticket
    from lazyimg.fill.ports import BlobReader, Sink
    from lazyimg_formats.device_table import DeviceTable


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A blob that holds a device, and where in it each span lies."""

    table: DeviceTable
    blob: BlobReader
    place: Place = ()


@dataclass(slots=True, eq=False)
class Flight:
    """A run of spans on its way from a blob to a sink.

    Attributes:
        device: what it fills.
        spans: the run.
        sink: where it writes.
        ticket: its claim on the budget.
        waiters: fills that wait for it.
        cancellable: it only waits: cancelling it leaves no thread at work.
        runs: of its spans that are good; complete when it has ended, as the following two.
        failed: what is wrong with each of the other ones.
        source: what it waits for; None while it waits for nothing, or works.
        fragments: device offset and bytes of what it has in blocks shared with its neighbours.
        at_hand: what is asked before the device's sources.
        task: runs it; assigned right after it is made.
    """

    device: Device
    spans: range
    sink: Sink
    ticket: Ticket
    waiters: int = 0
    cancellable: bool = True
    runs: Sequence[range] = ()
    failed: Mapping[int, LazyimgError] = field(default_factory=dict)
    fragments: dict[int, bytes] = field(default_factory=dict)
    at_hand: Source | None = None
    source: Source | None = None
    task: asyncio.Task[None] = field(init=False)


class Device:
    """One device.

    Attributes:
        table: any source's; all agree on the layout.
        sources: in the order they were added.
        fetched: bytes of blobs.
        readers: who reads it, and what to fetch ahead for them.
        local: by span, 1 if it was written to the sink in use: a hint, see `is_wanting`.
    """

    def __init__(self, source: Source) -> None:
        self.table = source.table
        self.sources = [source]
        self.fetched = 0
        self.readers = Readers(self.table)
        self._flights: dict[int, Flight] = {}
        self._sink: Sink | None = None
        self._unanswered: list[Source] = []
        self.local = bytearray(self.table.span_count)

    def remove_source(self, blob: BlobReader | None) -> None:
        """Remove the source of `blob`, or the oldest.

        Raises:
            NotFoundError: `blob` is no source of it.
        """
        for position, source in enumerate(self.sources):
            if blob is None or source.blob is blob:
                del self.sources[position]
                if source in self._unanswered:
                    self._unanswered.remove(source)
                return
        raise NotFoundError(f"device {self.table.name}", "this blob is not a source of it")

    @property
    def place(self) -> Place:
        """Where what is fetched next comes from; see `Engine.add_device`."""
        sources = self.sources_to_ask()
        return sources[0].place if sources else ()

    def sources_to_ask(self) -> list[Source]:
        """Give the sources: the one added last first, those that gave no answer last."""
        fine = [source for source in self.sources if source not in self._unanswered]
        return fine[::-1] + self._unanswered

    def note_unanswered(self, source: Source) -> None:
        """Ask the others before `source` from now on."""
        if source in self._unanswered:
            self._unanswered.remove(source)
        if source in self.sources:
            self._unanswered.append(source)

    def flights_of(self, spans: Iterable[int]) -> list[Flight]:
        """Give the flights that a fill of `spans` may join."""
        flights = self._flights
        return list(dict.fromkeys(flights[span] for span in spans if span in flights))

    def unclaimed(self, spans: Iterable[int]) -> list[int]:
        """Give those of `spans` that are in no flight."""
        return [span for span in spans if span not in self._flights]

    def start(self, flight: Flight) -> None:
        """Let fills join `flight`."""
        self._flights.update(dict.fromkeys(flight.spans, flight))

    def forget(self, flight: Flight) -> None:
        """Let no further fill join `flight`."""
        for span in flight.spans:
            if self._flights.get(span) is flight:
                del self._flights[span]

    def is_wanting(self, span: int) -> bool:
        """Say whether a span is neither in flight nor, as far as is known, written.

        It is a hint, for what to fetch along: nothing is answered from it.
        """
        return not self.local[span] and span not in self._flights

    def use_sink(self, sink: Sink) -> None:
        """Take `sink` for what is filled now; of another one than before nothing is known."""
        if self._sink != sink:
            self._sink, self.local = sink, bytearray(self.table.span_count)

    def note_written(self, flight: Flight) -> None:
        """Remember what `flight` has written, if its sink is still the one in use."""
        if self._sink == flight.sink:
            for run in flight.runs:
                self.local[run.start : run.stop] = b"\1" * len(run)

    def note_present(self, sink: Sink, ranges: Iterable[range]) -> None:
        """Take `sink` for what is filled now; it has `ranges` (bytes) of the device and no more."""
        self._sink, self.local = sink, bytearray(self.table.span_count)
        for present in ranges:
            extents = self.table.extents_in(present.start, len(present))
            if extents:
                first, last = self.table.extent(extents[0]), self.table.extent(extents[-1])
                start = first.span + (first.device_offset < present.start)
                stop = last.span + (last.device_offset + last.length <= present.stop)
                self.local[start:stop] = b"\1" * (stop - start)
