"""Where a tar is cut. Put together again, the cuts are the tar."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyimg.convert.cut import (
    GAP,
    MAX_PIECE,
    Batch,
    Cutter,
    Frame,
    Hole,
    Item,
    NoTarSplit,
    plan_pieces,
)
from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import Entry, Kind
from lazyimg_formats.tar.scanner import Member
from lazyimg_formats.tar.writer import END, padding, serialize_header
from lazyimg_formats.tar_split import TarSplit
from tests.fakes.tar_split import assemble, decode_lines
from tests.formats.tar.test_scanner import leading, old_sparse

KIB = 1024


def pack(*sizes: int) -> bytes:
    parts = []
    for number, size in enumerate(sizes):
        data = hashlib.sha256(b"%d" % number).digest() * (size // 32 + 1)
        entry = Entry(b"f%d" % number, Kind.REGULAR, 0o644, size=size)
        parts += [serialize_header(entry), data[:size], padding(size)]
    return b"".join(parts) + END


def cut(data: bytes, step: int = 1 << 20) -> Batch:
    cutter = Cutter()
    items: list[Item] = []
    frames: list[bytes | memoryview] = []

    def take() -> None:
        batch = cutter.take()
        assert cutter.size == 0
        items.extend(batch.items)
        frames.extend(map(bytes, batch.frames))

    for at in range(0, len(data), step):
        cutter.feed(data[at : at + step])
        assert cutter.size == len(data[at : at + step])
        take()
    cutter.finish()
    take()
    assert sum(isinstance(item, Frame) for item in items) == len(frames)
    return Batch(items, frames)


def piece(data: bytes, whole: bytes | None = None) -> Frame:
    return Frame(len(data), hashlib.sha256(data).digest(), whole)


@pytest.mark.parametrize(
    ("size", "pieces"),
    [
        (0, []),
        (1, [1]),
        (128 * KIB, [128 * KIB]),
        (128 * KIB + 1, [68 * KIB, 60 * KIB + 1]),
        (256 * KIB, [128 * KIB, 128 * KIB]),
        (300 * KIB, [100 * KIB] * 3),
        (301 * KIB, [104 * KIB, 104 * KIB, 93 * KIB]),
        (10_240 * KIB, [128 * KIB] * 80),
    ],
)
def test_plan(size: int, pieces: list[int]) -> None:
    assert list(plan_pieces(size, None)) == [(piece, False) for piece in pieces]


@given(st.integers(1, 1 << 32))
@settings(max_examples=50)
def test_plan_of_any_size(size: int) -> None:
    size %= 1 << 24
    plan = [length for length, _ in plan_pieces(size, None)]
    assert sum(plan) == size
    assert all(length % 4096 == 0 and 64 * KIB < length <= MAX_PIECE for length in plan[:-1])


def test_plan_with_holes() -> None:
    regions = ((4096, 10), (4106, 200 * KIB), (1 << 20, 1))
    assert list(plan_pieces(2 << 20, regions)) == [
        (4096, True),
        (10, False),
        (100 * KIB, False),
        (100 * KIB, False),
        ((1 << 20) - 4106 - 200 * KIB, True),
        (1, False),
        ((1 << 20) - 1, True),
    ]
    assert list(plan_pieces(5, ())) == [(5, True)]
    assert list(plan_pieces(0, ())) == []


def test_cuts() -> None:
    data = pack(5, 0, 300 * KIB)
    items, frames = cut(data)
    content = data[2048 : 2048 + 300 * KIB]
    pieces = [content[at : at + 100 * KIB] for at in range(0, len(content), 100 * KIB)]
    whole = hashlib.sha256(content).digest()
    assert [item for item in items if isinstance(item, Frame)] == [
        GAP, piece(data[512:517]), GAP, piece(pieces[0]), piece(pieces[1]), piece(pieces[2], whole),
        GAP,
    ]  # fmt: skip
    assert [type(item) for item in items] == [
        Frame, Member, Frame, Member, Frame, Member, Frame, Frame, Frame, Frame, TarSplit,
    ]  # fmt: skip
    assert frames == [
        data[:512], data[512:517], data[517:2048], *pieces, data[2048 + 300 * KIB :],
    ]  # fmt: skip


def test_the_tar_split_data_gives_the_tar_again() -> None:
    data = pack(5, 0, 300 * KIB) + bytes(5120)
    contents = {
        b"f0": data[512:517],
        b"f2": data[2048 : 2048 + 300 * KIB],
    }
    for step in (1 << 20, 70_001, 500):
        (split,) = [item for item in cut(data, step).items if isinstance(item, TarSplit)]
        assert assemble(decode_lines(*split), contents) == data


def test_headers_share_frames_of_at_most_128_kib() -> None:
    data = b"".join(serialize_header(Entry(b"d", Kind.DIRECTORY)) for _ in range(1000)) + END
    items, frames = cut(data)
    assert [item for item in items if isinstance(item, Frame)] == [GAP] * 4
    assert list(map(len, frames)) == [128 * KIB] * 3 + [128 * KIB - 12_288 + 1024]
    assert b"".join(frames) == data


def content(data: bytes) -> bytes:
    return (
        serialize_header(Entry(b"f", Kind.REGULAR, 0o644, size=len(data)))
        + data
        + padding(len(data))
        + END
    )


@pytest.mark.parametrize("size", [4096, 4097, MAX_PIECE])
@pytest.mark.parametrize("step", [1 << 20, 1000])
def test_zeros(size: int, step: int) -> None:
    items = cut(content(bytes(size)), step).items
    assert items[2] == Frame(size, None, None)


@pytest.mark.parametrize("data", [bytes(4095), bytes(4095) + b"x", b"x" + bytes(MAX_PIECE - 1)])
def test_what_is_not_marked_as_zeros(data: bytes) -> None:
    items = cut(content(data)).items
    assert items[2] == Frame(len(data), hashlib.sha256(data).digest(), None)


def test_sparse_file() -> None:
    data = old_sparse([(4096, 10), (1 << 20, 5)], 2 << 20, b"x" * 15) + END
    items, frames = cut(data)
    assert [type(item) for item in items] == [  # and no tar-split data
        Frame, Member, Hole, Frame, Hole, Frame, Hole, Frame, NoTarSplit,
    ]  # fmt: skip
    assert items[-1] == NoTarSplit("b'etc/passwd' is sparse")
    assert items[2] == Hole(4096)
    assert (items[3], items[5]) == (piece(b"x" * 10), piece(b"x" * 5))
    assert b"".join(frames) == data


def test_sparse_file_that_is_one_hole() -> None:
    data = leading(b"0\n", b"", 1 << 30) + END
    items, frames = cut(data)
    assert [type(item) for item in items] == [Member, Hole, Frame, NoTarSplit]
    assert b"".join(frames) == data


def test_what_follows_the_end_is_kept() -> None:
    data = pack(5) + bytes(9216) + b"garbage"
    assert b"".join(cut(data).frames) == data


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, 400 * KIB), max_size=4),
    st.integers(1, 50).map(lambda step: step * 7919),
)
def test_cuts_do_not_depend_on_how_the_tar_arrives(sizes: list[int], step: int) -> None:
    data = pack(*sizes)
    batch = cut(data)
    assert b"".join(batch.frames) == data
    assert cut(data, step) == batch
    assert not any(one == two == GAP for one, two in pairwise(batch.items))


def test_no_bytes() -> None:
    assert cut(b"") == ([], [])


def test_no_tar() -> None:
    with pytest.raises(FormatError, match="tar header"):
        cut(b"x" * 512)


def test_cut_short() -> None:
    with pytest.raises(FormatError, match="cut short after 1000 bytes"):
        cut(pack(5000)[:1000])
