"""A layer's compressed bytes to its tar, in pieces of bounded size.

The compression is known by the first bytes, not by the media type: both are wrong in the wild, but
only the media type often.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from zstandard import ZstdDecompressor, ZstdError

from lazyimg_formats import zstd_frames
from lazyimg_formats.errors import FormatError
from lazyimg_formats.zstd_frames import MAX_BLOCK
from lazyimg_formats.zstd_stream import StreamCutter

try:
    from isal import isal_zlib as _inflate  # twice as fast as zlib
except ImportError:  # no wheel for this machine
    import zlib as _inflate  # type: ignore[no-redef]

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE: Final = 2 << 20
"""Bytes of tar that are handed out at a time, at most. A file that lies in several costs more."""

MAGIC_SIZE: Final = 6
"""Bytes that `choose_decompressor` looks at."""

_GZIP: Final = b"\x1f\x8b"
_OTHERS: Final = {
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x04\x22\x4d\x18": "lz4",
    b"LZIP": "lzip",
}
_GZIP_WINDOW: Final = 31
_DECODED: Final = 512 << 10  # bytes that are decoded at a time: what a core's cache holds


class Decompressor(Protocol):
    """One compressed stream."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take the next compressed bytes; give what they hold, in pieces.

        Raises:
            FormatError: they are damaged.
        """
        ...

    def finish(self) -> None:
        """Tell that there are no more bytes.

        Raises:
            FormatError: the stream is cut short.
        """
        ...


class PlainDecompressor:
    """A tar that is not compressed."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Give the same bytes."""
        for at in range(0, len(data), PIECE):
            yield data[at : at + PIECE]

    def finish(self) -> None:
        """See Decompressor; the tar scanner knows whether it is cut short."""


class GzipDecompressor:
    """One or more gzip members."""

    def __init__(self) -> None:
        self._error: Any = _inflate.error
        self._member: Any = _inflate.decompressobj(_GZIP_WINDOW)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """See Decompressor."""
        more = True
        while data or more:
            if self._member.eof:
                if not data:
                    return
                self._member = _inflate.decompressobj(_GZIP_WINDOW)
            try:
                piece: bytes = self._member.decompress(data, PIECE)
            except self._error as error:
                raise FormatError("gzip", str(error)) from error
            data = self._member.unconsumed_tail or self._member.unused_data
            more = len(piece) == PIECE
            if piece:
                yield piece

    def finish(self) -> None:
        """See Decompressor."""
        if not self._member.eof:
            raise FormatError("gzip", "cut short")


class ZstdStreamDecompressor:
    """One or more zstd frames."""

    def __init__(self) -> None:
        self._cutter = StreamCutter(_DECODED)
        frames = ZstdDecompressor().decompressobj(
            write_size=_DECODED + 2 * MAX_BLOCK, read_across_frames=True
        )
        self._decompress = frames.decompress

    def feed(self, data: bytes) -> Iterator[bytes]:
        """See Decompressor."""
        pieces: list[bytes] = []
        size = 0
        for part in self._cutter.cut(data):
            try:
                piece = self._decompress(part)
            except ZstdError as error:
                raise FormatError("zstd", str(error)) from error
            pieces.append(piece)
            size += len(piece)
            if size > PIECE - _DECODED - 2 * MAX_BLOCK:
                yield b"".join(pieces)
                pieces, size = [], 0
        if size:
            yield b"".join(pieces)

    def finish(self) -> None:
        """See Decompressor."""
        self._cutter.finish()


def choose_compression(head: bytes) -> str:
    """Give how a blob is compressed: ``gzip``, ``zstd`` or ``""``.

    Args:
        head: its first `MAGIC_SIZE` bytes, or all of it.

    Raises:
        FormatError: in a way that nothing here knows.
    """
    if not head:
        raise FormatError("layer", "it has no bytes")
    if head.startswith(_GZIP):
        return "gzip"
    if head.startswith(zstd_frames.MAGIC) or zstd_frames.is_skippable(head):
        return "zstd"
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            raise FormatError("layer", f"compressed with {name}; gzip, zstd and none are known")
    return ""


def choose_decompressor(head: bytes) -> Decompressor:
    """Give what decompresses a blob; arguments and errors as `choose_compression`."""
    kind = choose_compression(head)
    if kind == "gzip":
        return GzipDecompressor()
    return ZstdStreamDecompressor() if kind == "zstd" else PlainDecompressor()
