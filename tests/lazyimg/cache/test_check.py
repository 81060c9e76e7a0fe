"""Checks of devices in the cache: what is wrong is found, and only that."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyimg.cache import check as check_module
from lazyimg.cache.check import DeviceCheck
from lazyimg.cache.device_file import DeviceFile, make_device
from lazyimg.errors import StorageError
from lazyimg_formats.device_table import BLOCK_SIZE, Codec
from tests.fakes.devices import Device, SpanPlan, aligned_device, devices, pattern
from tests.fakes.devices import make_device as lay_out
from tests.fakes.keeper import NotingKeeper

if TYPE_CHECKING:
    from collections.abc import Sequence


def stored(
    directory: Path, device: Device, content: bytes | bytearray, present: Sequence[range]
) -> DeviceFile:
    """Give a device's file with other bytes, of which some ranges are present."""
    place = directory / device.name
    place.mkdir()
    make_device(place, device.table.size)
    file = DeviceFile(place, device.table.size, "boot", NotingKeeper())
    for run in present:
        file.write_now(run.start, [memoryview(content)[run.start : run.stop]])
    return file


def checked(file: DeviceFile, device: Device) -> DeviceCheck:
    check = DeviceCheck(file, device.table)
    while check.step():
        pass
    return check


def whole(device: Device) -> bytes:
    return device.content.ljust(device.table.size, b"\0")


@settings(max_examples=60, deadline=None)
@given(devices(), st.data())
def test_wrong_bytes_are_found_and_no_others(device: Device, data: st.DataObject) -> None:
    count = device.table.size // BLOCK_SIZE
    blocks: set[int] = set()
    if count:
        blocks = data.draw(st.sets(st.integers(0, count - 1)))
    present = [range(block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE) for block in sorted(blocks)]
    content = bytearray(whole(device))
    wrong = set()
    spoiled = data.draw(st.booleans())
    if blocks and spoiled:
        block = data.draw(st.sampled_from(sorted(blocks)))
        content[block * BLOCK_SIZE + data.draw(st.integers(0, BLOCK_SIZE - 1))] ^= 1
        wrong.add(block)
    with tempfile.TemporaryDirectory() as directory:
        file = stored(Path(directory), device, bytes(content), present)
        check = checked(file, device)
    found = {number // BLOCK_SIZE for run in check.wrong for number in run[::BLOCK_SIZE]}
    assert found <= blocks
    if not wrong:
        assert found == set()
        assert check.checked + check.unchecked == len(blocks) * BLOCK_SIZE
    elif not check.unchecked:
        assert wrong <= found


def test_digests_of_what_is_decoded_say_nothing(tmp_path: Path) -> None:
    device = lay_out([SpanPlan(pattern(BLOCK_SIZE, 1), Codec.GZIP_STRETCH)])
    check = checked(stored(tmp_path, device, whole(device), [range(BLOCK_SIZE)]), device)
    assert (check.checked, check.unchecked, check.wrong) == (0, BLOCK_SIZE, [])


def test_right_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "STEP", 3 * BLOCK_SIZE)
    device = aligned_device(6)
    file = stored(tmp_path, device, whole(device), [range(device.table.size)])
    check = DeviceCheck(file, device.table)
    steps = 1
    while check.step():
        steps += 1
    assert (check.checked, check.unchecked, check.wrong) == (device.table.size, 0, [])
    assert steps == 4


def test_wrong_span(tmp_path: Path) -> None:
    device = aligned_device(6)
    content = bytearray(whole(device))
    content[5 * BLOCK_SIZE] ^= 1
    content[7 * BLOCK_SIZE] ^= 1
    check = checked(stored(tmp_path, device, content, [range(len(content))]), device)
    assert check.wrong == [range(4 * BLOCK_SIZE, 8 * BLOCK_SIZE)]
    assert check.checked == 8 * BLOCK_SIZE


def test_span_in_part_is_passed_over(tmp_path: Path) -> None:
    device = aligned_device(3)
    check = checked(stored(tmp_path, device, whole(device), [range(3 * BLOCK_SIZE)]), device)
    assert (check.checked, check.unchecked, check.wrong) == (2 * BLOCK_SIZE, BLOCK_SIZE, [])


def test_zeros_that_are_none(tmp_path: Path) -> None:
    content = pattern(BLOCK_SIZE + 100, 1)
    device = lay_out([SpanPlan(content, extents=[(0, 0, len(content))])], tail=BLOCK_SIZE)
    data = bytearray(whole(device))
    data[-1] = 1
    check = checked(stored(tmp_path, device, data, [range(len(data))]), device)
    assert check.wrong == [range(BLOCK_SIZE, len(data))]


def test_span_of_which_the_device_has_a_part(tmp_path: Path) -> None:
    """Its other bytes are known if they are zeros; otherwise nothing can be said."""
    part = pattern(BLOCK_SIZE, 1)
    zeros = lay_out([SpanPlan(part + bytes(50), extents=[(0, 0, BLOCK_SIZE)])])
    check = checked(stored(tmp_path, zeros, whole(zeros), [range(zeros.table.size)]), zeros)
    assert (check.checked, check.unchecked) == (BLOCK_SIZE, 0)
    other = lay_out([SpanPlan(part + b"other", extents=[(0, 0, BLOCK_SIZE)])])
    check = checked(stored(tmp_path, other, whole(other), [range(other.table.size)]), other)
    assert (check.checked, check.unchecked, check.wrong) == (0, BLOCK_SIZE, [])


@pytest.mark.parametrize("copy", [0, 1, None])
def test_bytes_that_are_there_twice(tmp_path: Path, copy: int | None) -> None:
    content = pattern(BLOCK_SIZE, 1)
    device = lay_out([SpanPlan(content, extents=[(0, 0, BLOCK_SIZE), (0, 0, BLOCK_SIZE)])])
    data = bytearray(whole(device))
    if copy is not None:
        data[copy * BLOCK_SIZE + 7] ^= 1
    check = checked(stored(tmp_path, device, data, [range(len(data))]), device)
    assert check.wrong == ([] if copy is None else [range(2 * BLOCK_SIZE)])


@pytest.mark.parametrize("error", [StorageError("x", "fails"), None])
def test_what_cannot_be_read_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    device = lay_out([SpanPlan(pattern(BLOCK_SIZE, 1), extents=[(0, 0, BLOCK_SIZE)])], tail=4096)
    file = stored(tmp_path, device, whole(device), [range(device.table.size)])

    def read(_offset: int, _buffer: memoryview) -> int:
        if error is not None:
            raise error
        return 0

    monkeypatch.setattr(file, "read_into", read)
    assert checked(file, device).wrong == [range(device.table.size)]
