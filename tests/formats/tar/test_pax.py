"""PAX records."""

from __future__ import annotations

import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg_formats.errors import FormatError
from lazyimg_formats.tar.pax import parse_integer, parse_records, parse_time, serialize_records

SAMPLE = b"20 path=usr/bin/true\n20 mtime=12345.6789\n"


def test_records() -> None:
    data = b"21 path=usr/bin/true\n20 mtime=12345.6789\n"
    assert parse_records(data) == {b"path": b"usr/bin/true", b"mtime": b"12345.6789"}


def test_a_later_record_replaces_an_earlier_one() -> None:
    assert parse_records(b"9 uid=17\n9 uid=18\n") == {b"uid": b"18"}


def test_a_value_may_have_anything_in_it() -> None:
    assert parse_records(b"16 SCHILY.x=\0\n=\n") == {b"SCHILY.x": b"\0\n="}


def test_an_empty_value() -> None:
    assert parse_records(b"7 uid=\n") == {b"uid": b""}


def test_sparse_0_0_becomes_0_1() -> None:
    data = serialize_records(
        [
            (b"GNU.sparse.offset", b"0"),
            (b"GNU.sparse.numbytes", b"512"),
            (b"GNU.sparse.offset", b"4096"),
            (b"GNU.sparse.numbytes", b"1"),
        ]
    )
    assert parse_records(data) == {b"GNU.sparse.map": b"0,512,4096,1"}


@pytest.mark.parametrize(
    "records",
    [
        [(b"GNU.sparse.numbytes", b"0")],
        [(b"GNU.sparse.offset", b"0"), (b"GNU.sparse.offset", b"0")],
        [(b"GNU.sparse.offset", b"0,1")],
    ],
)
def test_sparse_0_0_out_of_order(records: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(FormatError, match=r"^PAX record: GNU.sparse.\w+ is out of order$"):
        parse_records(serialize_records(records))


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"9 uid=17",
        b"11 uid=17\n",
        b"8 uid=17\n",
        b"4 a=\n",
        b"0009999999 a=b\n",
        b"+9 uid=17\n",
        b" 9 uid=17\n",
        b"5    \n",
        b"99999999999999999999999999999 a=b\n",
    ],
)
def test_no_record(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"^PAX record: no length and line at byte 0 of the head"):
        parse_records(data)


@pytest.mark.parametrize(
    "data",
    [b"6 uid\n", b"6 =17\n", b"8 a\0b=c\n", b"11 path=a\0b\n", b"12 uname=a\0b\n"[:-2] + b"\n"],
)
def test_impossible_record(data: bytes) -> None:
    length = b"%d" % len(data)
    with pytest.raises(FormatError, match=r"^PAX record: impossible record b'"):
        parse_records(length + data[data.index(b" ") :])


@given(
    st.lists(
        st.tuples(st.text(min_size=1).filter(lambda key: not set(key) & set("=\0")), st.binary())
    )
)
def test_round_trip(records: list[tuple[str, bytes]]) -> None:
    pairs = [
        (key.encode(errors="replace"), value)
        for key, value in records
        if key not in {"path", "linkpath", "uname", "gname"} and not key.startswith("GNU.")
    ]
    assert parse_records(serialize_records(pairs)) == dict(pairs)


@pytest.mark.parametrize("size", [*range(80, 110), *range(980, 1010)])
def test_length_that_counts_itself(size: int) -> None:
    records = [(b"k", b"v" * size)]
    assert parse_records(serialize_records(records)) == dict(records)


def test_serialized_as_tarfile_does() -> None:
    info = tarfile.TarInfo("n")
    info.pax_headers = {"comment": "c" * 100}
    assert serialize_records([(b"comment", b"c" * 100)]) in info.tobuf(tarfile.PAX_FORMAT)


@given(st.binary(max_size=200))
def test_noise(data: bytes) -> None:
    try:
        records = parse_records(data)
    except FormatError:
        return
    assert all(records)


@pytest.mark.parametrize(
    ("text", "value"), [(b"0", 0), (b"-1", -1), (b"+7", 7), (b"9223372036854775807", (1 << 63) - 1)]
)
def test_integer(text: bytes, value: int) -> None:
    assert parse_integer(text) == value


@pytest.mark.parametrize(
    "text", [b"", b"1_0", b" 1", b"0x1", b"1.0", b"9223372036854775808", b"1" * 5000]
)
def test_no_integer(text: bytes) -> None:
    with pytest.raises(FormatError, match=r"^PAX record: expected a decimal number, got b'"):
        parse_integer(text)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        (b"0", (0, 0)),
        (b"1350244992", (1350244992, 0)),
        (b"1350244992.", (1350244992, 0)),
        (b"1350244992.3", (1350244992, 300_000_000)),
        (b"1350244992.023960108", (1350244992, 23_960_108)),
        (b"1350244992.0239601089999", (1350244992, 23_960_108)),
        (b"-1.5", (-2, 500_000_000)),
        (b"-0.25", (-1, 750_000_000)),
        (b"-1.0", (-1, 0)),
        (b"-1.0000000009", (-1, 0)),
    ],
)
def test_time(text: bytes, time: tuple[int, int]) -> None:
    assert parse_time(text) == time


@pytest.mark.parametrize("text", [b"", b".5", b"1.-5", b"1e3", b"nan", b"1.2.3"])
def test_no_time(text: bytes) -> None:
    with pytest.raises(FormatError, match=r"^PAX record: expected a time, got b'"):
        parse_time(text)


def test_time_just_below_64_bits() -> None:
    with pytest.raises(FormatError, match=r"is over 64 bits$"):
        parse_time(b"-9223372036854775808.5")
