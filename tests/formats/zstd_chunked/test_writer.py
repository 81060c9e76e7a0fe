"""TOCs that are written: the text itself, and what the reader makes of it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg_formats.device_table import MAX_DEVICE_SIZE, Codec, Span
from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import Entry, Kind
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.tar.scanner import Member
from lazyimg_formats.tar_split import TarSplit
from lazyimg_formats.zstd_chunked.location import TarSplitLocation, TocLocation, parse_footer
from lazyimg_formats.zstd_chunked.toc import parse_toc
from lazyimg_formats.zstd_chunked.writer import Chunk, TocWriter, serialize_tail
from lazyimg_formats.zstd_frames import iterate_frames

A, B, WHOLE = b"\xaa" * 32, b"\xbb" * 32, b"\xcc" * 32


def member(entry: Entry, **times: tuple[int, int]) -> Member:
    return Member(entry, 0, 512, entry.size, None, times.get("accessed"), times.get("changed"))


def write(*arguments: tuple[Member, list[Chunk], int, bytes | None]) -> bytes:
    writer = TocWriter()
    for argument in arguments:
        writer.add(*argument)
    return bytes(writer.finish())


def test_text() -> None:
    file = Entry(
        b"etc/a", Kind.REGULAR, 0o644, 1, 2, 1_700_000_000, 500_000_000, size=7,
        xattrs=((b"user.b", b"\0"), (b"user.a", b"")),
    )  # fmt: skip
    toc = write(
        (member(Entry(b"etc/", Kind.DIRECTORY, 0o755)), [], 5, None),
        (member(file, accessed=(1, 0), changed=(0, 0)), [Chunk(7, 100, A)], 130, None),
    )
    assert toc == (
        b'{"version":1,"entries":[{"type":"dir","name":"etc/","mode":493},'
        b'{"type":"reg","name":"etc/a","mode":420,"size":7,"uid":1,"gid":2,'
        b'"modtime":"2023-11-14T22:13:20.5Z","accesstime":"1970-01-01T00:00:01Z",'
        b'"xattrs":{"user.a":"","user.b":"AA=="},"digest":"sha256:' + A.hex().encode() + b'",'
        b'"offset":100,"endOffset":130}]}'
    )


def test_file_of_several_chunks() -> None:
    chunks = [Chunk(5000, 100, A), Chunk(4096, 200, None), Chunk(10, 220, B)]
    toc = write((member(Entry(b"f", Kind.REGULAR, size=9106)), chunks, 240, WHOLE))
    zeros = hashlib.sha256(bytes(4096)).hexdigest()
    assert json.loads(toc)["entries"] == [
        {"type": "reg", "name": "f", "size": 9106, "digest": f"sha256:{WHOLE.hex()}",
         "offset": 100, "endOffset": 240, "chunkSize": 5000, "chunkDigest": f"sha256:{A.hex()}"},
        {"type": "chunk", "name": "f", "offset": 200, "chunkSize": 4096, "chunkOffset": 5000,
         "chunkDigest": f"sha256:{zeros}", "chunkType": "zeros"},
        {"type": "chunk", "name": "f", "offset": 220, "chunkSize": 10, "chunkOffset": 9096,
         "chunkDigest": f"sha256:{B.hex()}"},
    ]  # fmt: skip
    table = parse_toc(toc, end=240).table
    assert [table.span(number) for number in range(table.span_count)] == [
        Span(100, 100, 5000, A, Codec.ZSTD),
        Span(220, 20, 10, B, Codec.ZSTD),
    ]


def test_file_of_zeros() -> None:
    toc = write((member(Entry(b"f", Kind.REGULAR, size=5000)), [Chunk(5000, 100, None)], 120, None))
    (entry,) = json.loads(toc)["entries"]
    zeros = f"sha256:{hashlib.sha256(bytes(5000)).hexdigest()}"
    assert (entry["chunkType"], entry["chunkSize"]) == ("zeros", 5000)
    assert entry["digest"] == entry["chunkDigest"] == zeros
    assert parse_toc(toc).table.span_count == 0


def test_long_runs_of_zeros_have_no_digest() -> None:
    size = (4 << 20) + 1
    toc = write((member(Entry(b"f", Kind.REGULAR, size=size)), [Chunk(size, 8, None)], 9, None))
    assert not {"digest", "chunkDigest"} & set(json.loads(toc)["entries"][0])
    assert parse_toc(toc).entries[0].size == size


def test_what_json_cannot_say() -> None:
    entry = Entry(
        b"\xff/a", Kind.SYMLINK, 0o777, mtime=1 << 60, mtime_ns=3, target=b"\xfe",
        xattrs=((b"user.a", b"x"), (b"user.\xff", b"y")),
    )  # fmt: skip
    toc = write((member(entry), [], 0, None))
    (written,) = json.loads(toc)["entries"]
    assert written["name"] == "\ufffd/a"
    assert "modtime" not in written
    assert written["xattrs"] == {"user.a": "eA=="}
    assert written["lazyimg"] == {
        "name": "/y9h",
        "linkName": "/g==",
        "modtime": [1 << 60, 3],
        "xattrs": {"dXNlci7/": "eQ=="},
    }
    assert parse_toc(toc).entries == [entry]


def test_attributes_whose_names_are_all_strange() -> None:
    entry = Entry(b"f", Kind.FIFO, xattrs=((b"user.\xff", b"y"),))
    toc = write((member(entry), [], 0, None))
    assert "xattrs" not in json.loads(toc)["entries"][0]
    assert parse_toc(toc).entries == [entry]


NAMES = st.lists(
    st.binary(min_size=1, max_size=60).filter(
        lambda name: not set(name) & set(b"\0/") and name not in {b".", b".."}
        and not name.startswith(b".wh.")
    ),
    min_size=1,
    max_size=3,
).map(b"/".join)  # fmt: skip
XATTRS = st.dictionaries(
    st.binary(min_size=1, max_size=20).filter(
        lambda name: b"\0" not in name and not name.startswith((b"trusted.", b"user.overlay."))
    ),
    st.binary(max_size=30),
    max_size=3,
)


@given(
    st.lists(
        st.builds(
            Entry,
            NAMES,
            st.sampled_from([Kind.DIRECTORY, Kind.FIFO, Kind.SYMLINK, Kind.REGULAR]),
            st.integers(0, 0o7777),
            st.integers(0, 2**32 - 1),
            st.integers(0, 2**32 - 1),
            st.one_of(st.integers(-(2**62), 2**62), st.integers(0, 2**31)),
            st.integers(0, 999_999_999),
            xattrs=XATTRS.map(lambda xattrs: tuple(sorted(xattrs.items()))),
        ),
        max_size=4,
    )
)
def test_round_trip(entries: list[Entry]) -> None:
    made = [
        msgspec.structs.replace(entry, target=b"t" if entry.kind is Kind.SYMLINK else b"")
        for entry in entries
    ]
    toc = write(*((member(entry), [], 0, None) for entry in made))
    assert parse_toc(toc).entries == made


def test_tail() -> None:
    toc = write((member(Entry(b"f", Kind.FIFO)), [], 0, None))
    pieces, location = serialize_tail(toc, 1000, 3)
    tail = b"".join(pieces)
    table, footer = iterate_frames(tail)
    assert table.skippable
    assert footer.skippable
    data = tail[8 : table.length]
    assert location == TocLocation(1008, len(data), len(toc), Digest.of(data))
    assert location.decode(data) == toc
    assert parse_footer(tail[-72:]) == TocLocation(1008, len(data), len(toc), None)
    assert serialize_tail(toc, 1000, 3) == (pieces, location)


def test_tail_with_tar_split_data() -> None:
    writer = TocWriter()
    writer.add(member(Entry(b"f", Kind.FIFO)))
    split = TarSplit(b"the data", 100)
    toc = writer.finish(split)
    digest = f"sha256:{hashlib.sha256(b'the data').hexdigest()}"
    assert json.loads(toc)["tarSplitDigest"] == digest
    assert [entry.path for entry in parse_toc(toc).entries] == [b"f"]
    pieces, location = serialize_tail(toc, 1000, 3, split)
    tail = b"".join(pieces)
    table, data, footer = iterate_frames(tail)
    assert table.skippable
    assert footer.skippable
    assert location.decode(tail[8 : table.length]) == toc
    assert location.tar_split == TarSplitLocation(1000 + data.offset + 8, 8, 100)
    assert tail[data.offset : footer.offset] == b"\x50\x2a\x4d\x18\x08\0\0\0the data"
    assert replace(parse_footer(tail[-72:]), digest=location.digest) == location


@pytest.mark.parametrize(
    ("entry", "times", "plain"),
    [
        (Entry(b"f", Kind.FIFO), {}, True),
        (Entry(b"f", Kind.FIFO), {"accessed": (0, 0), "changed": (1, 5)}, True),
        (Entry(b"f", Kind.FIFO), {"accessed": (1 << 40, 0)}, False),
        (Entry(b"f", Kind.FIFO), {"changed": (1 << 40, 0)}, False),
        (Entry(b"f", Kind.FIFO, mtime=1 << 40), {}, False),
        (Entry(b"f", Kind.FIFO, mtime=-(1 << 30), mtime_ns=1), {}, True),
        (Entry(b"\xff", Kind.FIFO), {}, False),
        (Entry(b"f", Kind.SYMLINK, target=b"\xff"), {}, False),
        (Entry(b"f", Kind.FIFO, xattrs=((b"user.\xff", b""),)), {}, False),
    ],
)
def test_what_every_reader_understands(
    entry: Entry, times: dict[str, tuple[int, int]], *, plain: bool
) -> None:
    writer = TocWriter()
    writer.add(member(entry, **times))
    writer.add(member(Entry(b"other", Kind.FIFO)))
    path = repr(entry.path)
    assert writer.problem == (
        "" if plain else f"{path} has a name or time that its JSON cannot say"
    )


HOSTILE = st.lists(
    st.builds(
        Entry,
        st.one_of(
            NAMES,
            st.sampled_from(
                [b"", b"/", b"..", b"a/../b", b"x" * 256, b"a\0b", b".wh.", b".wh.a", b"a/.wh...",
                 b"a/.wh..wh..opq", b".wh..wh.plnk/a", b"a/" * 2048 + b"a"]
            ),
        ),
        st.sampled_from([kind for kind in Kind if kind < Kind.WHITEOUT]),
        st.integers(-(2**63), 2**63 - 1),
        st.sampled_from([0, 2**32 - 1]),
        st.sampled_from([0, 2**32 - 1]),
        st.sampled_from([0, 1, -(2**63), 2**63 - 1, 2**63, -(10**19), 10**19, 2**62]),
        st.sampled_from([0, 999_999_999]),
        st.sampled_from([0, 0, 2**44 - 4096, 2**44, 2**62 - 1, 2**62, 2**63 - 1]),
        st.sampled_from([b"", b"a", b"..", b"a\0b", b"/", b"x" * 4096]),
        st.sampled_from([0, 4095, 4096, -1, 2**63 - 1]),
        st.sampled_from([0, 2**20 - 1, 2**20, -(2**63)]),
        st.sampled_from(
            [(), ((b"", b"x"),), ((b"user.a", bytes(65_537)),), ((b"trusted.a", bytes(200_000)),),
             ((b"a\0", b""),), tuple((b"user.%d" % n, bytes(60_000)) for n in range(3))]
        ),
    ),
    max_size=3,
)  # fmt: skip


@given(entries=HOSTILE, holes=st.booleans())
def test_what_is_written_can_be_read(entries: list[Entry], *, holes: bool) -> None:
    """A scanner gives such members, where a tar says so; nothing else may come out of it."""
    writer = TocWriter()
    count = 0
    for entry in entries:
        is_file = entry.kind is Kind.REGULAR and entry.size > 0
        digest = None if holes or entry.size > 1 << 26 else A
        chunks = [Chunk(entry.size, 100 * count, digest)] if is_file else []
        try:
            writer.add(member(entry), chunks, 100 * count + 100)
        except FormatError:
            return
        count += 1
    try:
        toc = writer.finish()
    except FormatError:
        return
    assert len(json.loads(toc)["entries"]) == count
    parse_toc(bytes(toc))


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (Entry(b"a/../b", Kind.FIFO), "path b'a/../b' contains '..'"),
        (Entry(b"d", Kind.DIRECTORY, size=1 << 62), "a size or time that is too large"),
        (Entry(b".wh.f", Kind.REGULAR, mtime=1 << 63), "a size or time that is too large"),
        (Entry(b"f", Kind.FIFO, mtime=-1 << 63), "an owner, time or device number out of range"),
        (Entry(b"f", Kind.CHARACTER, major=4096), "an owner, time or device number out of range"),
    ],
)
def test_what_no_layer_can_have(entry: Entry, problem: str) -> None:
    writer = TocWriter()
    with pytest.raises(FormatError, match=f"^layer entry: .*{re.escape(problem)}$"):
        writer.add(member(entry))
    assert writer.finish() == b'{"version":1,"entries":[]}'


def test_more_than_a_device_can_hold() -> None:
    """Where zeros are mapped, one chunk of them lies at the device's end."""
    writer = TocWriter()
    zeros = [Chunk(1 << 20, 0, None)]
    writer.add(member(Entry(b"a", Kind.REGULAR, size=1 << 20)), zeros, 1)
    size = MAX_DEVICE_SIZE - (2 << 12)
    writer.add(member(Entry(b"b", Kind.REGULAR, size=size)), [Chunk(size, 0, A)], 1)
    with pytest.raises(FormatError, match=r"^device table: impossible device size "):
        writer.finish()


def test_numbers_that_mean_nothing() -> None:
    writer = TocWriter()
    writer.add(member(Entry(b"f", Kind.FIFO, major=1 << 40, minor=-1)))
    assert parse_toc(bytes(writer.finish())).entries == [Entry(b"f", Kind.FIFO)]


def test_toc_that_nobody_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazyimg_formats.zstd_chunked.writer.MAX_TOC", 100)
    writer = TocWriter()
    writer.add(member(Entry(b"f", Kind.FIFO)))
    with pytest.raises(
        FormatError, match=r"^layer: its TOC is over the 100 bytes that readers take"
    ):
        writer.add(member(Entry(b"x" * 90, Kind.FIFO)))


def test_tail_of_a_toc_that_nobody_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazyimg_formats.zstd_chunked.location.MAX_TOC", 10)
    with pytest.raises(FormatError, match="the limit is 10"):
        serialize_tail(b'{"version":1,"entries":[]}', 0, 3)
