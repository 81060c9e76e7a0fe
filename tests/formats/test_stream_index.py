"""The index of a layer whose format has none."""

from __future__ import annotations

import hashlib
import io
import struct
import tarfile

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from lazyimg_formats import stream_index
from lazyimg_formats.device_table import (
    MAX_BLOB_SIZE,
    MAX_DEVICE_SIZE,
    MAX_SPAN_SIZE,
    MAX_STORED_WINDOW,
    Codec,
)
from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import Kind
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.stream_index import (
    HEADER_SIZE,
    StreamHeader,
    StreamSpan,
    parse_device,
    parse_header,
    parse_stream_index,
    serialize_header,
)
from lazyimg_formats.zstd_frames import serialize_skippable
from tests.fakes.gzip_layer import make_tar
from tests.fakes.stream_layers import make_stream_index, take_headers

FILES = {
    "empty": b"",
    "etc/name": b"lazyimg\n",
    "bin/tool": bytes(range(256)) * 20,
    "etc/.wh.old": b"whiteouts have no bytes, even if they have",
    "bin/other": b"other" * 300,
}
TAR = make_tar(FILES)
SIZE = 1000
DATA = make_stream_index(TAR, SIZE)
DIGEST = bytes(32)


def read_device(data: bytes, blob: bytes) -> dict[bytes, bytes]:
    """Give each file's bytes, by way of the device."""
    index = parse_stream_index(data)
    table = index.table
    device = bytearray(table.size)
    for number in range(table.extent_count):
        extent = table.extent(number)
        span = table.span(extent.span)
        decoded = blob[span.blob_offset : span.blob_offset + span.blob_length]
        assert hashlib.sha256(decoded).digest() == span.digest
        start, inner = extent.device_offset, extent.inner_offset
        device[start : start + extent.length] = decoded[inner : inner + extent.length]
    return {
        entry.path: bytes(device[entry.data : entry.data + entry.size])
        if isinstance(entry.data, int)
        else b""
        for entry in index.entries
        if entry.kind is Kind.REGULAR
    }


@pytest.mark.parametrize("size", [1, 511, 512, 1000, 4096, 100_000])
def test_files_in_spans_of_any_size(size: int) -> None:
    found = read_device(make_stream_index(TAR, size), TAR)
    assert found == {name.encode(): data for name, data in FILES.items() if name != "etc/.wh.old"}


def test_spans_without_bytes_of_files_are_left_out() -> None:
    table = parse_stream_index(make_stream_index(TAR, 512)).table
    assert table.span_count == 1 + 10 + 3
    assert table.blob_bytes() == 14 * 512


def test_whiteout_with_bytes() -> None:
    index = parse_stream_index(make_stream_index(TAR, 512))
    assert [entry.path for entry in index.entries if entry.kind is Kind.WHITEOUT] == [b"etc/old"]


def test_sparse_file() -> None:
    info = tarfile.TarInfo("sparse")
    info.pax_headers = {
        "GNU.sparse.map": "10,20,1000,30",
        "GNU.sparse.size": "2000",
        "GNU.sparse.numblocks": "2",
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
    }
    info.size = 50
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(b"a" * 20 + b"b" * 30))
    tar = buffer.getvalue()
    expected = bytes(10) + b"a" * 20 + bytes(970) + b"b" * 30 + bytes(970)
    assert read_device(make_stream_index(tar, 7), tar) == {b"sparse": expected}


def test_windows_go_with_their_spans() -> None:
    window = zstandard.compress(b"window")
    half = 3000
    spans = [
        StreamSpan(0, half + 1, half, DIGEST, 0, 0),
        StreamSpan(half, len(TAR) - half, len(TAR) - half, DIGEST, 3, len(window)),
    ]
    data = make_stream_index(TAR, 0x1000, codec=Codec.DEFLATE, spans=spans, windows=window)
    table = parse_stream_index(data).table
    assert [table.span(number).bit for number in range(2)] == [0, 3]
    assert table.span(1).codec is Codec.DEFLATE
    assert [table.window(number) for number in range(2)] == [b"", b"window"]


def test_header_comes_back() -> None:
    header = StreamHeader(
        Codec.ZSTD, Digest.of(b"blob", "sha512"), 1, Digest.of(b"tar"), 2, 3, 4, 5
    )
    data = serialize_header(header)
    assert len(data) == HEADER_SIZE
    assert parse_header(data) == header
    assert header.size == HEADER_SIZE + 4 + 5 + 3 * 56


def test_laid_out_as_documented() -> None:
    header = parse_header(DATA)
    assert DATA[:16] == b"lazyidx1" + bytes(8)
    assert struct.unpack("<QQ", DATA[16:32]) == (len(TAR), len(TAR))
    assert DATA[56:192].rstrip(b"\0").decode() == str(Digest.of(TAR))
    last = DATA[-56:]
    offset = SIZE * (header.spans - 1)
    assert last[:20] == struct.pack("<QIII", offset, len(TAR) - offset, len(TAR) - offset, 0)
    assert last[20:52] == hashlib.sha256(TAR[offset:]).digest()
    assert last[52:] == bytes(4)


def patched(position: int, data: bytes) -> bytes:
    return DATA[:position] + data + DATA[position + len(data) :]


def number(position: int, value: int) -> bytes:
    return patched(position, struct.pack("<Q", value))


def spans_of(*spans: StreamSpan, codec: Codec = Codec.RAW, windows: bytes = b"") -> bytes:
    return make_stream_index(TAR, SIZE, codec=codec, spans=list(spans), windows=windows)


def headers_of(headers: bytes) -> bytes:
    return make_stream_index(TAR, SIZE, headers=headers)


ALL = len(TAR)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "stream index: 0 bytes are less than a header"),
        (patched(0, b"x"), "stream index: magic is b'xazyidx1', expected b'lazyidx1'"),
        (number(8, 2), "stream index: unknown codec 2"),
        (number(8, 99), "stream index: unknown codec 99"),
        (number(16, MAX_BLOB_SIZE + 1), "stream index: a blob of 17592186044417 bytes,"),
        (number(24, MAX_DEVICE_SIZE + 1), "17592186044417 of tar"),
        (number(32, 1 << 24 | 1), "16777217 spans"),
        (number(32, 1 << 24), "stream index: expected "),
        (number(40, 1 << 63), "stream index: expected "),
        (DATA + b"\0", f"stream index: expected {len(DATA)} bytes, got {len(DATA) + 1}"),
        (patched(56, b"\xff"), r"stream index: a digest of b'\\xff"),
        (patched(56, b"x"), "digest: unknown algorithm 'xha256'"),
        (headers_of(b"none"), "zstd frame: no magic at byte 0"),
        (headers_of(serialize_skippable(b"")), "stream index: the tar's headers are not one zstd"),
        (headers_of(zstandard.compress(b"") * 2), "stream index: the tar's headers are not one"),
        (headers_of(zstandard.compress(b"x" * 600)), "tar"),
        (
            headers_of(b"\x28\xb5\x2f\xfd\x00\x70" + b"\x01\x00\x00"),
            "stream index: the tar's headers need too much memory, or a dictionary",
        ),
        (
            headers_of(b"\x28\xb5\x2f\xfd\x01\x00\x09" + b"\x01\x00\x00"),
            "stream index: the tar's headers need too much memory, or a dictionary",
        ),
        (
            headers_of(b"\x28\xb5\x2f\xfd\x20\x05" + b"\x0d\x00\x00" + b"\xff"),
            "stream index: the tar's headers cannot be decoded: ",
        ),
        (
            headers_of(zstandard.compress(take_headers(TAR) + b"\0")),
            "tar: 1 bytes of headers behind its end",
        ),
        (headers_of(zstandard.compress(take_headers(TAR)[:700])), "tar: cut short after"),
        (number(24, 700), "stream index: b'etc/name' reaches past the end of the tar"),
        (spans_of(), "stream index: its spans end at byte 0 of the tar"),
        (
            spans_of(StreamSpan(0, 10, 1030, DIGEST), StreamSpan(9, 10, ALL, DIGEST)),
            f"stream index: a span of {ALL} bytes at 9 to 19 of the blob, behind 10",
        ),
        (spans_of(StreamSpan(0, 0, ALL, DIGEST)), "at 0 to 0 of the blob"),
        (spans_of(StreamSpan(1, ALL, ALL, DIGEST)), f"at 1 to {ALL + 1} of the blob"),
        (spans_of(StreamSpan(0, ALL, 0, DIGEST)), "a span of 0 bytes"),
        (spans_of(StreamSpan(0, ALL, MAX_SPAN_SIZE + 1, DIGEST)), "a span of 67108865 bytes"),
        (
            spans_of(StreamSpan(0, ALL, ALL, DIGEST, 1)),
            "stream index: a span at bit 1 with a window of 0 bytes",
        ),
        (spans_of(StreamSpan(0, ALL, ALL, DIGEST, 8), codec=Codec.DEFLATE), "at bit 8"),
        (
            spans_of(StreamSpan(0, ALL, ALL, DIGEST, 0, 1), windows=b"w"),
            "at bit 0 with a window of 1 bytes",
        ),
        (
            spans_of(
                StreamSpan(0, ALL, ALL, DIGEST, 0, MAX_STORED_WINDOW + 1),
                codec=Codec.DEFLATE,
                windows=bytes(MAX_STORED_WINDOW + 1),
            ),
            "with a window of 33793 bytes",
        ),
        (
            spans_of(StreamSpan(0, ALL, ALL, DIGEST, 0, 2), codec=Codec.DEFLATE, windows=b"w"),
            "with a window of 2 bytes",
        ),
    ],
)
def test_broken_rule(data: bytes, problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        parse_stream_index(data)


def test_too_many_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_index, "MAX_HEADERS", 1000)
    with pytest.raises(FormatError, match="stream index: over 1000 bytes of headers"):
        parse_stream_index(DATA)


def test_truncated_at_every_byte() -> None:
    for end in range(len(DATA)):
        with pytest.raises(FormatError):
            parse_stream_index(DATA[:end])


@given(st.data())
def test_damaged(data: st.DataObject) -> None:
    damaged = bytearray(DATA)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        parse_stream_index(bytes(damaged))
    except FormatError:
        return


def test_device_alone() -> None:
    tar = make_tar({f"file{number}": bytes([number]) * 3000 for number in range(20)})
    data = make_stream_index(tar, 10_000)
    assert parse_device(data).data == parse_stream_index(data).table.data
    with pytest.raises(FormatError):
        parse_device(data[:-1])
