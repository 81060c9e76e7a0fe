"""A zTOC to a LayerIndex.

Checked, beside what `ztoc` and every format check: members stand in the order of the tar, each with
a header before its bytes, on whole blocks, and end where the tar does, at the latest; and their
bytes lie in spans.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from typing import TYPE_CHECKING, Final, NamedTuple

from zstandard import ZstdCompressor

from lazyimg_formats.device_table import Codec
from lazyimg_formats.errors import FormatError
from lazyimg_formats.gzip_spans import digest_input
from lazyimg_formats.layer import LayerBuilder, LayerIndex, Piece, has_entry
from lazyimg_formats.soci.ztoc import GZIP, WHAT, Ztoc
from lazyimg_formats.tar.header import BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterator

_LEVEL: Final = 3


class ZtocLayer(NamedTuple):
    """A layer.

    Attributes:
        layer: what it holds.
        starts: where in the tar each span of its device begins.
    """

    layer: LayerIndex
    starts: list[int]


def parse_ztoc(data: bytes) -> ZtocLayer:
    """Give what a layer holds.

    Args:
        data: its zTOC.

    Raises:
        FormatError: it is none, or breaks one of the rules above.
    """
    reader = _Reader(Ztoc(data))
    reader.read()
    return ZtocLayer(reader.builder.finish(), reader.starts)


class _Reader:
    """Feeds a LayerBuilder. Spans that no file has bytes in are left out."""

    def __init__(self, ztoc: Ztoc) -> None:
        self.builder = LayerBuilder()
        self.starts: list[int] = []
        self._ztoc = ztoc
        self._positions = [point.position for point in ztoc.points]
        self._span = -1  # the last one that was used
        self._stop = 0  # where it ends in the tar
        self._compress = ZstdCompressor(level=_LEVEL, write_checksum=True).compress
        points = ztoc.points[1:]
        self._plain = ztoc.algorithm != GZIP
        tar_end = ztoc.blob_size if self._plain else ztoc.tar_size
        self._ends = [point.position for point in points] + [tar_end]
        self._blob_ends = [point.first for point in points] + [ztoc.blob_size]

    def read(self) -> None:
        """Take all members."""
        end, tar_size, add = 0, self._ztoc.tar_size, self.builder.add
        for entry, offset in self._ztoc.members():
            size = entry.size
            if offset < end + BLOCK or offset % BLOCK or not 0 <= size <= tar_size - offset:
                raise FormatError(
                    WHAT,
                    f"{entry.path[:80]!r} has bytes {offset} to {offset + size} of the tar's"
                    f" {tar_size}, behind {end} and a header",
                )
            end = offset + -(-size // BLOCK) * BLOCK
            if size and has_entry(entry.path):
                if size <= self._stop - offset:  # most of them lie in the span of the one before
                    last = len(self.starts) - 1
                    add(entry, (Piece(0, size, last, offset - self.starts[last]),))
                else:
                    add(entry, list(self._pieces(offset, size)))
            else:
                add(entry)

    def _pieces(self, offset: int, size: int) -> Iterator[Piece]:
        span = bisect_right(self._positions, offset) - 1
        at = 0
        while at < size:
            if span >= len(self._positions) or self._ends[span] <= offset + at:
                raise FormatError(WHAT, f"no span has byte {offset + at} of the tar")
            if span != self._span:
                self._use(span)
            inner = offset + at - self._positions[span]
            length = min(size - at, self._stop - offset - at)
            yield Piece(at, length, len(self.starts) - 1, inner)
            at += length
            span += 1

    def _use(self, number: int) -> None:
        ztoc, point = self._ztoc, self._ztoc.points[number]
        length = self._ends[number] - point.position
        stored = self._blob_ends[number] - point.offset
        if self._plain:
            self.builder.add_span(point.offset, stored, length, ztoc.digests[number], Codec.RAW)
        else:
            self.builder.add_span(
                point.offset, stored, length,
                digest_input(ztoc.digests[number], hashlib.sha256(point.window).digest()),
                Codec.GZIP_STRETCH, bit=point.bit, window=self._compress(point.window),
            )  # fmt: skip
        self.starts.append(point.position)
        self._span, self._stop = number, self._ends[number]
