"""A layer's compressed bytes to its tar, and to the spans by which it can be entered.

One cutter for each compression. It gives pieces of the tar, and between them `Cut`s: what was given
since the one before is a span. Memory is bounded, whatever the layer holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from zstandard import ZstdDecompressor, ZstdError

from lazyimg.layers.decompress import choose_compression
from lazyimg.layers.inflate import Inflater
from lazyimg_formats.device_table import MAX_SPAN_SIZE, Codec
from lazyimg_formats.errors import FormatError
from lazyimg_formats.zstd_stream import StreamCutter

if TYPE_CHECKING:
    from collections.abc import Iterator

SPACING: Final = 4 << 20
"""Bytes of a tar between two points at which a deflate stream can be entered, at least."""

RAW_SPAN: Final = 256 << 10
"""Bytes of a span of a tar that is not compressed."""

MAX_FRAME: Final = 16 << 20
"""Bytes of a zstd frame, decoded: who wants one byte of it decodes all that come before."""

PIECE: Final = 512 << 10
"""Bytes of tar that are handed out at a time: what a core's cache holds."""

_TRAILER: Final = 8  # bytes behind a gzip member's last block


class NoSpansError(FormatError):
    """A layer that can only be decoded from its beginning to its end, as far as that is known."""


class Cut(NamedTuple):
    """The end of a span: where it lies in the blob, and what it needs to be entered.

    Attributes:
        offset: of its first byte in the blob.
        length: bytes in the blob.
        bit: bits of its first byte that belong to the span before.
        window: decoded bytes before it that it may refer to.
    """

    offset: int
    length: int
    bit: int = 0
    window: bytes = b""


class SpanCutter(Protocol):
    """One layer.

    Attributes:
        codec: of its spans.
    """

    codec: Codec

    def feed(self, data: bytes) -> Iterator[bytes | Cut]:
        """Take the next bytes of the blob.

        Raises:
            FormatError: they are damaged.
            NoSpansError: they have no spans of a size that can be used.
        """
        ...

    def finish(self) -> Iterator[bytes | Cut]:
        """Tell that there are no more bytes.

        Raises:
            FormatError: the blob is cut short.
        """
        ...


class GzipCutter:
    """Gzip members: each is a span, or several stretches.

    Args:
        spacing: bytes of tar from which on a span ends with the block that reaches them.
    """

    codec = Codec.DEFLATE

    def __init__(self, spacing: int = SPACING) -> None:
        self._spacing = spacing
        self._inflater = Inflater(PIECE)
        self._taken = 0  # bytes of the blob
        self._begun = False  # a member's header has
        self._offset: int | None = None  # of the span; None: in a header
        self._bit = 0
        self._window = b""
        self._length = 0  # of the span, decoded

    def feed(self, data: bytes) -> Iterator[bytes | Cut]:
        """See SpanCutter."""
        at = 0
        full = False  # there may be more output without more input
        while at < len(data) or full:
            left = self._spacing - self._length
            stop = self._offset is None or left <= 0
            most = PIECE if stop else min(left, PIECE)
            step = self._inflater.step(data, at, most, stop=stop)
            at += step.taken
            self._taken += step.taken
            self._begun = True
            full = len(step.output) == most
            if step.output:
                self._length += len(step.output)
                if self._length > MAX_SPAN_SIZE:
                    raise NoSpansError(
                        "gzip", f"a block of over {MAX_SPAN_SIZE - self._spacing} bytes"
                    )
                yield bytes(step.output)
            if step.ended:
                yield from self._cut(self._taken - _TRAILER)
                self._offset, self._begun, full = None, False, False
            elif step.boundary is not None:
                yield from self._cut(self._taken)
                self._enter(step.boundary)
                full = True  # a boundary may be where the input ends

    def _cut(self, end: int) -> Iterator[Cut]:
        if self._length and self._offset is not None:
            yield Cut(self._offset, end - self._offset, self._bit, self._window)
            self._length = 0

    def _enter(self, unused: int) -> None:
        self._offset = self._taken - bool(unused)
        self._bit = -unused % 8
        self._window = self._inflater.window()

    def finish(self) -> Iterator[bytes | Cut]:
        """See SpanCutter."""
        if self._begun:
            raise FormatError("gzip", "cut short")
        yield from ()


class ZstdCutter:
    """Zstd frames: each is a span."""

    codec = Codec.ZSTD

    def __init__(self) -> None:
        self._parts = StreamCutter(PIECE)
        self._zstd = ZstdDecompressor(max_window_size=MAX_FRAME)
        self._frame = self._zstd.decompressobj()
        self._taken = 0
        self._offset = 0  # of the frame
        self._length = 0  # of the frame, decoded

    def feed(self, data: bytes) -> Iterator[bytes | Cut]:
        """See SpanCutter."""
        for part in self._parts.cut(data):
            rest: bytes | memoryview = part
            while rest:
                yield from self._decode(rest)
                rest = self._frame.unused_data
                self._taken -= len(rest)
                if self._frame.eof:
                    if self._length:
                        yield Cut(self._offset, self._taken - self._offset)
                    self._offset, self._length = self._taken, 0
                    self._frame = self._zstd.decompressobj()

    def _decode(self, data: bytes | memoryview) -> Iterator[bytes]:
        try:
            piece = self._frame.decompress(data)
        except ZstdError as error:
            if "memory" in str(error):  # its window
                raise _too_large_frame() from error
            raise FormatError("zstd", str(error)) from error
        self._taken += len(data)
        self._length += len(piece)
        if self._length > MAX_FRAME:
            raise _too_large_frame()
        if piece:
            yield piece

    def finish(self) -> Iterator[bytes | Cut]:
        """See SpanCutter."""
        self._parts.finish()
        yield from ()


def _too_large_frame() -> FormatError:
    return NoSpansError(
        "zstd",
        f"a frame of over {MAX_FRAME >> 20} MiB; nothing in a frame can be decoded without all that"
        " comes before it",
    )


class RawCutter:
    """A tar that is not compressed."""

    codec = Codec.RAW

    def __init__(self) -> None:
        self._taken = 0

    def feed(self, data: bytes) -> Iterator[bytes | Cut]:
        """See SpanCutter."""
        at = 0
        while at < len(data):
            piece = data[at : at + RAW_SPAN - self._taken % RAW_SPAN]
            yield piece
            at += len(piece)
            self._taken += len(piece)
            if self._taken % RAW_SPAN == 0:
                yield Cut(self._taken - RAW_SPAN, RAW_SPAN)

    def finish(self) -> Iterator[bytes | Cut]:
        """See SpanCutter."""
        length = self._taken % RAW_SPAN
        if length:
            yield Cut(self._taken - length, length)


def choose_cutter(head: bytes, spacing: int = SPACING) -> SpanCutter:
    """Give what cuts a blob.

    Args:
        head: its first bytes, as `lazyimg.layers.decompress.choose_decompressor` takes them.
        spacing: as `GzipCutter` takes it.

    Raises:
        FormatError: nothing here does.
        LazyimgError: libz is not there.
    """
    kind = choose_compression(head)
    if kind == "gzip":
        return GzipCutter(spacing)
    return ZstdCutter() if kind == "zstd" else RawCutter()
