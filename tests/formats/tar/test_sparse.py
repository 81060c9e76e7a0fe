"""Maps of sparse files; the formats as a whole are in test_scanner."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg_formats.errors import FormatError
from lazyimg_formats.tar.sparse import (
    MAX_REGIONS,
    check_regions,
    count_lines,
    parse_leading,
    parse_listed,
    parse_old_entries,
)


def old_block(entries: list[tuple[bytes, bytes]], *, more: bool, is_header: bool) -> bytes:
    start, flag = (386, 482) if is_header else (0, 504)
    data = bytearray(512)
    for number, (offset, length) in enumerate(entries):
        at = start + 24 * number
        data[at : at + 24] = offset.ljust(12, b"\0") + length.ljust(12, b"\0")
    data[flag] = more
    return bytes(data)


@pytest.mark.parametrize("is_header", [True, False])
@pytest.mark.parametrize("more", [True, False])
def test_old_entries(is_header: bool, more: bool) -> None:  # noqa: FBT001
    data = old_block([(b"0", b"1000"), (b"20000", b"10")], more=more, is_header=is_header)
    assert parse_old_entries(data, is_header=is_header) == ([(0, 512), (8192, 8)], more)


@pytest.mark.parametrize(("is_header", "count"), [(True, 4), (False, 21)])
def test_old_block_that_is_full(is_header: bool, count: int) -> None:  # noqa: FBT001
    data = old_block([(b"0", b"0")] * count, more=False, is_header=is_header)
    assert len(parse_old_entries(data, is_header=is_header)[0]) == count


def test_old_entry_that_is_no_number() -> None:
    with pytest.raises(FormatError, match="octal"):
        parse_old_entries(old_block([(b"0", b"x")], more=False, is_header=True), is_header=True)


def test_listed() -> None:
    records = {b"GNU.sparse.numblocks": b"2", b"GNU.sparse.map": b"0,1,4096,2"}
    assert parse_listed(records) == [(0, 1), (4096, 2)]


def test_listed_without_regions() -> None:
    assert parse_listed({b"GNU.sparse.numblocks": b"0"}) == []


@pytest.mark.parametrize(("count", "text"), [(b"2", b"0,1"), (b"1", b"0,1,2"), (b"-1", b"")])
def test_listed_with_another_count(count: bytes, text: bytes) -> None:
    with pytest.raises(FormatError, match=r"^sparse file: -?\d regions promised, \d numbers"):
        parse_listed({b"GNU.sparse.numblocks": count, b"GNU.sparse.map": text})


def test_listed_without_a_count() -> None:
    with pytest.raises(FormatError, match="expected a decimal number"):
        parse_listed({b"GNU.sparse.map": b"0,1"})


def test_leading() -> None:
    assert parse_leading(b"2\n0\n512\n8192\n8\n".ljust(512, b"\0")) == [(0, 512), (8192, 8)]


@pytest.mark.parametrize("text", [b"-1\n", b"9223372036854775807\n0\n", b"2\n0\n1\n"])
def test_leading_with_another_count(text: bytes) -> None:
    with pytest.raises(FormatError, match=r"^sparse file: -?\d+ regions promised, \d numbers"):
        parse_leading(text)


def test_leading_without_regions() -> None:
    assert parse_leading(b"0\n".ljust(512, b"\0")) == []


@pytest.mark.parametrize(("text", "lines"), [(b"2\n0", 5), (b"0\n", 1), (b"21", 0)])
def test_lines(text: bytes, lines: int) -> None:
    assert count_lines(text) == lines


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"1" * 512, "its map does not begin with a number"),
        (b"-1\n", "impossible number of regions -1"),
        (b"%d\n" % (MAX_REGIONS + 1), f"impossible number of regions {MAX_REGIONS + 1}"),
    ],
)
def test_lines_that_no_map_has(text: bytes, problem: str) -> None:
    with pytest.raises(FormatError, match=f"^sparse file: {problem}$"):
        count_lines(text)


def test_check_leaves_empty_regions_out() -> None:
    regions = [(0, 0), (512, 10), (1000, 0)]
    assert check_regions(regions, 1000, 10) == ((512, 10),)


@pytest.mark.parametrize(
    ("regions", "size", "data_size", "problem"),
    [
        ([(0, -1)], 10, -1, r"impossible region 0\+-1 of 10 bytes"),
        ([(-1, 1)], 10, 1, r"impossible region -1\+1 of 10 bytes"),
        ([(0, 5), (4, 1)], 10, 6, r"impossible region 4\+1 of 10 bytes"),
        ([(0, 11)], 10, 11, r"impossible region 0\+11 of 10 bytes"),
        ([(0, 5)], 10, 6, r"its regions have 5 bytes, its data 6"),
        ([], -1, 0, r"its regions have 0 bytes, its data 0"),
    ],
)
def test_check_refuses(
    regions: list[tuple[int, int]], size: int, data_size: int, problem: str
) -> None:
    with pytest.raises(FormatError, match=f"^sparse file: {problem}$"):
        check_regions(regions, size, data_size)


@given(st.binary(max_size=600))
def test_noise(data: bytes) -> None:
    for parse in (count_lines, parse_leading):
        try:
            parse(data)
        except FormatError as error:
            assert error.what in {"sparse file", "PAX record"}  # noqa: PT017 - which one is open
