"""Maps of blocks against plain sets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg.cache import blocks
from lazyimg.cache.blocks import BlockMap

COUNTS = st.integers(1, 20_000)


def runs_of(numbers: set[int]) -> list[range]:
    runs: list[range] = []
    for number in sorted(numbers):
        if runs and runs[-1].stop == number:
            runs[-1] = range(runs[-1].start, number + 1)
        else:
            runs.append(range(number, number + 1))
    return runs


@given(COUNTS, st.data())
def test_map_is_a_set_of_blocks(count: int, data: st.DataObject) -> None:
    made = BlockMap(count)
    expected: set[int] = set()
    for _ in range(data.draw(st.integers(0, 5))):
        first = data.draw(st.integers(0, count - 1))
        last = data.draw(st.integers(first + 1, min(count, first + 9000)))
        made.add(first, last)
        expected |= set(range(first, last))
    assert made.missing == count - len(expected)
    assert len(made) == -(-count // 8)
    first = data.draw(st.integers(0, count))
    last = data.draw(st.integers(first, count))
    asked = set(range(first, last))
    assert made.present(first, last) == runs_of(expected & asked)
    assert made.absent(first, last) == runs_of(asked - expected)
    again = BlockMap(count, made.piece(0, len(made)))
    assert again.missing == made.missing
    assert again.present(0, count) == runs_of(expected)


@given(COUNTS, st.data())
def test_discarded_blocks(count: int, data: st.DataObject) -> None:
    made = BlockMap(count)
    made.add(0, count)
    first = data.draw(st.integers(0, count - 1))
    last = data.draw(st.integers(first + 1, count))
    for _ in range(2):
        made.discard(first, last)
        assert made.absent(0, count) == [range(first, last)]
        assert made.missing == last - first


def test_first_block_is_the_lowest_bit_of_the_first_byte() -> None:
    made = BlockMap(20)
    made.add(0, 1)
    made.add(9, 11)
    assert made.piece(0, 3) == bytes([0b1, 0b110, 0])
    assert made.piece(1, 2) == bytes([0b110])


def test_replaced_bits() -> None:
    made = BlockMap(20)
    made.add(0, 20)
    assert made.missing == 0
    made.replace(1, bytes([0b11]))
    assert made.present(0, 20) == [range(10), range(16, 20)]
    assert made.missing == 6
    made.replace(2, b"\0")
    assert made.present(0, 20) == [range(10)]
    made.replace(2, b"\xff")  # only four of them are blocks
    assert made.present(0, 20) == [range(10), range(16, 20)]
    assert made.missing == 6
    with pytest.raises(ValueError, match="bits up to byte 4, there are 3"):
        made.replace(2, b"\0\0")


def test_large_map_takes_no_memory_before_it_is_used() -> None:
    count = (blocks._SMALL + 1) * 8
    made = BlockMap(count, bytes(blocks._SMALL + 1))
    assert made.absent(0, count) == [range(count)]
    made.add(count - 3, count - 1)
    assert made.present(0, count) == [range(count - 3, count - 1)]
    assert made.missing == count - 2
