"""A layer's compressed bytes to its tar, in pieces of bounded size.

The compression is known by the first bytes, not by the media type: both are wrong in the wild, but
only the media type often.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from zstandard import ZstdDecompressor, ZstdError

from lazyimg_formats import zstd_frames
from lazyimg_formats.errors import FormatError

try:
    from isal import isal_zlib as _inflate  # twice as fast as zlib
except ImportError:  # no wheel for this machine
    import zlib as _inflate  # type: ignore[no-redef]

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE: Final = 1 << 20
"""Bytes of tar that are handed out at a time (zstd: up to 64 MiB where it is a bomb)."""

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
_SLICE: Final = 2048  # of zstd input: 512 blocks of 4 bytes, of 128 KiB each when decoded


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
        self._frames = ZstdDecompressor()
        self._frame = self._frames.decompressobj()
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """See Decompressor."""
        view = memoryview(data)
        pieces: list[bytes] = []
        size = 0
        for at in range(0, len(view), _SLICE):
            for piece in self._decode(view[at : at + _SLICE]):
                pieces.append(piece)
                size += len(piece)
            if size >= PIECE:
                yield b"".join(pieces)
                pieces, size = [], 0
        if size:
            yield b"".join(pieces)

    def _decode(self, data: bytes | memoryview) -> Iterator[bytes]:
        while data:
            if self._frame.eof:
                self._frame = self._frames.decompressobj()
            try:
                yield self._frame.decompress(data)
            except ZstdError as error:
                raise FormatError("zstd", str(error)) from error
            data = self._frame.unused_data
        self._begun = not self._frame.eof

    def finish(self) -> None:
        """See Decompressor."""
        if self._begun:
            raise FormatError("zstd", "cut short")


def choose_decompressor(head: bytes) -> Decompressor:
    """Give what decompresses a blob.

    Args:
        head: its first `MAGIC_SIZE` bytes, or all of it.

    Raises:
        FormatError: nothing here does.
    """
    if not head:
        raise FormatError("layer", "it has no bytes")
    if head.startswith(_GZIP):
        return GzipDecompressor()
    if head.startswith(zstd_frames.MAGIC) or zstd_frames.is_skippable(head):
        return ZstdStreamDecompressor()
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            raise FormatError("layer", f"compressed with {name}; gzip, zstd and none are known")
    return PlainDecompressor()
