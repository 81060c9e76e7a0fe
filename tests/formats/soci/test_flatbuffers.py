"""Tables of FlatBuffers, and buffers that lie about where things are."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg_formats.errors import FormatError
from lazyimg_formats.soci import flatbuffers
from lazyimg_formats.soci.flatbuffers import OFFSET, Buffer, TableReader

FIELDS = f"{OFFSET}bqI"


def table(*places: int, size: int = 28, fields: bytes = b"") -> bytes:
    """Give a root, a vtable at 4, and behind it the table."""
    length = 4 + 2 * len(places)
    vtable = struct.pack(f"<{2 + len(places)}H", length, size, *places)
    return struct.pack("<I", 4 + length) + vtable + struct.pack("<i", length) + fields


def read(data: bytes, fields: str = FIELDS) -> tuple[int, ...]:
    buffer = Buffer("thing", data)
    return TableReader(buffer, fields).read(buffer.root())


def problem(data: bytes, fields: str = FIELDS) -> str:
    with pytest.raises(FormatError) as caught:
        read(data, fields)
    return str(caught.value)


GOOD = table(4, 8, 16, 24, fields=struct.pack("<Ib7xqI", 30, -5, -(1 << 40), 4_000_000_000))


def test_fields_in_their_places() -> None:
    assert read(GOOD) == (4 + 30, -5, -(1 << 40), 4_000_000_000)


def test_fields_that_are_missing() -> None:
    assert read(table(0, 8, 0, size=12, fields=bytes(4) + b"\x07" + bytes(3))) == (0, 7, 0, 0)
    assert read(table(size=4)) == (0, 0, 0, 0)


def test_single_field_and_more_than_are_known() -> None:
    assert read(GOOD, OFFSET) == (34,)


def test_order_in_the_table_is_free() -> None:
    data = table(16, 4, 8, 20, size=24, fields=b"\x01" + bytes(3) + struct.pack("<qII", 2, 3, 4))
    assert read(data) == (16 + 3, 1, 2, 4)


def test_vtable_behind_its_table() -> None:
    data = struct.pack("<Ii", 4, -8) + struct.pack("<IHHH", 9, 6, 8, 4)
    assert read(data, OFFSET) == (13,)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "thing: byte 0 of 0 is referred to"),
        (b"\0\0\0\1", "thing: byte 16777216 of 4 is referred to"),
        (struct.pack("<Ii", 4, 40), "thing: byte -36 of 8 is referred to"),
        (struct.pack("<Ii", 4, -40), "thing: byte 44 of 8 is referred to"),
        (struct.pack("<IHHi", 8, 3, 8, 4), "thing: a vtable of 3 bytes, for 8"),
        (struct.pack("<IHHi", 8, 4, 3, 4), "thing: a vtable of 4 bytes, for 3"),
        (struct.pack("<IHHi", 8, 40, 4, 4), "thing: a vtable of 40 bytes, for 4"),
        (table(4, 8, 16, 24, size=29, fields=bytes(24)), "thing: byte 45 of 44 is referred to"),
        (table(4, 8, 16, 26, fields=bytes(24)), "thing: a field behind its table of 28 bytes"),
        (table(4, 7, fields=bytes(24)), "thing: a field at byte 7 of its table"),
        (table(3, fields=bytes(24)), "thing: a field at byte 3 of its table"),
    ],
)
def test_tables_that_lie(data: bytes, expected: str) -> None:
    assert problem(data) == expected


def test_tables_of_too_many_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flatbuffers, "MAX_LAYOUTS", 1)
    other = len(GOOD)
    data = GOOD + struct.pack("<HHi", 4, 4, 4)
    reader = TableReader(Buffer("thing", data), FIELDS)
    assert reader.read(16) == reader.read(16)
    with pytest.raises(FormatError, match=r"^thing: over 1 kinds of one table$"):
        reader.read(other + 4)


def test_strings_and_vectors() -> None:
    buffer = Buffer("thing", struct.pack("<I3sxIII2s", 3, b"abc", 1, 4, 2, b"de"))
    assert buffer.text(0) == b"abc"
    assert bytes(buffer.view(0)) == b"abc"
    assert list(buffer.targets(8)) == [12]
    assert buffer.text(buffer.follow(12)) == b"de"


@pytest.mark.parametrize("how", ["text", "view", "targets"])
def test_strings_and_vectors_that_reach_too_far(how: str) -> None:
    for data in (b"", b"\1\0\0", b"\1\0\0\0", b"\xff\xff\xff\xffabc"):
        with pytest.raises(FormatError, match="is referred to"):
            getattr(Buffer("thing", data), how)(0)


@given(st.binary(max_size=64), st.text(alphabet=[*"biIq", OFFSET], min_size=1, max_size=8))
def test_any_bytes(data: bytes, fields: str) -> None:
    try:
        assert len(read(data, fields)) == len(fields)
    except FormatError as error:
        assert error.what == "thing"  # noqa: PT017 - it need not raise


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_table_that_is_damaged(at: int, value: int) -> None:
    data = bytearray(GOOD)
    data[at] = value
    for cut in (bytes(data), bytes(data[:at])):
        try:
            assert len(read(cut)) == 4
        except FormatError as error:
            assert error.what == "thing"  # noqa: PT017
