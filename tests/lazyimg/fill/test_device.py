"""What the engine knows of a device."""

from __future__ import annotations

import pytest

from lazyimg.errors import NotFoundError
from lazyimg.fill.budget import Priority, Ticket
from lazyimg.fill.device import Device, Flight, Source
from lazyimg_formats.device_table import BLOCK_SIZE
from tests.fakes.devices import (
    MemoryBlob,
    MemorySink,
    SpanPlan,
    aligned_device,
    make_device,
    pattern,
)


def new_device(spans: int = 8) -> Device:
    made = aligned_device(spans, BLOCK_SIZE)
    return Device(Source(made.table, MemoryBlob(made.blob)))


def flight(device: Device, spans: range, sink: MemorySink) -> Flight:
    return Flight(device, spans, sink, Ticket(Priority.ON_DEMAND, 1), runs=[spans])


def wanting(device: Device) -> list[int]:
    return [span for span in range(device.table.span_count) if device.is_wanting(span)]


def test_sources_are_removed_by_blob_or_the_oldest_first() -> None:
    device = new_device()
    blobs = [MemoryBlob(b"") for _ in range(3)]
    device.sources = [Source(device.table, blob) for blob in blobs]
    device.remove_source(blobs[1])
    device.remove_source(None)
    assert [source.blob for source in device.sources] == [blobs[2]]
    with pytest.raises(NotFoundError, match="this blob is not a source of it"):
        device.remove_source(blobs[1])


def test_sources_are_asked_newest_first_and_those_without_an_answer_last() -> None:
    device = new_device()
    one, two, three = (Source(device.table, MemoryBlob(b"")) for _ in range(3))
    device.sources = [one, two, three]
    assert device.sources_to_ask() == [three, two, one]
    device.note_unanswered(three)
    device.note_unanswered(one)
    assert device.sources_to_ask() == [two, three, one]
    device.note_unanswered(three)
    assert device.sources_to_ask() == [two, one, three]
    device.remove_source(three.blob)
    device.note_unanswered(three)
    assert device.sources_to_ask() == [two, one]


def test_flights_are_joined_until_they_are_forgotten() -> None:
    device, sink = new_device(), MemorySink()
    first, second = flight(device, range(1, 3), sink), flight(device, range(3, 5), sink)
    device.start(first)
    device.start(second)
    assert device.flights_of(range(5)) == [first, second]
    assert device.unclaimed(range(6)) == [0, 5]
    newer = flight(device, range(2, 3), sink)
    device.start(newer)
    device.forget(first)
    assert device.flights_of(range(4)) == [newer, second]
    assert device.unclaimed(range(4)) == [0, 1]


def test_what_was_written_counts_for_the_sink_in_use() -> None:
    device, old, new = new_device(), MemorySink(), MemorySink()
    device.use_sink(old)
    device.note_written(flight(device, range(2), old))
    device.start(flight(device, range(6, 7), old))
    assert wanting(device) == [2, 3, 4, 5, 7]
    device.use_sink(old)
    assert wanting(device) == [2, 3, 4, 5, 7]
    device.use_sink(new)
    device.note_written(flight(device, range(4), old))
    assert wanting(device) == [0, 1, 2, 3, 4, 5, 7]


def test_what_is_present_counts_by_whole_spans() -> None:
    made = make_device(
        [SpanPlan(pattern(8192, i), extents=[(0, 0, 4096), (4096, 4096, 4096)]) for i in range(6)]
    )
    device = Device(Source(made.table, MemoryBlob(made.blob)))
    device.note_written(flight(device, range(6), MemorySink()))
    device.note_present(
        MemorySink(),
        [
            range(14_000),  # span 0 and a little of span 1
            range(30_000, 30_001),  # zeros inside span 2
            range(38_000, 61_440),  # span 3 but its beginning, and span 4
            range(1 << 30, 1 << 31),
        ],
    )
    assert wanting(device) == [1, 2, 3, 5]
