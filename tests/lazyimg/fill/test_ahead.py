"""What is fetched ahead of whom. Offsets are blocks here."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from lazyimg.fill.ahead import MAX_EXTENTS, MAX_GAP, MAX_READERS, Readers, find_file_end
from lazyimg.limits import FillLimits
from lazyimg_formats.device_table import (
    BLOCK_SIZE,
    Codec,
    DeviceTable,
    Extent,
    Span,
    serialize_device_table,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

LIMITS = FillLimits(ahead=64 * BLOCK_SIZE, ahead_after=2)
MIB = 1 << 20


def make_table(*files: Sequence[int]) -> DeviceTable:
    """Give a device of files, each given by the lengths of its extents, one span for each."""
    extents: list[Extent] = []
    spans: list[Span] = []
    offset = 0
    for lengths in files:
        for length in lengths:
            extents.append(Extent(offset, length, len(spans), 0))
            spans.append(Span(offset, length, length, bytes(32), Codec.RAW))
            offset += length
        offset += -offset % BLOCK_SIZE
    return DeviceTable(serialize_device_table(offset, extents, spans))


def one_file(blocks: int) -> DeviceTable:
    return make_table([BLOCK_SIZE] * (blocks - 1) + [100])


class Reading:
    """Requests of one device, in blocks."""

    def __init__(self, blocks: int = 1000, limits: FillLimits = LIMITS) -> None:
        self.readers = Readers(one_file(blocks))
        self.limits = limits

    def ask(self, start: int, stop: int) -> tuple[int, int] | None:
        """Give what is fetched ahead of a request."""
        ahead = self.readers.note(start * BLOCK_SIZE, stop * BLOCK_SIZE, self.limits)
        return (ahead.start // BLOCK_SIZE, -(-ahead.stop // BLOCK_SIZE)) if ahead else None


def test_window_doubles_and_ends_at_the_limit() -> None:
    reading = Reading()
    assert reading.ask(0, 4) is None
    assert reading.ask(4, 8) is None
    assert reading.ask(8, 12) == (12, 24)  # what was asked for so far: 12
    assert reading.ask(24, 28) == (28, 44)
    assert reading.ask(44, 60) == (60, 92)
    assert reading.ask(92, 108) == (108, 156)
    assert reading.ask(156, 172) == (172, 236)
    assert reading.ask(236, 252) == (252, 316)  # 64 is the limit


def test_nothing_more_while_half_a_window_is_on_its_way() -> None:
    reading = Reading()
    for start in (0, 8, 16):
        ahead = reading.ask(start, start + 8)
    assert ahead == (24, 48)
    assert reading.ask(24, 32) == (48, 64)  # it has caught up: 16 of a window of 32 are left
    assert reading.ask(32, 40) is None
    assert reading.ask(40, 48) == (64, 96)


def test_requests_anywhere_are_not_in_order() -> None:
    reading = Reading(blocks=100_000)
    assert [reading.ask(start, start + 4) for start in (900, 5000, 10, 90_000, 400)] == [None] * 5


def test_backwards_and_the_same_again_are_not_in_order() -> None:
    reading = Reading()
    assert [reading.ask(start, start + 4) for start in (12, 8, 4, 0)] == [None] * 4
    assert [reading.ask(500, 504) for _ in range(4)] == [None] * 4


def test_small_gaps_are_in_order_and_larger_ones_are_not() -> None:
    gap = MAX_GAP // BLOCK_SIZE
    reading = Reading(blocks=10_000)
    assert reading.ask(0, 4) is None
    assert reading.ask(4 + gap, 8 + gap) is None
    assert reading.ask(8 + 2 * gap, 12 + 2 * gap) == (12 + 2 * gap, 24 + 2 * gap)
    reading = Reading(blocks=10_000)
    assert reading.ask(0, 4) is None
    assert reading.ask(4, 8) is None
    assert reading.ask(9 + gap, 13 + gap) is None


def test_readers_are_told_apart() -> None:
    reading = Reading(blocks=100_000)
    starts = [10_000 * number for number in range(MAX_READERS)]
    for turn in range(2):
        for start in starts:
            assert reading.ask(start + 4 * turn, start + 4 * turn + 4) is None
    for start in starts:
        assert reading.ask(start + 8, start + 12) == (start + 12, start + 24)


def test_reader_that_asked_least_recently_is_forgotten() -> None:
    reading = Reading(blocks=100_000)
    for start in (0, 4):
        reading.ask(start, start + 4)
    for number in range(1, MAX_READERS + 1):
        reading.ask(10_000 * number, 10_000 * number + 4)
    assert reading.ask(8, 12) is None


def test_request_that_is_tried_again_displaces_nobody() -> None:
    reading = Reading(blocks=100_000)
    for start in (0, 4):
        reading.ask(start, start + 4)
    for _ in range(MAX_READERS + 1):
        assert reading.ask(10_000, 10_004) is None
    assert reading.ask(8, 12) == (12, 24)


def test_nothing_past_the_end_of_the_file() -> None:
    reading = Reading(blocks=16)
    for start in (0, 4):
        reading.ask(start, start + 4)
    assert reading.ask(8, 12) == (12, 16)
    assert reading.ask(12, 16) is None


def test_limit_of_zero_is_none_ahead() -> None:
    reading = Reading(limits=replace(LIMITS, ahead=0))
    assert [reading.ask(start, start + 4) for start in range(0, 40, 4)] == [None] * 10


def test_from_the_first_request_on() -> None:
    reading = Reading(limits=replace(LIMITS, ahead_after=0))
    assert reading.ask(100, 104) == (104, 108)


@pytest.mark.parametrize(
    ("start", "stop", "end"),
    [
        (4096, 1 << 20, 10_000),  # between two extents
        (5000, 1 << 20, 10_000),  # in one
        (4096, 8192, 8192),
        (9000, 1 << 20, 10_000),
        (10_000, 1 << 20, 10_000),
        (12_288, 1 << 20, 12_288),  # the next file begins
        (12_289, 1 << 20, 12_388),
        (16_384, 1 << 20, 16_384),  # behind everything
        (1 << 30, 1 << 31, 1 << 30),
    ],
)
def test_file_ends(start: int, stop: int, end: int) -> None:
    table = make_table([4096, 4096, 1808], [100])
    assert find_file_end(table, start, stop) == end


def test_file_of_very_many_extents() -> None:
    table = make_table([10] * 5000)
    assert find_file_end(table, 10, 1 << 20) == 10 * (MAX_EXTENTS + 1)
