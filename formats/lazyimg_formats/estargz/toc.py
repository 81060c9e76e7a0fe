"""A TOC as stargz-snapshotter writes it to a LayerIndex.

Checked: chunks stand in the order of the blob and of what its members decode to, do not overlap,
lie before `end`, follow each other in their file without gaps and have its size together; every
chunk has a digest; names, owners, times, devices and attributes are possible ones.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from lazyimg_formats.device_table import Codec
from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import Kind, LayerBuilder, LayerIndex, Piece, normalize_path
from lazyimg_formats.zstd_chunked.entries import (
    CHUNK,
    WHAT,
    group_entries,
    make_entry,
    out_of_order,
    parse_sha256,
    read_entries,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lazyimg_formats.zstd_chunked.entries import TocEntry

PREFETCH_LANDMARK: Final = b".prefetch.landmark"
"""In the root: the files before it are wanted first."""

NO_PREFETCH_LANDMARK: Final = b".no.prefetch.landmark"
"""In the root: no file is."""

LANDMARKS: Final = frozenset({PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK})

_END: Final = b'"endOffset":'
_REGULAR: Final = Kind.REGULAR
_LANDMARK: Final = "prefetch.landmark"
_OVERLAP: Final = 64  # bytes of a piece that are looked at again with the next one

# What Go writes for a byte that is not UTF-8. A replacement character that is meant stands there as
# itself.
_LOST: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\ufffd")


def check_names(pieces: Iterable[bytes | bytearray]) -> None:
    """Check that a TOC has lost no name, as well as can be told without parsing it.

    Args:
        pieces: of the JSON.

    Raises:
        FormatError: it has lost one.
    """
    tail = b""
    for piece in pieces:
        text = tail + piece if tail else piece
        if b"\\ufffd" in text and _LOST.search(text):  # the first alone is much faster
            raise FormatError(WHAT, "a name is not UTF-8, which this format cannot say")
        tail = bytes(text[-_OVERLAP:])


def is_stargz_toc(toc: bytes | bytearray) -> bool:
    """Tell whether a TOC of zstd:chunked is as stargz-snapshotter writes it.

    Old versions of containers/storage (Debian 12's) use stargz-snapshotter's annotations and footer
    for a TOC of their own, which says where each chunk ends.
    """
    return _END not in toc


def parse_stargz_toc(toc: bytes | bytearray, *, end: int, codec: Codec = Codec.GZIP) -> LayerIndex:
    """Give what a layer holds; landmarks are no files, they say what is wanted first.

    Args:
        toc: the JSON, decoded.
        end: where in the blob the files' members end.
        codec: how a chunk lies in the blob: one of `PARTS`.

    Raises:
        FormatError: it is no TOC, or breaks one of the rules above.
    """
    check_names([toc])
    entries = read_entries(toc)
    reader = _Reader(_find_ends(entries, end), codec)
    for entry, chunks in group_entries(entries):
        reader.add(entry, chunks)
    return reader.builder.finish()


def _find_ends(entries: Sequence[TocEntry], end: int) -> dict[int, int]:
    """Give where each member ends at the latest: where the next one begins."""
    starts = []
    last = 0
    for entry in entries:
        if (entry.size and entry.type == "reg") or entry.type == CHUNK:
            offset = entry.offset
            if offset > last:
                starts.append(offset)
                last = offset
            elif offset < last or not offset:
                raise FormatError(
                    WHAT, f"{entry.name[:80]!r}: a chunk at {offset}, expected behind {last}"
                )
    if last >= end:
        raise FormatError(WHAT, f"a chunk at {last}, expected before {end}")
    return dict(pairwise([*starts, end]))


class _Reader:
    """Feeds a LayerBuilder."""

    def __init__(self, ends: dict[int, int], codec: Codec) -> None:
        self.builder = LayerBuilder()
        self._ends = ends
        self._codec = codec
        self._member = 0  # where the last chunk's begins
        self._position = 0  # in what it decodes to: where the last chunk ended

    def add(self, toc: TocEntry, chunks: list[TocEntry]) -> None:
        entry = make_entry(toc)
        has_bytes = entry.kind is _REGULAR and toc.size > 0
        if len(chunks) > 1 and not has_bytes:
            raise FormatError(WHAT, f"{toc.name[:80]!r} has chunks, and no bytes")
        if _LANDMARK in toc.name and (path := normalize_path(entry.path)) in LANDMARKS:
            if path == PREFETCH_LANDMARK:
                self.builder.mark_first()
            return
        self.builder.add(entry, self._pieces(toc, chunks) if has_bytes else ())

    def _pieces(self, toc: TocEntry, entries: list[TocEntry]) -> list[Piece]:
        if len(entries) == 1:
            if toc.chunk_offset or toc.chunk_size not in {0, toc.size}:
                raise out_of_order(toc)
            return [self._piece(toc, 0, toc.size, toc.chunk_digest or toc.digest)]
        pieces = []
        at = 0
        for chunk in entries:
            # The last one has no size, unless it has as many bytes as the others.
            length = chunk.chunk_size or (toc.size - at if chunk is entries[-1] else 0)
            if chunk.chunk_offset != at or length <= 0:
                raise out_of_order(toc)
            pieces.append(self._piece(chunk, at, length, chunk.chunk_digest))
            at += length
        if at != toc.size:
            raise FormatError(WHAT, f"{toc.name[:80]!r} has {toc.size} bytes, its chunks {at}")
        return pieces

    def _piece(self, chunk: TocEntry, at: int, length: int, digest: str) -> Piece:
        offset, inner = chunk.offset, chunk.inner_offset
        if offset != self._member:
            self._member, self._position = offset, 0
        if inner < self._position:
            raise FormatError(
                WHAT,
                f"{chunk.name[:80]!r}: a chunk at {inner} inside a member, expected at"
                f" {self._position} or behind",
            )
        self._position = inner + length
        span = self.builder.add_span(
            offset, self._ends[offset] - offset, length, parse_sha256(digest), self._codec, inner
        )
        return Piece(at, length, span)
