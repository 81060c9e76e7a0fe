"""A TOC to a LayerIndex. The main sample follows what containers/storage writes, field by field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg_formats.device_table import Codec, Extent, Span
from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import Entry, Kind
from lazyimg_formats.zstd_chunked.toc import parse_toc

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")
TIME = "2023-11-14T22:13:20.5+01:00"

SAMPLE: list[dict[str, Any]] = [
    {"type": "dir", "name": "etc/", "mode": 493, "modtime": "2023-11-14T22:13:20Z"},
    {
        "type": "reg",
        "name": "etc/hostname",
        "mode": 420,
        "size": 7,
        "uid": 1000,
        "gid": 100,
        "modtime": TIME,
        "accesstime": TIME,
        "changetime": TIME,
        "xattrs": {"user.b": "AP8=", "user.a": ""},
        "digest": A,
        "offset": 200,
        "endOffset": 220,
    },
    {"type": "reg", "name": "etc/empty"},
    {
        "type": "reg",
        "name": "large",
        "size": 12_000,
        "digest": C,
        "offset": 300,
        "endOffset": 900,
        "chunkSize": 5000,
        "chunkDigest": A,
    },
    {"type": "chunk", "name": "large", "offset": 500, "chunkSize": 4000, "chunkOffset": 5000,
     "chunkType": "zeros", "chunkDigest": C},
    {"type": "chunk", "name": "large", "offset": 520, "chunkSize": 3000, "chunkOffset": 9000,
     "chunkDigest": B},
    {"type": "symlink", "name": "link", "linkName": "/etc/hostname", "mode": 511},
    {"type": "hardlink", "name": "hard", "linkName": "etc/hostname", "size": 7},
    {"type": "char", "name": "null", "devMajor": 1, "devMinor": 3},
    {"type": "block", "name": "sda", "devMajor": 8},
    {"type": "fifo", "name": "pipe", "devMajor": 99_999},
    {"type": "reg", "name": "etc/.wh.gone"},
]  # fmt: skip


def parse(*entries: dict[str, Any], end: int = 1000, version: int = 1) -> Any:
    return parse_toc(
        json.dumps({"version": version, "entries": entries, "tarSplitDigest": A}).encode(), end=end
    )


def refuse(*entries: dict[str, Any], **options: Any) -> str:
    with pytest.raises(FormatError) as raised:
        parse(*entries, **options)
    return str(raised.value)


def file(**fields: Any) -> dict[str, Any]:
    base = {"type": "reg", "name": "f", "size": 9, "digest": A, "offset": 100, "endOffset": 120}
    return base | fields


def chunk(**fields: Any) -> dict[str, Any]:
    return {"type": "chunk", "name": "f", "chunkDigest": B} | fields


def test_entries() -> None:
    index = parse(*SAMPLE)
    hostname = Entry(
        b"etc/hostname",
        Kind.REGULAR,
        0o644,
        1000,
        100,
        1_699_996_400,
        500_000_000,
        size=7,
        xattrs=((b"user.a", b""), (b"user.b", b"\0\xff")),
        data=0,
    )
    assert index.entries == [
        Entry(b"etc", Kind.DIRECTORY, 0o755, mtime=1_700_000_000),
        hostname,
        Entry(b"etc/empty", Kind.REGULAR),
        Entry(b"large", Kind.REGULAR, size=12_000, data=4096),
        Entry(b"link", Kind.SYMLINK, 0o777, target=b"/etc/hostname"),
        Entry(b"hard", Kind.HARDLINK, target=b"etc/hostname"),
        Entry(b"null", Kind.CHARACTER, major=1, minor=3),
        Entry(b"sda", Kind.BLOCK, major=8),
        Entry(b"pipe", Kind.FIFO),
        Entry(b"etc/gone", Kind.WHITEOUT),
    ]


def test_spans() -> None:
    table = parse(*SAMPLE).table
    assert [table.span(number) for number in range(table.span_count)] == [
        Span(200, 20, 7, b"\xaa" * 32, Codec.ZSTD),
        Span(300, 200, 5000, b"\xaa" * 32, Codec.ZSTD),
        Span(520, 380, 3000, b"\xbb" * 32, Codec.ZSTD),
    ]
    assert [table.extent(number) for number in range(table.extent_count)] == [
        Extent(0, 7, 0, 0),
        Extent(4096, 5000, 1, 0),
        Extent(4096 + 9000, 3000, 2, 0),
    ]


def test_without_entries() -> None:
    index = parse()
    assert (index.entries, index.table.size) == ([], 0)


def test_one_chunk_of_zeros() -> None:
    index = parse(file(chunkType="zeros", chunkSize=9))
    assert (index.entries[0].size, index.table.span_count) == (9, 0)


def test_one_chunk_with_a_chunk_digest() -> None:
    assert parse(file(chunkDigest=B)).table.span(0).digest == b"\xbb" * 32


def test_holes_take_no_bytes_of_the_blob() -> None:
    index = parse(
        file(size=20, chunkSize=5, chunkType="zeros"),
        chunk(chunkOffset=5, chunkSize=10, offset=100),
        chunk(chunkOffset=15, chunkSize=5, offset=120, chunkType="zeros"),
    )
    assert index.table.span(0) == Span(100, 20, 10, b"\xbb" * 32, Codec.ZSTD)
    assert index.table.extent(0) == Extent(5, 10, 0, 0)


def test_names_that_are_not_utf_8() -> None:
    index = parse(
        {
            "type": "symlink",
            "name": "\ufffd",
            "linkName": "\ufffd",
            "xattrs": {"user.a": "eA=="},
            "lazyimg": {
                "name": "/2E=",
                "linkName": "/w==",
                "modtime": [-62_135_596_801, 5],
                "xattrs": {"dXNlci7/": "eQ=="},
            },
        }
    )
    assert index.entries == [
        Entry(
            b"\xffa",
            Kind.SYMLINK,
            mtime=-62_135_596_801,
            mtime_ns=5,
            target=b"\xff",
            xattrs=((b"user.\xff", b"y"), (b"user.a", b"x"))[::-1],
        )
    ]


def test_an_extra_object_that_says_nothing() -> None:
    assert parse(file(lazyimg={})).entries == parse(file(lazyimg={"later": 1})).entries


def test_unknown_fields_are_passed_over() -> None:
    assert parse(file(later={"a": [1]})).entries == parse(file()).entries


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"type": "socket"}, "TOC: entry 'f' of unknown type 'socket'"),
        ({"name": "a/../b"}, "layer entry: path b'a/../b' contains '..'"),
        ({"digest": "md5:00"}, "TOC: expected a sha256 digest, got 'md5:00'"),
        ({"digest": ""}, "TOC: expected a sha256 digest, got ''"),
        ({"digest": "sha256:" + "g" * 64}, None),
        ({"digest": "sha256:" + "a" * 62 + "  "}, None),
        ({"digest": "sha256:" + "a" * 63}, None),
        ({"modtime": "now"}, "TOC: no time: 'now'"),
        ({"xattrs": {"a": "?"}}, "TOC: no base64: '?'"),
        ({"xattrs": {"a": "YQ"}}, "TOC: no base64: 'YQ'"),
        ({"xattrs": {"a": "YQ==\n"}}, "TOC: no base64: 'YQ==\\n'"),
        ({"xattrs": {"a": "\u00e4"}}, "TOC: no base64: '\u00e4'"),
        ({"lazyimg": {"name": "?"}}, "TOC: no base64: '?'"),
        ({"size": 10, "chunkOffset": 1}, "TOC: the chunks of 'f' are out of order"),
        (
            {"endOffset": 99},
            "TOC: 'f': a chunk at 100 to 99, expected between 0 and 1000",
        ),
        (
            {"endOffset": 1001},
            "TOC: 'f': a chunk at 100 to 1001, expected between 0 and 1000",
        ),
    ],
)
def test_a_file_that_is_wrong(fields: dict[str, Any], problem: str | None) -> None:
    found = refuse(file(**fields))
    assert found == (problem or f"TOC: expected a sha256 digest, got {fields['digest']!r}")


@pytest.mark.parametrize(
    "fields",
    [
        {"size": -1},
        {"size": 1 << 62},
        {"size": "9"},
        {"size": 9.5},
        {"offset": -1},
        {"uid": -1},
        {"uid": 1 << 32},
        {"gid": -1},
        {"mode": 10**30},
        {"name": None},
        {"xattrs": []},
        {"lazyimg": {"modtime": [0]}},
        {"lazyimg": {"modtime": [0, 1_000_000_000]}},
    ],
)
def test_a_field_of_another_type(fields: dict[str, Any]) -> None:
    assert refuse(file(**fields)).startswith("TOC: ")


def test_a_device_out_of_range() -> None:
    assert "out of range" in refuse({"type": "char", "name": "f", "devMajor": 4096})


def test_a_size_over_a_device() -> None:
    fields = {"size": 1 << 60, "chunkType": "zeros", "chunkSize": 1 << 60}
    assert refuse(file(**fields)).startswith("layer entry: ")


def test_a_span_over_the_limit() -> None:
    assert refuse(file(size=(64 << 20) + 1)).startswith("span: impossible position")


@pytest.mark.parametrize(
    ("chunks", "problem"),
    [
        ([chunk(chunkOffset=5, offset=110, chunkSize=3)], "'f' has 9 bytes, its chunks 8"),
        ([chunk(chunkOffset=6, offset=110, chunkSize=4)], "the chunks of 'f' are out of order"),
        ([chunk(chunkOffset=5, offset=110)], "the chunks of 'f' are out of order"),
        (
            [chunk(chunkOffset=5, offset=99, chunkSize=4)],
            "'f': a chunk at 100 to 99, expected between 0 and 1000",
        ),
        (
            [chunk(chunkOffset=5, offset=121, chunkSize=4)],
            "'f': a chunk at 121 to 120, expected between 121 and 1000",
        ),
        (
            [chunk(chunkOffset=5, offset=110, chunkSize=4, chunkDigest="")],
            "expected a sha256 digest, got ''",
        ),
        ([chunk(name="g", chunkOffset=5)], "a chunk of 'g' without its file"),
    ],
)
def test_chunks_that_are_wrong(chunks: list[dict[str, Any]], problem: str) -> None:
    found = refuse(file(chunkSize=5, chunkDigest=A), *chunks)
    assert found == f"TOC: {problem}"


def test_a_chunk_without_a_file() -> None:
    assert refuse(chunk()) == "TOC: a chunk of 'f' without its file"


def test_a_directory_with_chunks() -> None:
    found = refuse({"type": "dir", "name": "f", "size": 9}, chunk())
    assert found == "TOC: 'f' has chunks, and no bytes"


def test_an_empty_file_with_chunks() -> None:
    found = refuse({"type": "reg", "name": "f"}, chunk(chunkSize=4))
    assert found == "TOC: 'f' has chunks, and no bytes"


def test_files_that_overlap_in_the_blob() -> None:
    found = refuse(file(), file(name="g", offset=119, endOffset=200))
    assert found == "TOC: 'g': a chunk at 119 to 200, expected between 120 and 1000"


def test_another_version() -> None:
    assert refuse(version=2) == "TOC: version 2, expected 1"


@pytest.mark.parametrize(
    "toc",
    [
        b"",
        b"[]",
        b"{}",
        b'{"version":1}',
        b'{"version":1,"entries":[]} x',
        b'{"version":1,"entries":[{"type":"reg","name":"\xff"}]}',
        b'{"version":1,"entries":[{"type":"reg","name":"\\ud800"}]}',
        b'{"version":1,"x":' + b"[" * 100_000,
    ],
)
def test_no_toc(toc: bytes) -> None:
    with pytest.raises(FormatError, match=r"^TOC: "):
        parse_toc(toc)


def test_over_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazyimg_formats.zstd_chunked.entries.MAX_TOC", 10)
    with pytest.raises(FormatError, match=r"TOC: 26 bytes, the limit is 10$"):
        parse_toc(b'{"version":1,"entries":[]}')


VALUES = st.one_of(
    st.integers(-2, 300), st.sampled_from([A, B, "zeros", "f", "dir", "reg", "chunk", "", None])
)


@given(st.data())
def test_damaged(data: st.DataObject) -> None:
    entries = [dict(entry) for entry in SAMPLE]
    for _ in range(data.draw(st.integers(1, 3))):
        entry = entries[data.draw(st.integers(0, len(entries) - 1))]
        entry[data.draw(st.sampled_from([*SAMPLE[3], *SAMPLE[4]]))] = data.draw(VALUES)
    try:
        parse(*entries)
    except FormatError:
        return


@given(st.binary(max_size=300))
def test_noise(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_toc(data)
