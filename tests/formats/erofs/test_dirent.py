"""Directory blocks, both ways."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyimg_formats.erofs.dirent import (
    Dirent,
    check_names,
    parse_block,
    serialize_block,
    split_names,
)
from lazyimg_formats.erofs.layout import BLOCK_SIZE, FileType
from lazyimg_formats.errors import FormatError

names = st.binary(min_size=1, max_size=255).filter(lambda n: not {0, 47} & set(n))
file_types = st.sampled_from(FileType)

BLOCK = serialize_block([b"!", b".", b"..", b"bin"], [9, 36, 36, 2**63], [1, 2, 2, 7])
DIRENTS = [
    Dirent(b"!", 9, FileType.REG_FILE),
    Dirent(b".", 36, FileType.DIR),
    Dirent(b"..", 36, FileType.DIR),
    Dirent(b"bin", 2**63, FileType.SYMLINK),
]


def block_of(*rows: tuple[int, int, int], text: bytes = b"") -> bytes:
    return b"".join(struct.pack("<QHBB", *row, 0) for row in rows) + text


def test_block_as_bytes() -> None:
    assert serialize_block([b".", b"ab"], [1, 0x1122334455667788], [2, 1]) == bytes.fromhex(
        "0100000000000000 1800 02 00  8877665544332211 1900 01 00  2e6162"
    )


def test_parse_block() -> None:
    assert parse_block(BLOCK) == DIRENTS


def test_padded_block() -> None:
    assert parse_block(memoryview(BLOCK.ljust(BLOCK_SIZE, b"\0"))) == DIRENTS


@pytest.mark.parametrize("size", range(len(BLOCK)))
def test_truncated_block(size: int) -> None:
    """A name's end is where the block ends: a shorter last name is all that can be left."""
    try:
        found = parse_block(BLOCK[:size])
    except FormatError:
        return
    assert found[:3] == DIRENTS[:3]
    assert b"bin".startswith(found[3].name)


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        (b"", "a directory block of 0 bytes"),
        (bytes(11), "a directory block of 11 bytes"),
        (bytes(12), "names begin at 0 in a directory block of 12 bytes"),
        (block_of((1, 13, 1), text=b"ab"), "names begin at 13 in a directory block of 14 bytes"),
        (block_of((1, 24, 1), text=b"ab"), "names begin at 24 in a directory block of 14 bytes"),
        (block_of((1, 12, 1)), "a name at 12 to 12, of type 1"),
        (block_of((1, 12, 8), text=b"ab"), "a name at 12 to 14, of type 8"),
        (block_of((1, 24, 1), (1, 5, 1), text=b"ab"), "a name at 24 to 5, of type 1"),
        (block_of((1, 24, 1), (1, 99, 1), text=b"ab"), "a name at 24 to 99, of type 1"),
        (block_of((1, 24, 1), (1, 24, 1), text=b"ab"), "a name at 24 to 24, of type 1"),
        (block_of((1, 24, 1), (1, 25, 1), text=b"ba"), "name b'a' is not behind b'b'"),
        (block_of((1, 24, 1), (1, 25, 1), text=b"aa"), "name b'a' is not behind b'a'"),
        (block_of((1, 24, 1), (1, 26, 1), text=b"a\0b"), r"impossible name b'a\x00'"),
        (block_of((1, 12, 1), text=b"a/b"), "impossible name b'a/b'"),
        (block_of((1, 12, 1), text=b"n" * 256), f"impossible name {b'n' * 256!r}"),
    ],
)
def test_bad_block(block: bytes, problem: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_block(block)
    assert str(caught.value) == f"erofs_dirent: {problem}"


@settings(max_examples=50)
@given(
    st.dictionaries(names, st.tuples(st.integers(0, 2**64 - 1), file_types), min_size=1, max_size=9)
)
def test_round_trip(entries: dict[bytes, tuple[int, FileType]]) -> None:
    order = sorted(entries)
    nids, types = zip(*(entries[name] for name in order), strict=True)
    assert parse_block(serialize_block(order, nids, types)) == [
        Dirent(name, *entries[name]) for name in order
    ]


@settings(max_examples=100)
@given(st.binary(max_size=80))
def test_any_bytes(block: bytes) -> None:
    try:
        found = parse_block(block)
    except FormatError:
        return
    assert serialize_block(*zip(*((d.name, d.nid, d.file_type) for d in found), strict=True))


def test_names_that_fit_in_one_block() -> None:
    fitting = [b"%03d" % number for number in range(273)]  # 15 bytes each: 4095
    assert split_names(fitting) == [273]
    assert split_names([*fitting, b"x"]) == [273, 274]
    assert split_names([]) == [0]


def test_longest_names_in_blocks() -> None:
    assert split_names([b"n" * 255] * 32) == [15, 30, 32]


@settings(max_examples=50)
@given(st.lists(st.integers(1, 255), min_size=1, max_size=600))
def test_blocks_are_full_and_never_too_full(lengths: list[int]) -> None:
    some = [b"n" * length for length in lengths]
    ends = split_names(some)
    assert ends[-1] == len(some)
    begin = 0
    for end in ends:
        used = sum(12 + len(name) for name in some[begin:end])
        assert 0 < used <= BLOCK_SIZE
        if end < len(some):
            assert used + 12 + len(some[end]) > BLOCK_SIZE
        begin = end


def test_good_names() -> None:
    check_names([])
    check_names([b"a", b"...", b"n" * 255, b"\xff\n "])


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"a\0", b"n" * 256])
def test_bad_name(name: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        check_names([b"good", name, b"also good"])
    assert str(caught.value) == f"erofs_dirent: impossible name {name!r}"
