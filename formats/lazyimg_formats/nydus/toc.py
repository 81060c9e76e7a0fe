"""The table of contents at the end of a blob: entries of 128 bytes, and a tar header behind them.

A blob whose bootstrap is inside has the entries ``image.boot`` (that bootstrap), ``blob.meta`` and
``blob.meta.header`` (its context), ``blob.digest`` and ``image.blob`` (its chunks).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from lazyimg_formats.errors import FormatError
from lazyimg_formats.nydus.layout import MAX_BOOTSTRAP, TAR_HEADER, Compressor, TocFlags, toc_entry
from lazyimg_formats.zstd_frames import decode_frame

BOOTSTRAP: Final = "image.boot"

TAIL: Final = 4096
"""Bytes at a blob's end that hold the table, whatever it has."""

_NAME: Final = b"rafs.blob.toc"
_COMPRESSORS: Final = {
    int(TocFlags.COMPRESSION_NONE): Compressor.NONE,
    int(TocFlags.COMPRESSION_ZSTD): Compressor.ZSTD,
}
_SIZE: Final = slice(124, 136)
_TYPE: Final = slice(156, 157)


@dataclass(frozen=True, slots=True)
class TocEntry:
    """A part of a blob.

    Attributes:
        name: what it is.
        compressor: NONE or ZSTD.
        digest: sha256 of it, decoded; zeros: not said.
        offset: of its first byte in the blob.
        stored: bytes in the blob.
        length: bytes when decoded.
    """

    name: str
    compressor: Compressor
    digest: bytes
    offset: int
    stored: int
    length: int

    def decode(self, data: bytes) -> bytes:
        """Give the part.

        Args:
            data: its bytes in the blob.

        Raises:
            FormatError: they are not what the entry says.
        """
        if len(data) != self.stored or self.length > MAX_BOOTSTRAP:
            raise FormatError("TocEntry", f"{self.name}: {len(data)} bytes for {self.length}")
        decoded = data
        if self.compressor is Compressor.ZSTD:
            decoded = decode_frame(data, self.length)
        known = any(self.digest)
        if len(decoded) != self.length or (
            known and hashlib.sha256(decoded).digest() != self.digest
        ):
            raise FormatError("TocEntry", f"{self.name} is not what its entry says")
        return decoded


def parse_toc(tail: bytes, blob_size: int) -> dict[str, TocEntry]:
    """Give the parts of a blob by their names.

    Args:
        tail: the last bytes of the blob: `TAIL`, or all.
        blob_size: bytes of the blob.

    Raises:
        FormatError: there is no table, or it is damaged.
    """
    if len(tail) < TAR_HEADER:
        raise FormatError("TocEntry", f"{len(tail)} bytes are less than a tar header")
    header = tail[-TAR_HEADER:]
    if header[: len(_NAME) + 1] != _NAME + b"\0" or header[_TYPE] not in {b"0", b"\0"}:
        raise FormatError("TocEntry", "the blob has no table of contents at its end")
    try:
        size = int(header[_SIZE].strip(b"\0 "), 8)
    except ValueError as error:
        raise FormatError("TocEntry", f"the table's size is {header[_SIZE]!r}") from error
    end = len(tail) - TAR_HEADER
    if not 0 < size <= end or size % toc_entry.size:
        raise FormatError("TocEntry", f"a table of {size} bytes")
    entries = {}
    for offset in range(end - size, end, toc_entry.size):
        entry = _parse_entry(tail[offset : offset + toc_entry.size], blob_size)
        if entry.name in entries:
            raise FormatError("TocEntry", f"{entry.name} is there twice")
        entries[entry.name] = entry
    return entries


def _parse_entry(data: bytes, blob_size: int) -> TocEntry:
    raw = toc_entry.decode(data)
    try:
        name = raw.name.rstrip(b"\0").decode("ascii")
        compressor = _COMPRESSORS[raw.flags]
    except (UnicodeDecodeError, KeyError) as error:
        raise FormatError("TocEntry", f"entry {raw.name!r}, flags {raw.flags:#x}") from error
    if raw.compressed_offset + raw.compressed_size > blob_size:
        raise FormatError("TocEntry", f"{name} ends behind the blob")
    return TocEntry(
        name, compressor, raw.uncompressed_digest, raw.compressed_offset, raw.compressed_size,
        raw.uncompressed_size,
    )  # fmt: skip
