"""A TOC to a LayerIndex.

Checked: chunks stand in the order of the blob, do not overlap, lie before `end`, follow each other
in their file without gaps and have its size together; every chunk that is not zeros has a digest;
names, owners, times, devices and attributes are possible ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lazyimg_formats.device_table import Codec
from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import Kind, LayerBuilder, LayerIndex, Piece
from lazyimg_formats.zstd_chunked.entries import (
    WHAT,
    ZEROS,
    group_entries,
    make_entry,
    out_of_order,
    parse_sha256,
    read_entries,
)

if TYPE_CHECKING:
    from lazyimg_formats.zstd_chunked.entries import TocEntry

_MAX_OFFSET: Final = 1 << 62
_REGULAR: Final = Kind.REGULAR
_ZSTD: Final = Codec.ZSTD


def parse_toc(toc: bytes | bytearray, *, end: int = _MAX_OFFSET) -> LayerIndex:
    """Give what a layer holds.

    Args:
        toc: the JSON, decoded.
        end: where in the blob the files' frames end (`TocLocation.data_end`).

    Raises:
        FormatError: it is no TOC, or breaks one of the rules above.
    """
    reader = _Reader(end)
    for entry, chunks in group_entries(read_entries(toc)):
        reader.add(entry, chunks)
    return reader.builder.finish()


class _Reader:
    """Feeds a LayerBuilder."""

    def __init__(self, end: int) -> None:
        self.builder = LayerBuilder()
        self._position = 0  # in the blob: where the last chunk ended
        self._end = end

    def add(self, toc: TocEntry, chunks: list[TocEntry]) -> None:
        entry = make_entry(toc)
        has_bytes = entry.kind is _REGULAR and toc.size > 0
        if len(chunks) > 1 and not has_bytes:
            raise FormatError(WHAT, f"{toc.name[:80]!r} has chunks, and no bytes")
        self.builder.add(entry, self._pieces(toc, chunks) if has_bytes else ())

    def _pieces(self, toc: TocEntry, entries: list[TocEntry]) -> list[Piece]:
        if len(entries) == 1:
            if toc.chunk_offset:
                raise out_of_order(toc)
            digest = toc.chunk_digest or toc.digest
            piece = self._piece(toc, 0, toc.size, toc.end_offset, digest)
            return [] if piece is None else [piece]
        pieces = []
        file_offset = 0
        last = len(entries) - 1
        for number, chunk in enumerate(entries):
            blob_end = toc.end_offset if number == last else entries[number + 1].offset
            length = chunk.chunk_size
            if file_offset != chunk.chunk_offset or not length:
                raise out_of_order(toc)
            piece = self._piece(chunk, file_offset, length, blob_end, chunk.chunk_digest)
            if piece is not None:
                pieces.append(piece)
            file_offset += length
        if file_offset != toc.size:
            raise FormatError(
                WHAT, f"{toc.name[:80]!r} has {toc.size} bytes, its chunks {file_offset}"
            )
        return pieces

    def _piece(
        self, chunk: TocEntry, file_offset: int, length: int, blob_end: int, digest: str
    ) -> Piece | None:
        offset = chunk.offset
        if not self._position <= offset <= blob_end <= self._end:
            raise FormatError(
                WHAT,
                f"{chunk.name[:80]!r}: a chunk at {offset} to {blob_end}, expected between"
                f" {self._position} and {self._end}",
            )
        self._position = blob_end
        if chunk.chunk_type == ZEROS:
            return None
        span = self.builder.add_span(offset, blob_end - offset, length, parse_sha256(digest), _ZSTD)
        return Piece(file_offset, length, span)
