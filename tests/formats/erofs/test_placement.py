"""Where things are put."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg_formats.erofs.layout import BLOCK_SIZE, MAX_DEVICES
from lazyimg_formats.erofs.placement import Area, Slots
from lazyimg_formats.erofs.superblock import DeviceSlot, parse_slots
from lazyimg_formats.erofs.tree import Device
from lazyimg_formats.errors import FormatError


def test_slots_leave_out_devices_without_blocks() -> None:
    slots = Slots([Device("a", 3), Device("none", 0), Device("c", 5)])
    assert (slots.count, slots.blocks, slots.numbers) == (2, [3, 0, 5], [1, 0, 2])
    assert slots.starts(10) == [10, 13, 13]
    assert parse_slots(slots.serialize(10)) == (DeviceSlot(b"a", 3, 10), DeviceSlot(b"c", 5, 13))


def test_no_slots() -> None:
    slots = Slots([])
    assert (slots.count, slots.starts(10), slots.serialize(10)) == (0, [], b"")


def test_too_many_devices() -> None:
    assert Slots([Device("a", 1)] * MAX_DEVICES + [Device("b", 0)]).count == MAX_DEVICES
    with pytest.raises(FormatError, match=r"^devices: 4097, at most 4096$"):
        Slots([Device("a", 1)] * (MAX_DEVICES + 1))


@pytest.mark.parametrize("blocks", [-1, 2**32 - 1, 2**70])
def test_device_of_an_impossible_size(blocks: int) -> None:
    with pytest.raises(FormatError, match=f"^devices: 'a' has {blocks} blocks$"):
        Slots([Device("a", blocks)])


@pytest.mark.parametrize("name", ["", "x" * 65, "ä", "a\0", "a\n", "\udc80"])
def test_device_of_an_impossible_name(name: str) -> None:
    with pytest.raises(FormatError, match=r"^devices: impossible name '"):
        Slots([Device(name, 1)])


def test_devices_beyond_the_unified_space() -> None:
    slots = Slots([Device("a", 2**31), Device("b", 2**31 - 4)])
    assert slots.starts(2) == [2, 2**31 + 2]
    with pytest.raises(FormatError, match=r"^devices: 4294967295 blocks, at most 4294967294$"):
        slots.starts(3)


@pytest.mark.parametrize(
    ("device", "block", "size"), [(0, 0, 3 * 4096), (0, 2, 1), (0, 3, 0), (1, 0, 0), (2, 4, 4096)]
)
def test_data_on_a_device(device: int, block: int, size: int) -> None:
    Slots([Device("a", 3), Device("b", 0), Device("c", 5)]).check(device, block, size)


@pytest.mark.parametrize(
    ("device", "block", "size"),
    [(0, 0, 3 * 4096 + 1), (0, 3, 1), (0, 4, 0), (1, 0, 1), (3, 0, 1), (-1, 0, 1), (0, -1, 1)],
)
def test_data_outside_its_device(device: int, block: int, size: int) -> None:
    slots = Slots([Device("a", 3), Device("b", 0), Device("c", 5)])
    with pytest.raises(FormatError) as caught:
        slots.check(device, block, size)
    assert str(caught.value) == (
        f"data of a file: {size} bytes from block {block} on are not on device {device}"
    )


def test_area_fills_a_gap() -> None:
    area = Area(1153)
    assert area.place_whole(2000) == 1184
    assert area.place_whole(1000) == 4096  # 896 bytes were left
    assert area.place(64) == 3200
    assert area.place(832) == 3264  # the gap is full
    assert area.place(64) == 4096 + 1024
    assert area.end == 4096 + 1024 + 64


def test_area_keeps_the_larger_gap() -> None:
    area = Area(96)
    assert area.place_whole(4096) == 4096  # leaves 4,000
    assert area.place(64) == 96  # now 3,936
    assert area.place(3936) == 160
    assert area.place(32) == 8192
    assert area.place_whole(4096) == 12288  # leaves 4,064
    assert area.place(4064 - 32) == 8224  # now 32
    assert area.place(4032) == 16384
    assert area.place_whole(96) == 20480  # leaves 64
    assert area.place(64) == 20416


@given(st.lists(st.tuples(st.booleans(), st.integers(1, BLOCK_SIZE)), max_size=60))
def test_places_do_not_overlap(wanted: list[tuple[bool, int]]) -> None:
    area = Area(1152)
    end = 1152
    taken = []
    for whole, size in wanted:
        position = area.place_whole(size) if whole else area.place(size)
        assert position % 32 == 0
        if whole:
            assert position // BLOCK_SIZE == (position + size - 1) // BLOCK_SIZE
        taken.append((position, position + size))
        end = max(end, position + size)
    taken.sort()
    for one, other in pairwise(taken):
        assert one[1] <= other[0]
    assert not taken or taken[0][0] >= 1152
    assert end <= area.end
