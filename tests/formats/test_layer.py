"""LayerBuilder: paths, markers, attributes and the layout of the device."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyimg_formats import layer
from lazyimg_formats.device_table import BLOCK_SIZE, MAX_DEVICE_SIZE, Codec
from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import (
    ZEROS_WORTH_A_MAP,
    ChunkMap,
    Entry,
    Kind,
    LayerBuilder,
    LayerIndex,
    Piece,
    has_entry,
    normalize_path,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB = 1 << 20
DIGEST = bytes(32)


def build(*files: tuple[int, Sequence[tuple[int, bytes]]]) -> tuple[LayerIndex, list[bytes]]:
    """Build a layer of files (size, [(file offset, bytes), ...]), each part a span of its own."""
    builder = LayerBuilder()
    contents = []
    for number, (size, parts) in enumerate(files):
        pieces = []
        for offset, data in parts:
            span = builder.add_span(0, 1, len(data), DIGEST, Codec.RAW)
            contents.append(data)
            pieces.append(Piece(offset, len(data), span))
        builder.add(Entry(b"f%d" % number, Kind.REGULAR, size=size), pieces)
    return builder.finish(), contents


def device_bytes(index: LayerIndex, contents: Sequence[bytes]) -> bytearray:
    """Give the whole device, byte for byte from its table."""
    device = bytearray(index.table.size)
    for i in range(index.table.extent_count):
        extent = index.table.extent(i)
        data = contents[extent.span][extent.inner_offset : extent.inner_offset + extent.length]
        device[extent.device_offset : extent.device_offset + extent.length] = data
    return device


def file_bytes(entry: Entry, device: bytearray) -> bytes:
    """Read a file from its device as the kernel would."""
    if isinstance(entry.data, ChunkMap):
        chunk = 1 << entry.data.bits
        starts = [block * BLOCK_SIZE for block in entry.data.blocks]
        return b"".join(device[start : start + chunk] for start in starts)[: entry.size]
    return bytes(device[entry.data : entry.data + entry.size]) if entry.data is not None else b""


def add(**fields: Any) -> list[Entry]:
    builder = LayerBuilder()
    settings: dict[str, Any] = {"path": b"x", "kind": Kind.DIRECTORY, **fields}
    builder.add(Entry(**settings))
    return builder.finish().entries


@pytest.mark.parametrize(
    ("raw", "path"),
    [(b"/", b""), (b"./", b""), (b"", b""), (b"./a//b/./c/", b"a/b/c"), (b"/...", b"...")],
)
def test_path_is_normalized(raw: bytes, path: bytes) -> None:
    assert normalize_path(raw) == path


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"a/../b", "path b'a/../b' contains '..'"),
        (b"a" * 256, "is over 255 bytes"),
        (b"a/" * 2047 + b"bc", "is over 4,095 bytes or has a NUL"),
        (b"a\0b", "is over 4,095 bytes or has a NUL"),
    ],
)
def test_impossible_path(raw: bytes, problem: str) -> None:
    with pytest.raises(FormatError) as caught:
        normalize_path(raw)
    assert problem in str(caught.value)


def test_longest_path_and_name() -> None:
    path = b"a/" * 2047 + b"b"
    assert normalize_path(path) == path
    assert normalize_path(b"a" * 255) == b"a" * 255


@given(st.binary(max_size=40))
def test_normalized_path_stays_as_it_is(raw: bytes) -> None:
    try:
        path = normalize_path(raw)
    except FormatError:
        return
    assert normalize_path(path) == path
    assert not set(path.split(b"/")) & {b".", b".."}


def test_whiteouts() -> None:
    markers = [
        (Entry(b"d/.wh.gone", Kind.REGULAR), [Entry(b"d/gone", Kind.WHITEOUT)]),
        (Entry(b".wh.gone", Kind.REGULAR), [Entry(b"gone", Kind.WHITEOUT)]),
        (Entry(b"d/.wh..wh..opq", Kind.REGULAR), [Entry(b"d", Kind.OPAQUE)]),
        (Entry(b".wh..wh..opq", Kind.REGULAR), [Entry(b"", Kind.OPAQUE)]),
        (Entry(b"null", Kind.CHARACTER), [Entry(b"null", Kind.CHARACTER)]),
        (Entry(b".wh..wh.aufs", Kind.REGULAR), []),
        (Entry(b"d/a.wh.b", Kind.FIFO), [Entry(b"d/a.wh.b", Kind.FIFO)]),
        (Entry(b".wh.d/f", Kind.FIFO), [Entry(b".wh.d/f", Kind.FIFO)]),
        (Entry(b".wh..wh.plnk/1.2", Kind.REGULAR), []),
        (Entry(b"d/.wh..wh.orph/x/y", Kind.DIRECTORY), []),
    ]
    for marker, entries in markers:
        builder = LayerBuilder()
        builder.add(marker)
        assert builder.finish().entries == entries


@pytest.mark.parametrize("name", [b".wh.", b".wh..", b".wh..."])
def test_whiteout_of_nothing(name: bytes) -> None:
    with pytest.raises(FormatError, match="names nothing"):
        add(path=b"d/" + name)


@pytest.mark.parametrize("kind", [Kind.WHITEOUT, Kind.OPAQUE])
def test_marker_as_a_kind(kind: Kind) -> None:
    with pytest.raises(FormatError, match="a marker is given by its file"):
        add(kind=kind)


def test_root_that_is_no_directory() -> None:
    with pytest.raises(FormatError, match="the root is a symlink"):
        add(path=b"./", kind=Kind.SYMLINK, target=b"x")
    assert add(path=b"/", mode=0o40755) == [Entry(b"", Kind.DIRECTORY, 0o755)]


def test_fields_that_mean_nothing_for_a_kind_are_dropped() -> None:
    noise: dict[str, Any] = {"size": 9, "target": b"t", "major": 8, "minor": 1}
    assert add(**noise) == [Entry(b"x", Kind.DIRECTORY)]
    assert add(kind=Kind.FIFO, **noise) == [Entry(b"x", Kind.FIFO)]
    assert add(kind=Kind.BLOCK, **noise) == [Entry(b"x", Kind.BLOCK, major=8, minor=1)]
    assert add(kind=Kind.SYMLINK, **noise) == [Entry(b"x", Kind.SYMLINK, target=b"t")]
    assert add(kind=Kind.HARDLINK, **noise | {"target": b"./a//b"}) == [
        Entry(b"x", Kind.HARDLINK, target=b"a/b")
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"uid": -1},
        {"uid": 1 << 32},
        {"gid": -1},
        {"gid": 1 << 32},
        {"mtime": 1 << 63},
        {"mtime": -(1 << 63)},
        {"mtime_ns": -1},
        {"mtime_ns": 1_000_000_000},
        {"major": -1},
        {"major": 1 << 12},
        {"minor": -1},
        {"minor": 1 << 20},
    ],
)
def test_number_out_of_range(fields: dict[str, int]) -> None:
    with pytest.raises(FormatError, match="b'x': an owner, time or device number out of range"):
        add(**fields)


def test_extreme_numbers() -> None:
    entry = Entry(
        b"x", Kind.BLOCK, 0o7777, 2**32 - 1, 2**32 - 1, -(2**40), 999_999_999, 0, b"", 4095, 1048575
    )
    builder = LayerBuilder()
    builder.add(entry)
    assert builder.finish().entries == [entry]


@pytest.mark.parametrize("target", [b"", b"a" * 4096, b"a\0b"])
def test_impossible_symbolic_link(target: bytes) -> None:
    with pytest.raises(FormatError, match=f"impossible target of {len(target)} bytes"):
        add(kind=Kind.SYMLINK, target=target)


def test_impossible_hard_link() -> None:
    with pytest.raises(FormatError, match="hard link b'x' to the root"):
        add(kind=Kind.HARDLINK, target=b"/")
    with pytest.raises(FormatError, match=r"contains '\.\.'"):
        add(kind=Kind.HARDLINK, target=b"../x")


def test_attributes_are_sorted_and_the_last_of_a_name_counts() -> None:
    xattrs = ((b"user.b", b"1"), (b"user.a", b"2"), (b"user.b", b"3"))
    assert add(xattrs=xattrs)[0].xattrs == ((b"user.a", b"2"), (b"user.b", b"3"))


def test_trusted_and_overlay_attributes_never_get_further() -> None:
    xattrs = (
        (b"trusted.overlay.opaque", b"y"),
        (b"trusted.other", b"x"),
        (b"user.overlay.opaque", b"y"),
    )
    assert add(xattrs=xattrs) == [Entry(b"x", Kind.DIRECTORY)]
    assert add(xattrs=(*xattrs, (b"user.a", b""))) == [
        Entry(b"x", Kind.DIRECTORY, xattrs=((b"user.a", b""),))
    ]


@pytest.mark.parametrize(
    "attribute", [(b"", b""), (b"u" * 256, b""), (b"user.\0", b""), (b"user.a", bytes(65_537))]
)
def test_impossible_attribute(attribute: tuple[bytes, bytes]) -> None:
    with pytest.raises(FormatError, match="b'x': impossible attribute"):
        add(xattrs=(attribute,))


def test_too_many_bytes_of_attributes() -> None:
    with pytest.raises(FormatError, match="131076 bytes of extended attributes"):
        add(xattrs=((b"user.a", bytes(65_536)), (b"user.b", bytes(65_528))))


def test_files_lie_one_behind_the_other_each_on_a_block() -> None:
    index, contents = build((5000, [(0, b"a" * 5000)]), (0, []), (3, [(1, b"bc")]))
    first, empty, last = index.entries
    assert (first.data, empty.data, last.data) == (0, None, 8192)
    device = device_bytes(index, contents)
    assert device == b"a" * 5000 + bytes(3192) + b"\0bc" + bytes(4093)
    assert index.table.size == 12_288


@pytest.mark.parametrize(
    ("size", "pieces", "problem"),
    [
        (10, [Piece(0, 4, 0), Piece(3, 4, 0)], "pieces of b'f' overlap or are empty"),
        (10, [Piece(-1, 4, 0)], "pieces of b'f' overlap or are empty"),
        (10, [Piece(0, 0, 0)], "pieces of b'f' overlap or are empty"),
        (3, [Piece(0, 4, 0)], "b'f': 3 bytes, its pieces end at 4"),
        (-1, [], "b'f': -1 bytes, its pieces end at 0"),
        (MAX_DEVICE_SIZE, [], f"b'f': {MAX_DEVICE_SIZE} bytes, its pieces end at 0"),
    ],
)
def test_impossible_pieces(size: int, pieces: list[Piece], problem: str) -> None:
    builder = LayerBuilder()
    builder.add_span(0, 1, 8, DIGEST, Codec.RAW)
    with pytest.raises(FormatError) as caught:
        builder.add(Entry(b"f", Kind.REGULAR, size=size), pieces)
    assert str(caught.value) == f"layer entry: {problem}"


def test_directory_with_data() -> None:
    builder = LayerBuilder()
    with pytest.raises(FormatError, match="b'd': a directory with data"):
        builder.add(Entry(b"d", Kind.DIRECTORY), [Piece(0, 1, 0)])


def test_piece_beyond_its_span_and_unused_span() -> None:
    builder = LayerBuilder()
    builder.add_span(0, 1, 8, DIGEST, Codec.RAW)
    builder.add(Entry(b"f", Kind.REGULAR, size=9), [Piece(0, 9, 0)])
    with pytest.raises(FormatError, match="extent 0 reaches past its span 0"):
        builder.finish()
    builder = LayerBuilder()
    builder.add_span(0, 1, 8, DIGEST, Codec.RAW)
    with pytest.raises(FormatError, match="1 spans, 0 used"):
        builder.finish()


def test_runs_of_zeros_become_a_map() -> None:
    size = 3 * MIB + 5
    index, contents = build(
        (4096, [(0, b"x" * 4096)]),
        (size, [(10, b"y" * 5), (2 * MIB - 3, b"z" * 10), (size - 2, b"!!")]),
        (1, [(0, b"e")]),
    )
    entry = index.entries[1]
    assert isinstance(entry.data, ChunkMap)
    assert entry.data.bits == 16
    blocks = list(entry.data.blocks)
    zero = index.table.size // BLOCK_SIZE - 16
    assert blocks[:2] == [1, zero]
    assert blocks[31:33] == [17, 33]
    assert blocks[-1] == 49
    assert blocks.count(zero) == len(blocks) - 4
    device = device_bytes(index, contents)
    wanted = bytearray(size)
    wanted[10:15], wanted[2 * MIB - 3 : 2 * MIB + 7], wanted[-2:] = b"y" * 5, b"z" * 10, b"!!"
    assert file_bytes(entry, device) == wanted
    assert index.entries[2].data == 50 * BLOCK_SIZE  # the last chunk takes what the file has
    assert not any(device[zero * BLOCK_SIZE :])


def test_zeros_that_fill_no_chunks_stay_flat() -> None:
    step = 65_536
    parts = [(i * step + 100, b"x") for i in range(20)]
    index, contents = build((20 * step, parts))
    assert index.entries[0].data == 0
    assert file_bytes(index.entries[0], device_bytes(index, contents))[100:101] == b"x"
    assert build((ZEROS_WORTH_A_MAP - 1, []))[0].entries[0].data == 0
    assert isinstance(build((ZEROS_WORTH_A_MAP, []))[0].entries[0].data, ChunkMap)


def test_gibibyte_of_zeros_with_a_few_bytes_is_quick_and_small() -> None:
    start = time.process_time()
    index, contents = build((1 << 30, [(12_345, b"a"), (1 << 29, b"b"), ((1 << 30) - 1, b"c")]))
    assert time.process_time() - start < 1
    assert index.table.size == 4 * 65_536
    entry = index.entries[0]
    assert isinstance(entry.data, ChunkMap)
    assert len(entry.data.blocks) == 16_384
    device = device_bytes(index, contents)
    assert device[12_345:12_346] == b"a"
    assert device[65_536:65_537] == b"b"
    assert device[3 * 65_536 - 1 : 3 * 65_536] == b"c"


def test_huge_sparse_file_has_larger_chunks() -> None:
    index, _ = build((1 << 40, [(1 << 39, b"m")]), (2 * MIB, []))
    huge, small = index.entries
    assert isinstance(huge.data, ChunkMap)
    assert isinstance(small.data, ChunkMap)
    assert (huge.data.bits, small.data.bits) == (24, 16)
    assert huge.data.blocks[0] == small.data.blocks[0] == (1 << 24) // BLOCK_SIZE
    assert index.table.size == 2 << 24


def test_maps_of_a_layer_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "MAX_CHUNKS", 40)
    build((2 * MIB, []))
    with pytest.raises(FormatError, match="more than 40 chunks of sparse files"):
        build((2 * MIB, []), (2 * MIB, []))


def test_too_many_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "MAX_ENTRIES", 1)
    build((0, []))
    with pytest.raises(FormatError, match="layer: more than 1 entries"):
        build((0, []), (0, []))


@st.composite
def files(draw: st.DrawFn) -> list[tuple[int, list[tuple[int, bytes]]]]:
    result = []
    for _ in range(draw(st.integers(0, 5))):
        parts, offset = [], 0
        for _ in range(draw(st.integers(0, 4))):
            offset += draw(st.sampled_from([0, 0, 1, 4096, 65_536, 300_000, 1_500_000]))
            data = bytes([draw(st.integers(1, 255))]) * draw(
                st.sampled_from([1, 100, 4096, 70_000, 200_000])
            )
            parts.append((offset, data))
            offset += len(data)
        offset += draw(st.sampled_from([0, 0, 1, 5000, 2_000_000]))
        result.append((offset, parts))
    return result


@given(files())
@settings(deadline=None, max_examples=50)
def test_every_file_reads_as_its_parts_say(
    layers: list[tuple[int, list[tuple[int, bytes]]]],
) -> None:
    index, contents = build(*layers)
    device = device_bytes(index, contents)
    used = 0
    for entry, (size, parts) in zip(index.entries, layers, strict=True):
        wanted = bytearray(size)
        for offset, data in parts:
            wanted[offset : offset + len(data)] = data
        assert file_bytes(entry, device) == wanted
        used += sum(len(data) for _, data in parts)
    assert index.table.data_size() == used
    assert sum(map(bool, device)) == used  # what no part gave is zero


names = st.lists(
    st.sampled_from([b"a", b"b", b".", b"..", b"", b".wh.a", b".wh..wh..opq", b".wh..wh.x", b"\0"]),
    max_size=4,
).map(b"/".join)


@given(
    st.lists(
        st.tuples(
            names,
            st.sampled_from(Kind),
            names,
            st.integers(-1, 2**45),
            st.lists(
                st.builds(
                    Piece,
                    st.integers(-1, 2**33),
                    st.integers(-1, 2**33),
                    st.integers(-1, 3),
                    st.integers(-1, 9),
                ),
                max_size=3,
            ),
        ),
        max_size=5,
    )
)
@settings(deadline=None)
def test_anything_gives_an_index_or_format_error(
    entries: list[tuple[bytes, Kind, bytes, int, list[Piece]]],
) -> None:
    builder = LayerBuilder()
    try:
        for path, kind, target, size, pieces in entries:
            builder.add(Entry(path, kind, size=size, target=target), pieces)
        index = builder.finish()
    except FormatError:
        return
    for entry in index.entries:
        assert normalize_path(entry.path) == entry.path


def test_entries_that_were_taken_are_not_kept() -> None:
    builder = LayerBuilder()
    builder.add(Entry(b"./a/", Kind.DIRECTORY))
    assert builder.take() == [Entry(b"a", Kind.DIRECTORY)]
    builder.add(Entry(b"b", Kind.FIFO))
    assert builder.finish().entries == [Entry(b"b", Kind.FIFO)]


def test_only_checked() -> None:
    builder = LayerBuilder(keep=False)
    builder.add(Entry(b"a", Kind.REGULAR, size=5000), [Piece(0, 5000, 0)])
    builder.add(Entry(b"b", Kind.REGULAR, size=2 * MIB), [Piece(0, 1, 0)])
    builder.add(Entry(b".wh.c", Kind.REGULAR))
    builder.add(Entry(b"d", Kind.FIFO))
    with pytest.raises(FormatError, match=r"contains '\.\.'"):
        builder.add(Entry(b"..", Kind.FIFO))
    with pytest.raises(FormatError, match="overlap"):
        builder.add(Entry(b"e", Kind.REGULAR, size=2), [Piece(0, 2, 0), Piece(1, 1, 0)])
    index = builder.finish()
    assert index.entries == []
    assert (index.table.size, index.table.span_count) == (8192 + 65_536 + 65_536, 0)


def test_only_checked_and_said_where_it_lies() -> None:
    """As what is kept says it: files, and chunks of sparse ones."""
    placed: list[tuple[int, int, int, int]] = []
    kept = LayerBuilder()
    kept.add_span(0, 10, 3 * MIB, bytes(32), Codec.RAW)
    checked = LayerBuilder(keep=False, placed=lambda *extent: placed.append(extent))
    for builder in (kept, checked):
        builder.add(Entry(b"a", Kind.REGULAR, size=5000), [Piece(10, 4990, 0, 7)])
        pieces = [Piece(0, 1, 0, 5000), Piece(65_000, 1000, 0, 5001)]
        builder.add(Entry(b"b", Kind.REGULAR, size=2 * MIB), pieces)
        builder.add(Entry(b"c", Kind.REGULAR, size=1), [Piece(0, 1, 0, 9000)])
    table = kept.finish().table
    extents = [table.extent(number) for number in range(table.extent_count)]
    assert placed == [
        (one.device_offset, one.length, one.span, one.inner_offset) for one in extents
    ]
    assert len(placed) == 5
    assert checked.finish().table.size == table.size


def test_only_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "MAX_ENTRIES", 2)
    builder = LayerBuilder(keep=False)
    builder.add(Entry(b".wh.a", Kind.REGULAR))
    builder.add(Entry(b"b", Kind.FIFO))
    with pytest.raises(FormatError, match="more than 2 entries"):
        builder.add(Entry(b"c", Kind.FIFO))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"usr/bin", True),
        (b"./a.wh.b", True),
        (b"a.wh.b/c", True),
        (b"etc/.wh.name", False),
        (b".wh..wh..opq", False),
        (b"/.wh..wh.plnk/1.2", False),
        (b".wh.dir/file", True),
    ],
)
def test_has_entry(path: bytes, expected: bool) -> None:  # noqa: FBT001 - a value of the table
    builder = LayerBuilder()
    builder.add(Entry(path, Kind.REGULAR))
    assert [entry.kind for entry in builder.take()] == [Kind.REGULAR] * expected or not expected
    assert has_entry(path) is expected
