"""Superblock and device slots, both ways. The sample is from mkfs.erofs 1.5."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyimg_formats.checksums import crc32c
from lazyimg_formats.erofs.layout import FeatureCompat, FeatureIncompat
from lazyimg_formats.erofs.superblock import (
    DeviceSlot,
    Superblock,
    checksum_range,
    compute_checksum,
    parse_slots,
    parse_superblock,
    serialize_slots,
    serialize_superblock,
)
from lazyimg_formats.errors import FormatError

SAMPLE = bytes.fromhex(
    "e2e1f5e0 78563412 03000000 0c 01 2400  0700000000000000  00105e5f00000000 05000000"
    "02000000 01000000 03000000  000102030405060708090a0b0c0d0e0f  766f6c756d6500000000000000000000"
    "0d000000 0100 0200 0900 00 04 aa000000 0900000000000000 00 000000 0b000000"
    "0000000000000000 0000000000000000"
)
SUPERBLOCK = Superblock(
    block_bits=12,
    root_nid=36,
    inodes=7,
    blocks=2,
    uuid=bytes(range(16)),
    checksum=0x12345678,
    compat=FeatureCompat.SB_CHKSUM | FeatureCompat.MTIME,
    incompat=(
        FeatureIncompat.ZERO_PADDING | FeatureIncompat.CHUNKED_FILE | FeatureIncompat.DEVICE_TABLE
    ),
    epoch=1_600_000_000,
    fixed_nsec=5,
    meta_block=1,
    xattr_block=3,
    devices=2,
    slot_offset=9,
    volume_name=b"volume",
    extension_slots=1,
    compressions=1,
    prefix_count=4,
    prefix_start=0xAA,
    packed_nid=9,
    build_time=11,
)


def u(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, 2**bits - 1)


def changed(where: int, value: bytes) -> bytes:
    return SAMPLE[:where] + value + SAMPLE[where + len(value) :]


def test_parse() -> None:
    assert parse_superblock(SAMPLE) == SUPERBLOCK
    assert SUPERBLOCK.block_size == 4096


def test_serialize() -> None:
    assert serialize_superblock(SUPERBLOCK) == SAMPLE


def test_time_before_the_epoch() -> None:
    before = replace(SUPERBLOCK, epoch=-5)
    assert parse_superblock(serialize_superblock(before)).epoch == -5


def test_truncated_and_trailing() -> None:
    for data in [SAMPLE[:size] for size in range(128)] + [SAMPLE + b"\0"]:
        with pytest.raises(FormatError) as caught:
            parse_superblock(data)
        assert str(caught.value) == f"erofs_super_block: expected 128 bytes, got {len(data)}"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (bytes(128), "magic is 0x0, expected 0xe0f5e1e2"),
        (changed(80, b"\x8d"), "features 0x80 are not supported"),
        (changed(81, b"\x01"), "features 0x100 are not supported"),
        (changed(81, b"\x03"), "features 0x300 are not supported"),
        (changed(83, b"\x80"), "features 0x80000000 are not supported"),
        (changed(12, b"\x08"), "blocks of 2**8 bytes, directory blocks of 2**0 of them"),
        (changed(12, b"\x11"), "blocks of 2**17 bytes, directory blocks of 2**0 of them"),
        (changed(90, b"\x01"), "blocks of 2**12 bytes, directory blocks of 2**1 of them"),
        (changed(86, b"\x01\x10"), "4097 devices, at most 4096"),
        (changed(32, b"\x00\xca\x9a\x3b"), "1000000000 nanoseconds"),
    ],
)
def test_impossible_field(data: bytes, problem: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_superblock(data)
    assert str(caught.value) == f"erofs_super_block: {problem}"


@pytest.mark.parametrize("bits", range(9, 17))
def test_block_sizes(bits: int) -> None:
    assert parse_superblock(changed(12, bytes([bits]))).block_size == 1 << bits


def test_name_or_uuid_that_does_not_fit() -> None:
    with pytest.raises(FormatError) as caught:
        serialize_superblock(replace(SUPERBLOCK, volume_name=b"n" * 16))
    assert str(caught.value) == (
        "erofs_super_block: volume name b'nnnnnnnnnnnnnnnn', UUID of 16 bytes"
    )
    with pytest.raises(FormatError, match="UUID of 15 bytes"):
        serialize_superblock(replace(SUPERBLOCK, uuid=bytes(15)))


def test_number_that_does_not_fit() -> None:
    with pytest.raises(FormatError, match=r"^erofs_super_block: "):
        serialize_superblock(replace(SUPERBLOCK, root_nid=65536))


@settings(max_examples=40)
@given(
    st.builds(
        Superblock, block_bits=st.integers(9, 16), root_nid=u(16), inodes=u(64), blocks=u(32),
        uuid=st.binary(min_size=16, max_size=16), checksum=u(32),
        compat=u(5).map(FeatureCompat), incompat=u(7).map(FeatureIncompat),
        epoch=st.integers(-(2**63), 2**63 - 1), fixed_nsec=st.integers(0, 999_999_999),
        meta_block=u(32), xattr_block=u(32), devices=u(12), slot_offset=u(16),
        volume_name=st.binary(max_size=15).map(lambda name: name.rstrip(b"\0")),
        extension_slots=u(8), compressions=u(16), prefix_count=u(8), prefix_start=u(32),
        packed_nid=u(64), build_time=u(32),
    )
)  # fmt: skip
def test_round_trip(superblock: Superblock) -> None:
    assert parse_superblock(serialize_superblock(superblock)) == superblock


@settings(max_examples=100)
@given(st.binary(min_size=124, max_size=124))
def test_any_bytes(rest: bytes) -> None:
    try:
        superblock = parse_superblock(SAMPLE[:4] + rest)
    except FormatError:
        return
    assert superblock.block_bits <= 16


@pytest.mark.parametrize(
    ("bits", "covered"),
    [
        (9, range(1024, 1536)),
        (10, range(1024, 2048)),
        (11, range(1024, 2048)),
        (12, range(1024, 4096)),
        (16, range(1024, 65536)),
    ],
)
def test_what_the_checksum_covers(bits: int, covered: range) -> None:
    assert checksum_range(bits) == covered


def test_checksum_leaves_out_its_own_field() -> None:
    block = SAMPLE + b"slots"
    expected = crc32c(block[:4] + bytes(4) + block[8:])
    assert compute_checksum(block) == expected
    assert compute_checksum(bytearray(block[:4] + b"\xff" * 4 + block[8:])) == expected
    assert compute_checksum(block + b"\0") != expected


SLOTS = (DeviceSlot(b"ab" * 32, 5, 7), DeviceSlot(b"short", 2**32 - 1, 0))
SLOT_BYTES = (
    b"ab" * 32 + b"\5\0\0\0\7\0\0\0" + bytes(56)
    + b"short" + bytes(59) + b"\xff\xff\xff\xff\0\0\0\0" + bytes(56)
)  # fmt: skip


def test_slots() -> None:
    assert parse_slots(SLOT_BYTES) == SLOTS
    assert serialize_slots(SLOTS) == SLOT_BYTES


u32 = st.integers(0, 2**32 - 1)
tags = st.binary(max_size=64).filter(lambda tag: b"\0" not in tag)


@given(st.lists(st.builds(DeviceSlot, tags, u32, u32), max_size=5))
def test_any_slots_come_back(slots: list[DeviceSlot]) -> None:
    assert parse_slots(serialize_slots(slots)) == tuple(slots)


@given(st.integers(0, 3), st.data())
def test_any_bytes_are_slots_or_refused(count: int, data: st.DataObject) -> None:
    size = 128 * count
    table = data.draw(st.binary(min_size=size, max_size=size))
    try:
        slots = parse_slots(table)
    except FormatError:
        return
    assert len(slots) == count


def test_truncated_slots() -> None:
    for size in range(257):
        if size % 128:
            with pytest.raises(FormatError, match=f"^erofs_deviceslot: a table of {size} bytes$"):
                parse_slots(SLOT_BYTES[:size])
        else:
            assert parse_slots(SLOT_BYTES[:size]) == SLOTS[: size // 128]


@pytest.mark.parametrize("where", [72, 76])
def test_slot_with_48_bits(where: int) -> None:
    data = SLOT_BYTES[:where] + b"\1" + SLOT_BYTES[where + 1 :]
    with pytest.raises(
        FormatError, match=r"^erofs_deviceslot: 48-bit addresses are not supported$"
    ):
        parse_slots(data)


@pytest.mark.parametrize("tag", [b"n" * 65, b"a\0b"])
def test_impossible_tag(tag: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        serialize_slots([DeviceSlot(tag, 1, 1)])
    assert str(caught.value) == f"erofs_deviceslot: impossible tag {tag!r}"


def test_slot_that_does_not_fit() -> None:
    with pytest.raises(FormatError, match=r"^erofs_deviceslot: "):
        serialize_slots([DeviceSlot(b"", 2**32, 1)])
