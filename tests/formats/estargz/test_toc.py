"""A TOC to a LayerIndex. The main sample follows what stargz-snapshotter writes, field by field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg_formats.device_table import MAX_SKIP, MAX_SPAN_SIZE, Codec, Extent, Span
from lazyimg_formats.errors import FormatError
from lazyimg_formats.estargz.toc import check_names, is_stargz_toc, parse_stargz_toc
from lazyimg_formats.layer import Entry, Kind
from lazyimg_formats.zstd_chunked import entries

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")
BYTES = {digest: bytes.fromhex(digest[7:]) for digest in (A, B, C)}

SAMPLE: list[dict[str, Any]] = [
    {"name": ".no.prefetch.landmark", "type": "reg", "size": 1, "offset": 90, "digest": C,
     "chunkDigest": C},
    {"name": "etc/", "type": "dir", "modtime": "2023-11-14T22:13:20Z", "mode": 16877,
     "userName": "root", "groupName": "root"},
    {"name": "etc/hostname", "type": "reg", "size": 7, "modtime": "2023-11-14T22:13:20Z",
     "mode": 420, "uid": 1000, "gid": 100, "offset": 200, "NumLink": 0,
     "xattrs": {"user.b": "AP8=", "user.a": ""}, "digest": A, "chunkDigest": A},
    {"name": "etc/empty", "type": "reg", "mode": 420, "digest": C},
    {"name": "large", "type": "reg", "size": 12_000, "mode": 420, "offset": 300, "digest": C,
     "chunkSize": 5000, "chunkDigest": A},
    {"name": "large", "type": "chunk", "offset": 500, "chunkOffset": 5000, "chunkSize": 5000,
     "chunkDigest": B},
    {"name": "large", "type": "chunk", "offset": 900, "chunkOffset": 10_000, "chunkDigest": C},
    {"name": "link", "type": "symlink", "linkName": "/etc/hostname", "mode": 511},
    {"name": "hard", "type": "hardlink", "linkName": "etc/hostname", "mode": 420},
    {"name": "null", "type": "char", "mode": 438, "devMajor": 1, "devMinor": 3},
    {"name": "sda", "type": "block", "devMajor": 8},
    {"name": "pipe", "type": "fifo"},
    {"name": "etc/.wh.gone", "type": "reg", "digest": C},
]  # fmt: skip


def parse(*listed: dict[str, Any], end: int = 1000, **options: Any) -> Any:
    toc = json.dumps({"version": 1, "entries": listed}).encode()
    return parse_stargz_toc(toc, end=end, **options)


def refuse(*listed: dict[str, Any], **options: Any) -> str:
    with pytest.raises(FormatError) as raised:
        parse(*listed, **options)
    return str(raised.value)


def file(**fields: Any) -> dict[str, Any]:
    base = {"name": "f", "type": "reg", "size": 9, "offset": 100, "digest": A, "chunkDigest": B}
    return base | fields


def chunk(**fields: Any) -> dict[str, Any]:
    return {"name": "f", "type": "chunk", "chunkDigest": B} | fields


def spans(index: Any) -> list[Span]:
    return [index.table.span(number) for number in range(index.table.span_count)]


def test_entries() -> None:
    assert parse(*SAMPLE).entries == [
        Entry(b"etc", Kind.DIRECTORY, 0o755, mtime=1_700_000_000),
        Entry(
            b"etc/hostname",
            Kind.REGULAR,
            0o644,
            1000,
            100,
            1_700_000_000,
            size=7,
            xattrs=((b"user.a", b""), (b"user.b", b"\0\xff")),
            data=0,
        ),
        Entry(b"etc/empty", Kind.REGULAR, 0o644),
        Entry(b"large", Kind.REGULAR, 0o644, size=12_000, data=4096),
        Entry(b"link", Kind.SYMLINK, 0o777, target=b"/etc/hostname"),
        Entry(b"hard", Kind.HARDLINK, 0o644, target=b"etc/hostname"),
        Entry(b"null", Kind.CHARACTER, 0o666, major=1, minor=3),
        Entry(b"sda", Kind.BLOCK, major=8),
        Entry(b"pipe", Kind.FIFO),
        Entry(b"etc/gone", Kind.WHITEOUT),
    ]


@pytest.mark.parametrize("codec", [Codec.GZIP, Codec.ZSTD_PART])
def test_spans_reach_to_the_next_member(codec: Codec) -> None:
    index = parse(*SAMPLE, codec=codec)
    assert spans(index) == [
        Span(200, 100, 7, BYTES[A], codec),
        Span(300, 200, 5000, BYTES[A], codec),
        Span(500, 400, 5000, BYTES[B], codec),
        Span(900, 100, 2000, BYTES[C], codec),
    ]
    assert [index.table.extent(number) for number in range(index.table.extent_count)] == [
        Extent(0, 7, 0, 0),
        Extent(4096, 5000, 1, 0),
        Extent(9096, 5000, 2, 0),
        Extent(14_096, 2000, 3, 0),
    ]


def test_files_in_one_member() -> None:
    index = parse(
        file(),
        file(name="g", innerOffset=1536, digest=C, chunkDigest=C),
        file(name="h", size=6000, innerOffset=3072, chunkSize=5000),
        chunk(name="h", offset=400, chunkOffset=5000, chunkDigest=C),
        file(name="i", offset=400, innerOffset=1536),
    )
    assert spans(index) == [
        Span(100, 300, 9, BYTES[B], Codec.GZIP),
        Span(100, 300, 9, BYTES[C], Codec.GZIP, 1536),
        Span(100, 300, 5000, BYTES[B], Codec.GZIP, 3072),
        Span(400, 600, 1000, BYTES[C], Codec.GZIP),
        Span(400, 600, 9, BYTES[B], Codec.GZIP, 1536),
    ]
    assert index.table.blob_bytes() == 900


def test_without_entries() -> None:
    index = parse()
    assert (index.entries, index.table.size) == ([], 0)


@pytest.mark.parametrize("name", [".prefetch.landmark", "./.no.prefetch.landmark"])
def test_landmarks_are_no_files(name: str) -> None:
    landmark = file(name=name, size=1, offset=200)
    index = parse(file(), landmark, file(name="g", offset=300))
    assert [entry.path for entry in index.entries] == [b"f", b"g"]
    assert [span.blob_length for span in spans(index)] == [100, 700]


@pytest.mark.parametrize(
    ("name", "first"),
    [(".prefetch.landmark", 4096), ("./.prefetch.landmark", 4096), (".no.prefetch.landmark", 0)],
)
def test_what_is_wanted_first(name: str, first: int) -> None:
    """All files that stand before the landmark: of the device, whole blocks."""
    listed = [file(), file(name=name, size=1, offset=200), file(name="g", offset=300)]
    assert parse(*listed).first == first
    assert parse(listed[0], listed[2]).first == 0


def test_landmarks_that_are_none() -> None:
    index = parse({"name": "d/.prefetch.landmark", "type": "dir"}, file(name="x.prefetch.landmark"))
    assert len(index.entries) == 2


@pytest.mark.parametrize("size", [0, 9])
def test_only_chunk_has_no_size_or_the_file_s(size: int) -> None:
    assert parse(file(chunkSize=size)).table.span(0).length == 9


def test_last_chunk_has_no_size_or_its_own() -> None:
    for size in ({}, {"chunkSize": 0}, {"chunkSize": 4}):
        index = parse(file(chunkSize=5), chunk(offset=120, chunkOffset=5, **size))
        assert [span.length for span in spans(index)] == [5, 4]


def test_file_of_one_chunk_needs_only_the_digest_of_the_file() -> None:
    assert parse(file(chunkDigest="")).table.span(0).digest == BYTES[A]


def test_replacement_character_that_is_meant() -> None:
    toc = json.dumps({"version": 1, "entries": [file(name="a\ufffd")]}, ensure_ascii=False)
    assert parse_stargz_toc(toc.encode(), end=1000).entries[0].path == "a\ufffd".encode()
    assert parse(file(name="\\ufffd")).entries[0].path == b"\\ufffd"


@pytest.mark.parametrize(
    "fields", [{"name": "\ufffd"}, {"name": "\\\ufffd"}, {"linkName": "\ufffd"}]
)
def test_name_that_is_not_utf_8(fields: dict[str, str]) -> None:
    assert refuse(file(**fields)) == "TOC: a name is not UTF-8, which this format cannot say"


def test_name_that_is_lost_between_two_pieces() -> None:
    toc = json.dumps({"version": 1, "entries": [file(name="\ufffd")]}).encode()
    for at in range(len(toc)):
        with pytest.raises(FormatError, match=r"^TOC: a name is not UTF-8"):
            check_names([toc[:at], toc[at:]])
    check_names([])
    check_names([b"\\\\uff", b"fd"])


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"type": "socket"}, "TOC: entry 'f' of unknown type 'socket'"),
        ({"name": "a/../b"}, "layer entry: path b'a/../b' contains '..'"),
        ({"chunkDigest": "md5:00"}, "TOC: expected a sha256 digest, got 'md5:00'"),
        ({"chunkDigest": "", "digest": ""}, "TOC: expected a sha256 digest, got ''"),
        ({"modtime": "10000-01-01T00:00:00Z"}, "TOC: no time: '10000-01-01T00:00:00Z'"),
        ({"xattrs": {"a": "?"}}, "TOC: no base64: '?'"),
        ({"offset": 0}, "TOC: 'f': a chunk at 0, expected behind 0"),
        ({"offset": 1000}, "TOC: a chunk at 1000, expected before 1000"),
        ({"chunkOffset": 1}, "TOC: the chunks of 'f' are out of order"),
        ({"chunkSize": 8}, "TOC: the chunks of 'f' are out of order"),
        ({"chunkSize": 10}, "TOC: the chunks of 'f' are out of order"),
        ({"size": MAX_SPAN_SIZE + 1}, "span: impossible position 100+900 or length 67108865"),
        ({"innerOffset": MAX_SKIP + 1}, "span: 67108865 decoded bytes before it, at most"),
        ({"offset": 1 << 44}, "TOC: a chunk at 17592186044416, expected before 1000"),
        ({"size": -1}, None),
        ({"size": 1 << 62}, None),
        ({"innerOffset": -1}, None),
        ({"mode": "755"}, None),
    ],
)
def test_file_refused(fields: dict[str, Any], problem: str | None) -> None:
    found = refuse(file(**fields))
    if problem is not None:
        assert found.startswith(problem)


@pytest.mark.parametrize(
    ("listed", "problem"),
    [
        ([chunk(offset=100)], "TOC: a chunk of 'f' without its file"),
        ([file(), chunk(name="g", offset=200)], "TOC: a chunk of 'g' without its file"),
        (
            [{"name": "f", "type": "dir"}, chunk(offset=200)],
            "TOC: 'f' has chunks, and no bytes",
        ),
        ([file(size=0), chunk(offset=200)], "TOC: 'f' has chunks, and no bytes"),
        ([file(), chunk(offset=200)], "TOC: the chunks of 'f' are out of order"),
        (
            [file(chunkSize=5), chunk(offset=200, chunkOffset=4)],
            "TOC: the chunks of 'f' are out of order",
        ),
        (
            [file(chunkSize=9), chunk(offset=200, chunkOffset=9)],
            "TOC: the chunks of 'f' are out of order",
        ),
        (
            [file(chunkSize=5), chunk(offset=200, chunkOffset=5, chunkSize=3)],
            "TOC: 'f' has 9 bytes, its chunks 8",
        ),
        (
            [file(chunkSize=5), chunk(offset=50, chunkOffset=5)],
            "TOC: 'f': a chunk at 50, expected behind 100",
        ),
        (
            [file(), file(name="g", offset=99)],
            "TOC: 'g': a chunk at 99, expected behind 100",
        ),
        (
            [file(), file(name="g", innerOffset=8)],
            "TOC: 'g': a chunk at 8 inside a member, expected at 9 or behind",
        ),
        (
            [file(), file(name="g")],
            "TOC: 'g': a chunk at 0 inside a member, expected at 9 or behind",
        ),
    ],
)
def test_entries_refused(listed: list[dict[str, Any]], problem: str) -> None:
    assert refuse(*listed) == problem


def test_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "MAX_TOC", 10)
    assert refuse(file()).endswith("the limit is 10")


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_stargz_toc(data, end=1000)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"name": "a", "offset": 0}, True),
        ({"name": "endOffset", "offset": 0}, True),
        ({"name": '"endOffset":', "offset": 0}, True),
        ({"name": "a", "offset": 0, "endOffset": 20}, False),
    ],
)
def test_whose_toc_it_is(entry: dict[str, Any], *, expected: bool) -> None:
    assert is_stargz_toc(json.dumps({"version": 1, "entries": [entry]}).encode()) is expected
