"""The index of a layer whose format has none: its spans, and its tar without the files' bytes.

Whoever makes it reads the blob once. What it has of the tar is what a `TarScanner` takes: headers,
names, attributes, maps of sparse files, the blocks of zeros at the end. So whatever a tar says is
said here, in its own words, and one parser reads both.

Spans follow each other in the tar without gaps. Their digests are of *decoded* bytes: a span that
is entered with another window, or at another bit, decodes to other bytes, and is found out. So the
name of a device that is made of them covers what decides its bytes.

On disk, little-endian, all numbers unsigned:

| bytes | what |
|---|---|
| 8 | ``lazyidx1`` |
| 8 | codec of every span, as in `Codec`: RAW, ZSTD (each span is a frame) or DEFLATE |
| 8 | bytes of the blob |
| 8 | bytes of the tar |
| 8 | number of spans |
| 8 | bytes of all windows |
| 8 | bytes of the tar's headers, as they are stored |
| 136 | the blob's digest, padded with zeros |
| 136 | the tar's digest (diff ID), padded with zeros |
| ... | the windows, in the order of the spans: each a zstd frame, or nothing |
| ... | the tar's headers: one zstd frame |
| 56 each | the spans |

A span: its offset in the blob (8), its bytes there (4), its bytes decoded (4), the bytes of its
window as it is stored (4), the sha256 of its decoded bytes (32), how many bits of its first byte
belong to the span before (1), zeros (3).

The same blob gives the same bytes, as long as it is the same zstd library that compresses.
"""

from __future__ import annotations

import itertools
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

import zstandard

from lazyimg_formats.device_table import (
    MAX_BLOB_SIZE,
    MAX_DEVICE_SIZE,
    MAX_SPAN_SIZE,
    MAX_SPANS,
    MAX_STORED_SPAN_SIZE,
    MAX_STORED_WINDOW,
    Codec,
)
from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import LayerBuilder, LayerIndex, Piece, has_entry
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.tar.scanner import TarScanner
from lazyimg_formats.zstd_frames import find_frame_end, is_skippable, parse_frame_header

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lazyimg_formats.device_table import DeviceTable
    from lazyimg_formats.tar.scanner import Member

MAX_HEADERS: Final = 1 << 32
"""Bytes of a tar's headers, decoded."""

MAX_HEADERS_WINDOW: Final = 8 << 20
"""Bytes of memory that decoding them needs: a zstd window."""

HEADER_SIZE: Final = 328
"""Bytes of an index before its windows."""

SPAN_SIZE: Final = 56
"""Bytes of an index for each span."""

_WHAT: Final = "stream index"
_MAGIC: Final = b"lazyidx1"
_HEADER: Final = struct.Struct("<8sQQQQQQ136s136s")
_SPAN: Final = struct.Struct("<QIII32sB3x")
_PIECE: Final = 1 << 20
_CODECS: Final = frozenset({Codec.RAW, Codec.ZSTD, Codec.DEFLATE})
_MAX_BIT: Final = 7


class StreamSpan(NamedTuple):
    """One span: as in `lazyimg_formats.device_table.Span`, and the bytes of its stored window."""

    blob_offset: int
    blob_length: int
    length: int
    digest: bytes
    bit: int = 0
    window_length: int = 0


class StreamHeader(NamedTuple):
    """What an index says of itself; all numbers but `spans` are bytes.

    Attributes:
        codec: of every span.
        blob: digest of the layer's blob.
        blob_size: of the blob.
        diff_id: digest of the tar.
        tar_size: of the tar.
        spans: how many.
        windows: of all windows, as they are stored.
        headers: of the tar's headers, as they are stored.
    """

    codec: Codec
    blob: Digest
    blob_size: int
    diff_id: Digest
    tar_size: int
    spans: int
    windows: int
    headers: int

    @property
    def size(self) -> int:
        """Bytes of the index."""
        return HEADER_SIZE + self.windows + self.headers + SPAN_SIZE * self.spans


def serialize_header(header: StreamHeader) -> bytes:
    """Give the first `HEADER_SIZE` bytes of an index."""
    return _HEADER.pack(
        _MAGIC,
        header.codec,
        header.blob_size,
        header.tar_size,
        header.spans,
        header.windows,
        header.headers,
        str(header.blob).encode(),
        str(header.diff_id).encode(),
    )


def serialize_spans(spans: Iterable[StreamSpan]) -> bytes:
    """Give the last bytes of an index."""
    return b"".join(
        _SPAN.pack(
            span.blob_offset, span.blob_length, span.length, span.window_length, span.digest,
            span.bit,
        )
        for span in spans
    )  # fmt: skip


def parse_header(data: bytes | memoryview) -> StreamHeader:
    """Give what an index says of itself.

    Args:
        data: its first `HEADER_SIZE` bytes, or more.

    Raises:
        FormatError: it is no index, or of another version.
    """
    if len(data) < HEADER_SIZE:
        raise FormatError(_WHAT, f"{len(data)} bytes are less than a header")
    magic, codec, blob_size, tar_size, spans, windows, headers, blob, diff_id = _HEADER.unpack(
        data[:HEADER_SIZE]
    )
    if magic != _MAGIC:
        raise FormatError(_WHAT, f"magic is {magic!r}, expected {_MAGIC!r}")
    if codec not in _CODECS:
        raise FormatError(_WHAT, f"unknown codec {codec}")
    if blob_size > MAX_BLOB_SIZE or tar_size > MAX_DEVICE_SIZE or spans > MAX_SPANS:
        raise FormatError(_WHAT, f"a blob of {blob_size} bytes, {tar_size} of tar, {spans} spans")
    return StreamHeader(
        Codec(codec), _parse_digest(blob), blob_size, _parse_digest(diff_id), tar_size, spans,
        windows, headers,
    )  # fmt: skip


def _parse_digest(field: bytes) -> Digest:
    try:
        text = field.rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError as error:
        raise FormatError(_WHAT, f"a digest of {field[:16]!r}") from error
    return Digest.parse(text)


def parse_stream_index(data: bytes | memoryview) -> LayerIndex:
    """Give what a layer holds.

    Args:
        data: its index.

    Raises:
        FormatError: it is no index, or breaks one of the rules above.
    """
    header, windows, headers, spans = _split(data)
    reader = _Reader(header, windows, spans)
    for member in _replay(header, headers):
        reader.add(member)
    return reader.builder.finish()


def parse_device(data: bytes | memoryview) -> DeviceTable:
    """Give a layer's device only, which takes less memory.

    Args and Raises: as `parse_stream_index`.
    """
    header, windows, headers, spans = _split(data)
    reader = _Reader(header, windows, spans)
    for member in _replay(header, headers):
        reader.add(member)
        reader.builder.take()
    return reader.builder.finish().table


def iterate_members(data: bytes | memoryview) -> Iterator[Member]:
    """Give the members of the tar that an index is about.

    Args and Raises: as `parse_stream_index`, for the tar's headers.
    """
    header, _, headers, _ = _split(data)
    return _replay(header, headers)


def iterate_spans(data: bytes | memoryview) -> Iterator[StreamSpan]:
    """Give the spans that an index has, all of them, as they stand there: nothing is checked.

    Args and Raises: as `parse_stream_index`, for the lengths of the index's parts.
    """
    spans = _split(data)[3]
    return itertools.starmap(_make_span, _SPAN.iter_unpack(spans))


def _make_span(  # noqa: PLR0917 - the order in which they are stored
    offset: int, stored: int, length: int, window: int, digest: bytes, bit: int
) -> StreamSpan:
    return StreamSpan(offset, stored, length, digest, bit, window)


def _split(
    data: bytes | memoryview,
) -> tuple[StreamHeader, memoryview, memoryview, memoryview]:
    """Give an index's parts: header, windows, the tar's headers, spans."""
    header = parse_header(data)
    if len(data) != header.size:
        raise FormatError(_WHAT, f"expected {header.size} bytes, got {len(data)}")
    view = memoryview(data)
    headers_at = HEADER_SIZE + header.windows
    spans_at = headers_at + header.headers
    return header, view[HEADER_SIZE:headers_at], view[headers_at:spans_at], view[spans_at:]


def _replay(header: StreamHeader, headers: memoryview) -> Iterator[Member]:
    scanner = TarScanner()
    for piece in _decode_headers(headers):
        yield from scanner.replay(piece)
    scanner.position = header.tar_size
    scanner.finish()


def _decode_headers(stored: memoryview) -> Iterator[bytes]:
    """Give the tar's headers in pieces of bounded size."""
    if is_skippable(stored) or find_frame_end(stored) != len(stored):
        raise FormatError(_WHAT, "the tar's headers are not one zstd frame")
    frame = parse_frame_header(stored)
    if frame.window_size > MAX_HEADERS_WINDOW or frame.dictionary_id:
        raise FormatError(_WHAT, "the tar's headers need too much memory, or a dictionary")
    size = 0
    try:
        with zstandard.ZstdDecompressor().stream_reader(stored) as reader:
            while piece := reader.read(_PIECE):
                size += len(piece)
                if size > MAX_HEADERS:
                    raise FormatError(_WHAT, f"over {MAX_HEADERS} bytes of headers")
                yield piece
    except zstandard.ZstdError as error:
        raise FormatError(_WHAT, f"the tar's headers cannot be decoded: {error}") from error


class _Reader:
    """Feeds a LayerBuilder. Spans that no file has bytes in are left out."""

    def __init__(self, header: StreamHeader, windows: memoryview, spans: memoryview) -> None:
        self.builder = LayerBuilder()
        self._header = header
        self._windows = windows
        self._spans = _SPAN.iter_unpack(spans)
        self._start = self._stop = 0  # of the current span in the tar
        self._window_at = 0
        self._blob_end = 0
        self._current: tuple[StreamSpan, memoryview] | None = None
        self._number = 0  # of the current span in the device, once it is used
        self._used = True

    def add(self, member: Member) -> None:
        entry = member.entry
        if not member.data_size or not has_entry(entry.path):
            self.builder.add(entry)
            return
        end = member.data_offset + member.data_size
        if end > self._header.tar_size:
            raise FormatError(_WHAT, f"{entry.path[:80]!r} reaches past the end of the tar")
        regions = member.regions
        if regions is None:
            pieces = list(self._pieces(0, member.data_offset, member.data_size))
        else:
            pieces, at = [], member.data_offset
            for offset, length in regions:
                pieces += self._pieces(offset, at, length)
                at += length
        self.builder.add(entry, pieces)

    def _pieces(self, file_offset: int, tar_offset: int, length: int) -> Iterator[Piece]:
        while length:
            while self._stop <= tar_offset:
                self._next_span()
            if not self._used:
                self._use_span()
            inner = tar_offset - self._start
            size = min(length, self._stop - tar_offset)
            yield Piece(file_offset, size, self._number, inner)
            file_offset, tar_offset, length = file_offset + size, tar_offset + size, length - size

    def _next_span(self) -> None:
        try:
            span = _make_span(*next(self._spans))
        except StopIteration:
            raise FormatError(_WHAT, f"its spans end at byte {self._stop} of the tar") from None
        self._check(span)
        end = self._window_at + span.window_length
        self._current = span, self._windows[self._window_at : end]
        self._window_at, self._used = end, False
        self._start, self._stop = self._stop, self._stop + span.length
        self._blob_end = span.blob_offset + span.blob_length

    def _check(self, span: StreamSpan) -> None:
        shared = 1 if span.bit else 0  # the byte in which the one before ends
        end = span.blob_offset + span.blob_length
        if not (
            self._blob_end - shared <= span.blob_offset
            and 0 < span.blob_length <= MAX_STORED_SPAN_SIZE
            and end <= self._header.blob_size
            and 0 < span.length <= MAX_SPAN_SIZE
        ):
            raise FormatError(
                _WHAT,
                f"a span of {span.length} bytes at {span.blob_offset} to {end} of the blob, behind"
                f" {self._blob_end}",
            )
        deflate = self._header.codec is Codec.DEFLATE
        if (
            span.bit > (_MAX_BIT if deflate else 0)
            or span.window_length > (MAX_STORED_WINDOW if deflate else 0)
            or self._window_at + span.window_length > len(self._windows)
        ):
            raise FormatError(
                _WHAT,
                f"a span at bit {span.bit} with a window of {span.window_length} bytes",
            )

    def _use_span(self) -> None:
        assert self._current is not None  # noqa: S101 - there is one whenever it is not used
        span, window = self._current
        self._number = self.builder.add_span(
            span.blob_offset, span.blob_length, span.length, span.digest, self._header.codec,
            bit=span.bit, window=window,
        )  # fmt: skip
        self._used = True
