"""Checks a zTOC against the layer: against its blob and against its tar.

The digest of a span says nothing of what the span decodes to. So each one is decoded as a fill does
it, from the blob's bytes as they arrive, and what comes out must be the tar's bytes at the place
that the zTOC says. A span or two are in memory.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING, Final

from lazyimg.errors import LazyimgError
from lazyimg.fill.decode import decode_span
from lazyimg_formats.errors import FormatError
from lazyimg_formats.tar.comparison import TarComparison

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lazyimg_formats.soci.toc import ZtocLayer

_WHAT: Final = "index"


class ZtocCheck:
    """One layer; takes its blob. Methods raise FormatError at the first thing that is wrong.

    Args:
        ztoc: what is said of the layer.

    Attributes:
        tar: takes the tar.
    """

    def __init__(self, ztoc: ZtocLayer) -> None:
        self._table = ztoc.layer.table
        self._ranges = _Ranges(
            [self._table.blob_range(number) for number in range(self._table.span_count)]
        )
        self._digests: dict[int, bytes] = {}  # of what one of the two sides has had so far
        self.tar = TarSide(ztoc, self)

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the blob."""
        for number, stored in self._ranges.feed(data):
            try:
                decoded = decode_span(
                    self._table.name,
                    self._table.span(number),
                    memoryview(stored),
                    partial(self._table.window, number),
                )
            except LazyimgError as error:
                raise FormatError(_WHAT, error.problem) from error
            self.compare(number, decoded)

    def compare(self, number: int, data: bytes) -> None:
        """Take what a span is, from one of the two sides."""
        digest = hashlib.sha256(data).digest()
        other = self._digests.pop(number, None)
        if other is None:
            self._digests[number] = digest
        elif other != digest:
            raise FormatError(_WHAT, f"span {number} decodes to other bytes than its tar has")

    def finish(self) -> None:
        """Tell that there is no more of the blob."""
        if self._digests or self._ranges.left:
            raise FormatError(_WHAT, "a span reaches past the end of its tar, or of its blob")


class TarSide:
    """Takes the tar; made by `ZtocCheck`."""

    def __init__(self, ztoc: ZtocLayer, check: ZtocCheck) -> None:
        table, starts = ztoc.layer.table, ztoc.starts
        self._comparison = TarComparison(ztoc.layer, starts=starts)
        self._ranges = _Ranges(
            [(start, table.span_length(number)) for number, start in enumerate(starts)]
        )
        self._check = check

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the tar."""
        self._comparison.feed(data)
        for number, expected in self._ranges.feed(data):
            self._check.compare(number, expected)

    def finish(self) -> None:
        """Tell that there is no more of it."""
        self._comparison.finish()


class _Ranges:
    """Cuts ranges out of bytes that arrive in order; each begins and ends behind the one before."""

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._ranges = ranges
        self._number = 0  # of the next one
        self._kept = bytearray()  # from where it begins, or will
        self._position = 0  # of what is kept

    @property
    def left(self) -> int:
        """How many are not complete."""
        return len(self._ranges) - self._number

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Take the next bytes; give the ranges that they complete, with their numbers."""
        self._kept += data
        while self._number < len(self._ranges):
            start, length = self._ranges[self._number]
            passed = min(start - self._position, len(self._kept))
            del self._kept[:passed]
            self._position += passed
            if len(self._kept) < length or self._position < start:
                return
            yield self._number, bytes(self._kept[:length])
            self._number += 1
        self._kept.clear()
