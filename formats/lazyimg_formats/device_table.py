"""What a device holds, and which spans of a blob give it: packed columns behind typed views.

A device is `size` bytes in 4 KiB blocks. An *extent* says that `length` bytes at `device_offset`
are the bytes at `inner_offset` of a span's decoded bytes. Whatever no extent covers is zero: the
padding behind a file, the runs of zeros inside it.

Rules, checked by every constructor and by `parse_device_table`:
  1. extents are sorted by device offset, do not overlap, are not empty, and end inside the device;
  2. spans are used in order: an extent never uses an earlier span than the extent before it, and
     every span is used, so that any run of spans gives one run of the device;
  3. an extent lies inside its span's decoded bytes;
  4. every span lies inside a blob of possible size; only a span that is a part of what its codec
     decodes skips bytes; and padding is zero.

Name: `DeviceTable.name` is the sha256, as 64 hex characters, of the canonical bytes: a heading,
the size, how digests are made, the extents' columns and each span's decoded length and digest.
Where in a blob a span lies, and how it is compressed, is not in it: it does not change a byte of
the device. But if the digest of a span is of what it is decoded from (`INPUTS`), all columns up to
the codecs are in it, codecs and bits, too: else equal names might have other bytes.

On disk (`serialize_device_table`): little-endian, a header of 64 bytes, then the columns one after
the other, each starting on 8 bytes, so that a file of it can be mapped and used as it is. The last
column, of skipped bytes, is there only if a span skips any: the table's length tells. Where spans
are stretches of a deflate stream, it has the bytes of their windows instead, and the windows
follow, each a zstd frame. They need not be in memory: see `DeviceTable`. Where spans are parts of
such stretches, skipped bytes come between these bytes and the windows, which the header says; the
parts of one stretch follow each other, and the first one has the window of all.
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple

from blake3 import blake3

from lazyimg_formats.errors import FormatError
from lazyimg_formats.zstd_frames import decode_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

BLOCK_SIZE: Final = 4096
"""Bytes. What a device is aligned to, and the unit in which it is filled."""

MAX_DEVICE_SIZE: Final = 1 << 44
"""Bytes: 2**32 blocks, what an EROFS block address reaches."""

MAX_SPAN_SIZE: Final = 64 << 20
"""Bytes, decoded. What one span may cost in memory."""

MAX_SKIP: Final = MAX_SPAN_SIZE
"""Bytes that are decoded before a span: they cost time with each of its fills."""

MAX_STORED_SPAN_SIZE: Final = MAX_SPAN_SIZE + (1 << 20)
"""Bytes, in the blob: compression makes some data a little larger."""

MAX_BLOB_SIZE: Final = 1 << 44
"""Bytes of a compressed blob."""

MAX_SPANS: Final = 1 << 24
"""Spans of one device."""

MAX_EXTENTS: Final = 1 << 24
"""Extents of one device."""

MAX_WINDOW: Final = 32_768
"""Bytes before a stretch of a deflate stream that it may refer to: RFC 1951, section 2."""

MAX_STORED_WINDOW: Final = MAX_WINDOW + 1024
"""Bytes of a window as it is stored: compression makes some data a little larger."""

MAX_STRETCH_PARTS: Final = 1 << 14
"""Parts of a stretch that are looked through for the one that has the window."""

HEADER_SIZE: Final = 64
"""Bytes of a table that say how long it is."""

_MAGIC: Final = b"lazydev1"
_HEADER: Final = struct.Struct("<8sQQQQII16x")
_PARTS_AND_WINDOWS: Final = 1
_CODEC_BITS: Final = 4  # of a byte; the others say which bit a span begins with
_CODEC_MASK: Final = (1 << _CODEC_BITS) - 1
_MAX_BIT: Final = 7


class Codec(IntEnum):
    """How a span's bytes lie in the blob."""

    RAW = 0
    ZSTD = 1  # one zstd frame
    GZIP = 2  # a part of one gzip member
    ZSTD_PART = 3  # a part of one zstd frame
    DEFLATE = 4  # a stretch of a deflate stream: `Span.bit`, `DeviceTable.window`
    GZIP_STRETCH = 5  # the same, but it may go on into further gzip members; one of `INPUTS`
    LZ4 = 6  # one lz4 block
    LZ4_PART = 7  # a part of one lz4 block
    DEFLATE_PART = 8  # a part of a stretch, which may go on into further gzip members


_CODECS: Final = tuple(Codec)  # by number; the class takes twice as long


PARTS: Final = frozenset({Codec.GZIP, Codec.ZSTD_PART, Codec.LZ4_PART, Codec.DEFLATE_PART})
"""Codecs whose span is a part of what is decoded: bytes before and behind it are passed over."""

STRETCHES: Final = frozenset({Codec.DEFLATE, Codec.GZIP_STRETCH, Codec.DEFLATE_PART})
"""Codecs whose span may begin at any bit, and has a window."""

INPUTS: Final = frozenset({Codec.GZIP_STRETCH})
"""Codecs whose span's digest is not of its decoded bytes, but of what it is decoded from:
`lazyimg_formats.gzip_spans.digest_input`."""


class Hash(IntEnum):
    """How the digests of a device's spans are made; the name commits to it."""

    SHA256 = 0
    BLAKE3 = 1

    def digest(self, data: bytes | bytearray | memoryview) -> bytes:
        """Give the 32 bytes of a digest."""
        if self is Hash.BLAKE3:
            return blake3(data).digest()
        return hashlib.sha256(data).digest()


@dataclass(frozen=True, slots=True)
class Extent:
    """`length` bytes at `device_offset` are those at `inner_offset` of the decoded `span`."""

    device_offset: int
    length: int
    span: int
    inner_offset: int


@dataclass(frozen=True, slots=True)
class Span:
    """The smallest piece of a blob that can be decoded and verified by itself.

    Attributes:
        blob_offset: first byte in the compressed blob.
        blob_length: bytes in the compressed blob.
        length: bytes when decoded.
        digest: of the decoded bytes, 32 bytes, as `DeviceTable.hash` says; of a codec in `INPUTS`,
            see there.
        codec: how to decode it.
        skip: decoded bytes before it; several spans may be parts of the same range of the blob.
        bit: bits of its first byte that belong to the span before: 0 to 7, 0 unless it is a
            stretch of a deflate stream.
        hash: how `digest` is made: that of the table.
    """

    blob_offset: int
    blob_length: int
    length: int
    digest: bytes
    codec: Codec
    skip: int = 0
    bit: int = 0
    hash: Hash = Hash.SHA256


class DeviceTable:
    """One device: its name, its size, its extents and spans. Immutable.

    Args:
        data: what `serialize_device_table` gave, whole; kept, not copied (bytes or a mapped file).
            Its bytes before `find_windows` are enough if `read` is given.
        read: gives bytes of the table by their offset and number: for windows, when they are
            wanted. What it raises comes out of `window`.
        expected_name: the name of a table that was checked before. It commits to the columns that
            rules 1 to 3 are about, so only rule 4 is checked again.

    Raises:
        FormatError: `data` is not a device table, breaks one of the rules above, or has another
            name than the one expected.
    """

    __slots__ = (
        "_data", "_extent_inner", "_extent_length", "_extent_offset", "_extent_span",
        "_read", "_span_blob_length", "_span_blob_offset", "_span_codec", "_span_digest",
        "_span_length", "_span_skip", "_window_starts", "extent_count", "has_parts", "hash", "name",
        "size", "span_count",
    )  # fmt: skip

    def __init__(
        self,
        data: bytes | memoryview,
        *,
        read: Callable[[int, int], bytes] | None = None,
        expected_name: str | None = None,
    ) -> None:
        view = memoryview(data).toreadonly().cast("B")
        header = _parse_header(view)
        size, extents, spans, windows = header.size, header.extents, header.spans, header.windows
        ends = _column_ends(extents, spans)
        self.hash: Hash = header.hash
        self.has_parts: bool = header.has_both or (
            spans > 0 and not windows and len(view) == ends[9]
        )
        expected = ends[8]
        behind = ends[9] + 4 * spans * header.has_both  # where windows begin
        if windows:
            expected = behind if read is not None else behind + windows
        if len(view) != expected and (windows or not self.has_parts):
            raise FormatError("device table", f"expected {expected} bytes, got {len(view)}")
        self._read = read or self._cut
        self._data = view
        self.size: int = size
        self.extent_count: int = extents
        self.span_count: int = spans
        self._extent_offset = view[_HEADER.size : _HEADER.size + 8 * extents].cast("Q")
        self._extent_length = view[ends[0] : ends[0] + 4 * extents].cast("I")
        self._extent_span = view[ends[1] : ends[1] + 4 * extents].cast("I")
        self._extent_inner = view[ends[2] : ends[2] + 4 * extents].cast("I")
        self._span_length = view[ends[3] : ends[3] + 4 * spans].cast("I")
        self._span_digest = view[ends[4] : ends[4] + 32 * spans]
        self._span_codec = view[ends[7] : ends[8]]
        has_inputs = any(how & _CODEC_MASK in INPUTS for how in set(self._span_codec))
        canonical = ends[8] if has_inputs else ends[5]
        self._span_blob_offset = view[ends[5] : ends[5] + 8 * spans].cast("Q")
        self._span_blob_length = view[ends[6] : ends[6] + 4 * spans].cast("I")
        skip = behind - 4 * spans
        self._span_skip = view[skip : skip + 4 * spans if self.has_parts else skip].cast("I")
        self._window_starts = array("Q")
        if windows:
            self._add_windows(view[ends[9] - 4 * spans : ends[9]].cast("I"), behind, windows)
        self.name: str = hashlib.sha256(view[:canonical]).hexdigest()
        self._check_spans(ends, windows)
        if expected_name is None:
            self._check_extents()
        elif self.name != expected_name:
            raise FormatError("device table", f"its name is {self.name}, expected {expected_name}")

    def _cut(self, offset: int, length: int) -> bytes:
        return bytes(self._data[offset : offset + length])

    def _add_windows(self, lengths: memoryview, start: int, size: int) -> None:
        self._window_starts.extend(accumulate(lengths, initial=start))
        if self._window_starts[-1] != start + size:
            raise FormatError("device table", "its windows are not as long as it says")
        if max(lengths) > MAX_STORED_WINDOW:
            raise FormatError("device table", f"a window of {max(lengths)} bytes is too large")

    def _check_spans(self, ends: list[int], windows: int) -> None:
        widths = _column_widths(self.extent_count, self.span_count)
        starts = [_HEADER.size, *ends]
        paddings = [(48, _HEADER.size)]
        paddings += [(starts[i] + width, starts[i + 1]) for i, width in enumerate(widths)]
        if self.has_parts or windows:
            paddings.append((ends[8], ends[9] - 4 * self.span_count))
        if any(any(self._data[start:stop]) for start, stop in paddings):
            raise FormatError("device table", "padding is not zero")
        if not self.span_count:
            return
        offsets, stored = self._span_blob_offset, self._span_blob_length
        if max(offsets) > MAX_BLOB_SIZE or not 0 < min(stored) <= max(stored) <= (
            MAX_STORED_SPAN_SIZE
        ):
            raise FormatError("device table", "a span lies where no blob can have it")
        if max(self._span_length) > MAX_SPAN_SIZE:
            raise FormatError(
                "device table", f"a span of {max(self._span_length)} bytes is too large"
            )
        for how in set(self._span_codec):
            codec, bit = how & _CODEC_MASK, how >> _CODEC_BITS
            if codec > max(Codec):
                raise FormatError("device table", f"unknown codec {codec}")
            if bit > (_MAX_BIT if codec in STRETCHES else 0):
                raise FormatError("device table", f"a span of codec {codec} at bit {bit}")
        if self.has_parts:
            self._check_skips()

    def _check_skips(self) -> None:
        most = max(self._span_skip)
        if not 0 < most <= MAX_SKIP:
            raise FormatError("device table", f"{most} bytes before a span, at most {MAX_SKIP}")
        for how, skip in zip(self._span_codec, self._span_skip, strict=True):
            codec = how & _CODEC_MASK
            if skip and codec not in PARTS:
                raise FormatError("device table", f"bytes before a whole span of codec {codec}")

    def _check_extents(self) -> None:
        end, last = 0, -1
        lengths, inners = self._extent_length, self._extent_inner
        span_lengths = self._span_length
        for i, (offset, span) in enumerate(
            zip(self._extent_offset, self._extent_span, strict=True)
        ):
            length = lengths[i]
            if offset < end or not length:
                raise FormatError("device table", f"extent {i} is empty or overlaps the one before")
            end = offset + length
            if span != last:
                last += 1
                if span != last or span >= self.span_count:
                    raise FormatError("device table", f"extent {i} uses span {span} out of order")
            if inners[i] + length > span_lengths[span]:
                raise FormatError("device table", f"extent {i} reaches past its span {span}")
        if end > self.size:
            raise FormatError("device table", f"extents end at {end}, the device at {self.size}")
        if last != self.span_count - 1:
            raise FormatError("device table", f"{self.span_count} spans, {last + 1} used")

    @property
    def data(self) -> memoryview:
        """The table's bytes, as they are stored; as far as they were given."""
        return self._data

    def extent(self, index: int) -> Extent:
        """Give extent `index`, 0 <= index < extent_count."""
        return Extent(
            self._extent_offset[index],
            self._extent_length[index],
            self._extent_span[index],
            self._extent_inner[index],
        )

    def span(self, index: int) -> Span:
        """Give span `index`, 0 <= index < span_count."""
        return Span(
            self._span_blob_offset[index],
            self._span_blob_length[index],
            self._span_length[index],
            bytes(self._span_digest[32 * index : 32 * index + 32]),
            _CODECS[self._span_codec[index] & _CODEC_MASK],
            self._span_skip[index] if self.has_parts else 0,
            self._span_codec[index] >> _CODEC_BITS,
            self.hash,
        )

    def window(self, index: int) -> bytes:
        """Give the decoded bytes before span `index`, as far as it may refer to them.

        Nothing commits to them: those that are not right give bytes of another digest.

        Raises:
            FormatError: what is stored is no window.
            Exception: whatever `read` raises.
        """
        if not self._window_starts:
            return b""
        index = self._first_part(index)
        start, stop = self._window_starts[index], self._window_starts[index + 1]
        if start == stop:
            return b""
        return decode_frame(self._read(start, stop - start), MAX_WINDOW)

    def _first_part(self, index: int) -> int:
        """Give the first of the parts of a stretch that come one after the other."""
        offsets, codecs = self._span_blob_offset, self._span_codec
        if codecs[index] & _CODEC_MASK == Codec.DEFLATE_PART:
            least = max(0, index - MAX_STRETCH_PARTS)
            while (
                index > least
                and offsets[index - 1] == offsets[index]
                and codecs[index - 1] == codecs[index]
                and self._span_skip[index - 1] < self._span_skip[index]
            ):
                index -= 1
        return index

    def blob_range(self, index: int) -> tuple[int, int]:
        """Give where span `index` lies in the compressed blob: first byte and bytes."""
        return self._span_blob_offset[index], self._span_blob_length[index]

    def span_length(self, index: int) -> int:
        """Give the decoded bytes of span `index`."""
        return self._span_length[index]

    def extents_in(self, offset: int, length: int) -> range:
        """Give the indexes of the extents in a device range (in bytes, at least one)."""
        last = bisect_left(self._extent_offset, offset + length)
        first = bisect_right(self._extent_offset, offset)
        if first and self._extent_offset[first - 1] + self._extent_length[first - 1] > offset:
            first -= 1
        return range(first, max(first, last))

    def spans_in(self, offset: int, length: int) -> range:
        """Give the indexes of the spans that a device range needs (in bytes, at least one)."""
        extents = self.extents_in(offset, length)
        if not extents:
            return range(0)
        return range(self._extent_span[extents[0]], self._extent_span[extents[-1]] + 1)

    def extents_of(self, spans: range) -> range:
        """Give the indexes of all extents that use one of a run of spans."""
        return range(
            bisect_left(self._extent_span, spans.start), bisect_left(self._extent_span, spans.stop)
        )

    def data_size(self) -> int:
        """Give the bytes that extents cover: what is not zero by layout."""
        return sum(self._extent_length)

    def blob_end(self) -> int:
        """Give the first byte of the blob behind all spans."""
        ends = map(int.__add__, self._span_blob_offset, self._span_blob_length)
        return max(ends, default=0)

    def blob_bytes(self) -> int:
        """Give the compressed bytes of all spans; of those in the same range, once."""
        if not self.has_parts:
            return sum(self._span_blob_length)
        return sum(dict(zip(self._span_blob_offset, self._span_blob_length, strict=True)).values())


class _Header(NamedTuple):
    """What a table begins with: the bytes of its device, and how many of everything there are.

    `has_both`: skipped bytes and windows.
    """

    size: int
    extents: int
    spans: int
    windows: int
    hash: Hash
    has_both: bool


def _parse_header(view: memoryview) -> _Header:
    if len(view) < _HEADER.size:
        raise FormatError("device table", f"{len(view)} bytes are less than a header")
    magic, size, extents, spans, windows, hashing, flags = _HEADER.unpack(view[: _HEADER.size])
    if magic != _MAGIC:
        raise FormatError("device table", f"magic is {magic!r}, expected {_MAGIC!r}")
    if size > MAX_DEVICE_SIZE or size % BLOCK_SIZE:
        raise FormatError("device table", f"impossible device size {size}")
    if extents > MAX_EXTENTS or spans > MAX_SPANS:
        raise FormatError("device table", f"{extents} extents, {spans} spans are over the limit")
    if windows > spans * MAX_STORED_WINDOW:
        raise FormatError("device table", f"{windows} bytes of windows of {spans} spans")
    if hashing > max(Hash) or flags > (_PARTS_AND_WINDOWS if windows else 0):
        raise FormatError("device table", f"unknown hash {hashing} or flags {flags:#x}")
    return _Header(size, extents, spans, windows, Hash(hashing), bool(flags))


def find_windows(header: bytes) -> int | None:
    """Give the bytes of a table that come before its windows; None if it has none.

    Args:
        header: its first `HEADER_SIZE` bytes.

    Raises:
        FormatError: it is no device table.
    """
    found = _parse_header(memoryview(header))
    end = _column_ends(found.extents, found.spans)[9] + 4 * found.spans * found.has_both
    return end if found.windows else None


def _column_widths(extents: int, spans: int) -> tuple[int, ...]:
    """Give the bytes of each column but the last, without padding."""
    of_extents = [width * extents for width in (8, 4, 4, 4)]
    of_spans = [width * spans for width in (4, 32, 8, 4)]
    return (*of_extents, *of_spans)


def _column_ends(extents: int, spans: int) -> list[int]:
    """Give where each column ends (the next one starts), rounded up to 8 bytes but the last two.

    These are what ends the table: the codecs, or behind them what the last column has.
    """
    ends = []
    position = _HEADER.size
    for width in _column_widths(extents, spans):
        position += -(-width // 8) * 8
        ends.append(position)
    ends.append(position + spans)
    ends.append(position + -(-spans // 8) * 8 + 4 * spans)
    return ends


def serialize_device_table(size: int, extents: Iterable[Extent], spans: Iterable[Span]) -> bytes:
    """Give the bytes of a device table; `DeviceTable` checks the rules.

    Args:
        size: bytes of the device, a multiple of `BLOCK_SIZE`.
        extents: in device order.
        spans: in order of use.
    """
    columns = DeviceColumns()
    for extent in extents:
        columns.add_extent(extent.device_offset, extent.length, extent.span, extent.inner_offset)
    for span in spans:
        columns.add_span(
            span.blob_offset,
            span.blob_length,
            span.length,
            span.digest,
            span.codec,
            span.skip,
            bit=span.bit,
        )
    return columns.serialize(size)


class DeviceColumns:
    """Collects extents and spans without an object for each.

    Args:
        kind: how the spans' digests are made.
    """

    def __init__(self, kind: Hash = Hash.SHA256) -> None:
        self._hash = kind
        self._extents = (array("Q"), array("I"), array("I"), array("I"))
        self._span_length = array("I")
        self._span_digest = bytearray()
        self._span_blob = (array("Q"), array("I"), bytearray())
        self._span_skip = array("I")
        self._window_length = array("I")
        self._windows = bytearray()

    @property
    def span_count(self) -> int:
        """How many spans were added."""
        return len(self._span_length)

    def add_span(  # noqa: PLR0917 - what a span has; an object for each costs too much
        self,
        blob_offset: int,
        blob_length: int,
        length: int,
        digest: bytes,
        codec: Codec,
        skip: int = 0,
        *,
        bit: int = 0,
        window: bytes | memoryview = b"",
    ) -> int:
        """Add a span; its attributes as in `Span`, its window as it is stored. Gives its index.

        Raises:
            FormatError: a number that no blob can have.
        """
        if len(digest) != 32:
            raise FormatError("span", f"digest of {len(digest)} bytes, expected 32")
        if len(self._span_length) >= MAX_SPANS:
            raise FormatError("span", f"more than {MAX_SPANS} spans")
        if not (
            0 <= blob_offset <= MAX_BLOB_SIZE
            and 0 < blob_length <= MAX_STORED_SPAN_SIZE
            and 0 < length <= MAX_SPAN_SIZE
        ):
            raise FormatError(
                "span", f"impossible position {blob_offset}+{blob_length} or length {length}"
            )
        if skip and not (codec in PARTS and 0 < skip <= MAX_SKIP):
            raise FormatError("span", f"{skip} decoded bytes before it, at most {MAX_SKIP}")
        if not 0 <= bit <= _MAX_BIT or len(window) > MAX_STORED_WINDOW:
            raise FormatError("span", f"at bit {bit}, with a window of {len(window)} bytes")
        self._span_blob[0].append(blob_offset)
        self._span_blob[1].append(blob_length)
        self._span_blob[2].append(codec | bit << _CODEC_BITS)
        self._window_length.append(len(window))
        self._windows += window
        self._span_length.append(length)
        self._span_skip.append(skip)
        self._span_digest += digest
        return len(self._span_length) - 1

    def add_extent(self, device_offset: int, length: int, span: int, inner_offset: int) -> None:
        """Add an extent; its attributes as in `Extent`.

        Raises:
            FormatError: a number that no device can have.
        """
        columns = self._extents
        if len(columns[0]) >= MAX_EXTENTS:
            raise FormatError("extent", f"more than {MAX_EXTENTS} extents")
        if not (
            0 <= device_offset <= MAX_DEVICE_SIZE
            and 0 < length <= MAX_SPAN_SIZE
            and 0 <= span < MAX_SPANS
            and 0 <= inner_offset <= MAX_SPAN_SIZE
        ):
            raise FormatError(
                "extent", f"impossible range {device_offset}+{length} at {span}:{inner_offset}"
            )
        columns[0].append(device_offset)
        columns[1].append(length)
        columns[2].append(span)
        columns[3].append(inner_offset)

    def serialize(self, size: int) -> bytes:
        """Give the bytes of the table of a device of `size` bytes.

        Raises:
            FormatError: no device can have that size.
        """
        if not 0 <= size <= MAX_DEVICE_SIZE or size % BLOCK_SIZE:
            raise FormatError("device table", f"impossible device size {size}")
        columns: tuple[array[int] | bytearray, ...] = (
            *self._extents,
            self._span_length,
            self._span_digest,
            *self._span_blob,
        )
        extents, spans = len(self._extents[0]), len(self._span_length)
        both = _PARTS_AND_WINDOWS if self._windows and any(self._span_skip) else 0
        parts: list[bytes | bytearray] = [
            _HEADER.pack(_MAGIC, size, extents, spans, len(self._windows), self._hash, both)
        ]
        for column in columns[:-1]:
            raw = bytes(column)
            parts += [raw, bytes(-len(raw) % 8)]
        codecs = bytes(columns[-1])
        parts.append(codecs)
        if self._windows:
            parts += [bytes(-len(codecs) % 8), bytes(self._window_length)]
            parts += [bytes(self._span_skip), self._windows] if both else [self._windows]
        elif any(self._span_skip):
            parts += [bytes(-len(codecs) % 8), bytes(self._span_skip)]
        return b"".join(parts)
