"""A tar and indexes that describe it, or lie about it."""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from lazyimg_formats.device_table import Codec, DeviceColumns, DeviceTable
from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import Entry, Kind, LayerBuilder, LayerIndex, Piece
from lazyimg_formats.tar.comparison import TarComparison
from lazyimg_formats.tar.writer import END, padding, serialize_header
from tests.formats.tar.test_scanner import old_sparse, scan_one

if TYPE_CHECKING:
    from collections.abc import Iterable

TEXT = bytes(range(1, 252)) * 40
MEMBERS: list[tuple[Entry, bytes]] = [
    (Entry(b"./etc/", Kind.DIRECTORY, 0o755, 1, 2, 1_700_000_000, 5), b""),
    (Entry(b"./etc/text", Kind.REGULAR, 0o4644, 3, 4, 7, size=len(TEXT)), TEXT),
    (Entry(b"etc/empty", Kind.REGULAR, 0o600), b""),
    (Entry(b"etc/zeros", Kind.REGULAR, 0o600, size=9000), bytes(9000)),
    (Entry(b"etc/link", Kind.SYMLINK, 0o777, target=b"text"), b""),
    (Entry(b"etc/hard", Kind.HARDLINK, 0o644, target=b"./etc/text"), b""),
    (Entry(b"dev/null", Kind.CHARACTER, 0o666, major=1, minor=3), b""),
    (Entry(b"dev/disk", Kind.BLOCK, 0o660, major=8), b""),
    (Entry(b"dev/pipe", Kind.FIFO, 0o600), b""),
    (Entry(b"etc/.wh.gone", Kind.REGULAR, size=5), b"12345"),
    (Entry(b"var/.wh..wh..opq", Kind.REGULAR), b""),
    (Entry(b"var/.wh..wh.aufs/x", Kind.REGULAR, size=3), b"123"),
    (Entry(b"etc/named", Kind.REGULAR, 0o644, xattrs=((b"user.a", b"1"),), size=4), b"last"),
]


def make_tar(members: Iterable[tuple[Entry, bytes]]) -> bytes:
    parts = [serialize_header(entry) + data + padding(len(data)) for entry, data in members]
    return b"".join(parts) + END


def make_index(members: Iterable[tuple[Entry, bytes]], span: int = 4096) -> LayerIndex:
    """Describe a tar as a converter does: a span for so many bytes of a file, none for zeros."""
    builder = LayerBuilder()
    for entry, data in members:
        pieces = []
        for at in range(0, 0 if b".wh." in entry.path else len(data), span):
            part = data[at : at + span]
            if any(part):
                pieces.append(Piece(at, len(part), add_span(builder, part)))
        builder.add(entry, pieces)
    return builder.finish()


def add_span(builder: LayerBuilder | DeviceColumns, data: bytes) -> int:
    return builder.add_span(0, 1, len(data), hashlib.sha256(data).digest(), Codec.RAW)


def compare(index: LayerIndex, tar: bytes, step: int | None = None) -> None:
    comparison = TarComparison(index)
    for at in range(0, len(tar), step or len(tar)):
        comparison.feed(tar[at : at + (step or len(tar))])
    comparison.finish()


def problem(index: LayerIndex, tar: bytes) -> str:
    with pytest.raises(FormatError) as caught:
        compare(index, tar)
    return str(caught.value)


@given(st.integers(1, 20_000), st.sampled_from([100, 4096, 1 << 20]))
def test_index_that_tells_the_truth(step: int, span: int) -> None:
    compare(make_index(MEMBERS, span), make_tar(MEMBERS), step)


def test_empty_tar() -> None:
    compare(make_index([]), END)


@pytest.mark.parametrize(
    ("number", "change", "expected"),
    [
        (1, {"path": b"etc/other"}, "entry 2, b'etc/other': path b'etc/other', in its tar"),
        (4, {"kind": Kind.FIFO, "target": b""}, "b'etc/link': kind fifo, in its tar symlink"),
        (1, {"mode": 0o755}, "mode 493, in its tar 2468"),
        (1, {"uid": 0}, "uid 0, in its tar 3"),
        (1, {"gid": 0}, "gid 0, in its tar 4"),
        (1, {"mtime": 8}, "mtime 8, in its tar 7"),
        (0, {"mtime_ns": 6}, "mtime_ns 6, in its tar 5"),
        (1, {"size": 10_041}, "size 10041, in its tar 10040"),
        (4, {"target": b"x" * 100}, "target b'" + "x" * 78 + ", in its tar b'text'"),
        (5, {"target": b"etc/named"}, "target b'etc/named', in its tar b'etc/text'"),
        (6, {"major": 5}, "major 5, in its tar 1"),
        (6, {"minor": 5}, "minor 5, in its tar 3"),
        (12, {"xattrs": ((b"user.a", b"2"),)}, "xattrs ((b'user.a', b'2'),), in its tar"),
        (9, {"path": b"etc/.wh.named"}, "path b'etc/named', in its tar b'etc/gone'"),
    ],
)  # fmt: skip
def test_index_that_lies_about_an_entry(
    number: int, change: dict[str, object], expected: str
) -> None:
    lie = list(MEMBERS)
    lie[number] = (replace(lie[number][0], **change), lie[number][1])
    assert expected in problem(make_index(lie), make_tar(MEMBERS))


def test_entry_that_only_one_of_them_has() -> None:
    tar = make_tar(MEMBERS)
    assert problem(make_index(MEMBERS[:-1]), tar) == "index: does not have b'etc/named' of its tar"
    further = [*MEMBERS, (Entry(b"more", Kind.FIFO), b"")]
    assert problem(make_index(further), tar) == "index: has b'more', which its tar does not have"


def test_tar_that_is_cut_short() -> None:
    assert "cut short" in problem(make_index(MEMBERS), make_tar(MEMBERS)[:-1534])


@pytest.mark.parametrize("span", [100, 4096, 1 << 20])
@pytest.mark.parametrize("at", [0, 5000, len(TEXT) - 1])
def test_index_that_gives_other_bytes(span: int, at: int) -> None:
    other = bytearray(TEXT)
    other[at] ^= 1
    lie = [*MEMBERS[:1], (MEMBERS[1][0], bytes(other)), *MEMBERS[2:]]
    end = min(at - at % span + span, len(TEXT))
    assert problem(make_index(lie, span), make_tar(MEMBERS)) == (
        f"index: b'etc/text', before byte {end}: not the bytes of its tar"
    )


def test_index_that_has_zeros_instead() -> None:
    lie = [*MEMBERS[:1], (MEMBERS[1][0], bytes(4096) + TEXT[4096:]), *MEMBERS[2:]]
    expected = "index: b'etc/text', before byte 0: zeros, in its tar other bytes"
    assert problem(make_index(lie), make_tar(MEMBERS)) == expected


def test_index_that_has_other_bytes_instead_of_zeros() -> None:
    lie = [*MEMBERS[:3], (MEMBERS[3][0], bytes(8999) + b"x"), *MEMBERS[4:]]
    expected = "index: b'etc/zeros', before byte 9000: not the bytes of its tar"
    assert problem(make_index(lie), make_tar(MEMBERS)) == expected


HOLES = 3 << 20
TAIL = old_sparse([(HOLES - 4, 4)], HOLES, b"tail") + END
HOLE = old_sparse([], HOLES, b"") + END


@pytest.mark.parametrize("span", [4096, 1 << 17, 1 << 22])
@pytest.mark.parametrize("step", [None, 512, 1000])
def test_sparse_file(span: int, step: int | None) -> None:
    entry = scan_one(TAIL).entry
    compare(make_index([(entry, bytes(HOLES - 4) + b"tail")], span), TAIL, step)
    other = make_index([(entry, bytes(HOLES - 4) + b"tale")], span)
    assert "not the bytes of its tar" in problem(other, TAIL)


def test_file_that_is_a_hole() -> None:
    compare(make_index([(scan_one(HOLE).entry, bytes(HOLES))]), HOLE)


def test_span_in_several_chunks() -> None:
    """A sparse file's spans of 128 KiB are two extents each: its chunks have 64 KiB."""
    data = TEXT * 20 + bytes(2 << 20) + TEXT * 20
    member = (Entry(b"f", Kind.REGULAR, 0o644, size=len(data)), data)
    index = make_index([member], 1 << 17)
    assert index.table.extent_count > index.table.span_count
    compare(index, make_tar([member]))
    other = (member[0], data[:-1] + b"x")
    assert "not the bytes of its tar" in problem(index, make_tar([other]))


@pytest.mark.parametrize(
    ("extents", "expected"),
    [
        ([(0, 4, 0, 2)], "before byte 0: a span is not used in its order"),
        ([(0, 2, 0, 0), (2, 2, 1, 0)], "before byte 2: a span is not used in its order"),
        ([(0, 4, 0, 0)], "before byte 4: a span belongs to several files"),
    ],
)
def test_spans_that_are_not_one_file_s(
    extents: list[tuple[int, int, int, int]], expected: str
) -> None:
    columns = DeviceColumns()
    for extent in extents:
        columns.add_extent(*extent)
        if columns.span_count <= extent[2]:
            add_span(columns, b"12345678")
    table = DeviceTable(columns.serialize(4096))
    member = Entry(b"f", Kind.REGULAR, 0o644, size=4)
    index = LayerIndex([replace(member, data=0)], table)
    assert problem(index, make_tar([(member, b"1234")])) == f"index: b'f', {expected}"


@given(st.binary(max_size=2000), st.integers(1, 2000))
def test_any_bytes(data: bytes, step: int) -> None:
    with contextlib.suppress(FormatError):
        compare(make_index(MEMBERS), data or b"x", step)


STARGZ_FILES = [
    (Entry(b".no.prefetch.landmark", Kind.REGULAR, 0o644, size=1), b"\x0f"),
    (Entry(b"./.prefetch.landmark", Kind.REGULAR, 0o644, size=1), b"\x0f"),
    (Entry(b"stargz.index.json", Kind.REGULAR, 0o644, size=len(TEXT)), TEXT),
]


def compare_stargz(index: LayerIndex, tar: bytes) -> None:
    comparison = TarComparison(index, stargz=True)
    comparison.feed(tar)
    comparison.finish()


def test_files_of_stargz_snapshotter_s_own() -> None:
    """Only where they are its own, and only in the root."""
    rounded = [(replace(entry, mtime_ns=0), data) for entry, data in MEMBERS]
    tar = make_tar([STARGZ_FILES[0], *rounded, *STARGZ_FILES[1:]])
    compare_stargz(make_index(rounded), tar)
    assert "in its tar b'.no.prefetch.landmark'" in problem(make_index(rounded), tar)
    below = (Entry(b"etc/.prefetch.landmark", Kind.REGULAR, size=1), b"\x0f")
    with pytest.raises(FormatError, match=r"does not have b'etc/\.prefetch\.landmark' of its tar"):
        compare_stargz(make_index(rounded), make_tar([*rounded, below]))


@pytest.mark.parametrize(
    ("time", "known"),
    [
        ((7, 0), 7),
        ((7, 499_999_999), 7),
        ((7, 500_000_000), 8),
        ((0, 700_000_000), 0),
        ((-1, 500_000_000), 0),
        ((-2, 400_000_000), -2),
    ],
)
def test_times_that_stargz_snapshotter_knows(time: tuple[int, int], known: int) -> None:
    entry = Entry(b"d", Kind.DIRECTORY, 0o755, mtime=time[0], mtime_ns=time[1])
    tar = make_tar([(entry, b"")])
    compare_stargz(make_index([(replace(entry, mtime=known, mtime_ns=0), b"")]), tar)
    with pytest.raises(FormatError, match="mtime"):
        compare_stargz(make_index([(replace(entry, mtime=known + 1, mtime_ns=0), b"")]), tar)


def stretched(*entries: tuple[Entry, int], span: int = 3000) -> tuple[LayerIndex, list[int]]:
    """Describe a tar by its places: spans of so many bytes of it, digests of nothing."""
    builder = LayerBuilder()
    starts: list[int] = []
    for entry, offset in entries:
        pieces = []
        at = 0
        while at < entry.size:
            number, inner = divmod(offset + at, span)
            if not starts or starts[-1] != number * span:
                starts.append(number * span)
                builder.add_span(len(starts), 1, span, bytes(32), Codec.GZIP_STRETCH)
            length = min(span - inner, entry.size - at)
            pieces.append(Piece(at, length, len(starts) - 1, inner))
            at += length
        builder.add(entry, pieces)
    return builder.finish(), starts


def compare_places(tar: bytes, index: LayerIndex, starts: list[int]) -> None:
    comparison = TarComparison(index, starts=starts)
    comparison.feed(tar)
    comparison.finish()


PLACED = [
    (Entry(b"a", Kind.REGULAR, 0o600, size=5000), b"a" * 5000),
    (Entry(b"b", Kind.DIRECTORY, 0o700), b""),
    (Entry(b"c", Kind.REGULAR, 0o600, size=9), b"c" * 9),
]


def test_places_in_the_tar() -> None:
    entries = [(PLACED[0][0], 512), (PLACED[1][0], 6144), (PLACED[2][0], 6656)]
    compare_places(make_tar(PLACED), *stretched(*entries))


@pytest.mark.parametrize("offset", [1024, 511])
def test_another_place_in_the_tar(offset: int) -> None:
    entries = [(PLACED[0][0], offset), (PLACED[1][0], 6144), (PLACED[2][0], 6656)]
    with pytest.raises(FormatError) as caught:
        compare_places(make_tar(PLACED), *stretched(*entries))
    assert str(caught.value) == "index: b'a' is not at byte 512 of its tar, or is sparse"


def test_place_of_which_an_index_has_only_zeros() -> None:
    index, starts = stretched((PLACED[0][0], 512))
    builder = LayerBuilder()
    builder.add(PLACED[0][0])
    for one in (builder.finish(),):
        with pytest.raises(FormatError, match="is not at byte 512 of its tar, or is sparse"):
            compare_places(make_tar(PLACED), one, starts)
    assert index.table.span_count == 2


def test_place_of_a_sparse_file() -> None:
    tar = old_sparse([(0, 512)], 512, b"x" * 512) + END
    member = scan_one(tar)
    with pytest.raises(FormatError, match="is not at byte 512 of its tar, or is sparse"):
        compare_places(tar, *stretched((member.entry, member.data_offset)))
