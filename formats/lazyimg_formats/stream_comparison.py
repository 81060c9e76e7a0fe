"""Compares a tar, as it arrives, with the stream index that is said to describe it.

They agree if the index has the same members at the same places, and if each of its spans, which
follow each other in the tar without gaps, has the sha256 of the tar's bytes there. Where the spans
lie in the blob is not looked at: who decodes them finds out.
"""

from __future__ import annotations

import hashlib
from collections import deque
from typing import TYPE_CHECKING, Final

from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import Entry
from lazyimg_formats.stream_index import iterate_members, iterate_spans, parse_header
from lazyimg_formats.tar.scanner import Member, TarScanner

if TYPE_CHECKING:
    from lazyimg_formats.oci.digest import Digest
    from lazyimg_formats.stream_index import StreamSpan

_WHAT: Final = "index"
_PLACE: Final = [name for name in Member.__struct_fields__ if name != "entry"]


class StreamComparison:
    """Takes a tar piece by piece.

    Every method raises FormatError at the first difference, or when it is no tar.

    Args:
        data: the index; it was parsed by `parse_stream_index` before.
        blob: digest of the layer's blob.
        diff_id: digest that the tar is to have.
    """

    def __init__(self, data: bytes | memoryview, blob: Digest, diff_id: Digest) -> None:
        header = parse_header(data)
        if (header.blob, header.diff_id) != (blob, diff_id):
            raise FormatError(_WHAT, f"is of blob {header.blob} with the diff ID {header.diff_id}")
        self._size = header.tar_size
        self._expected = iterate_members(data)
        self._spans = iterate_spans(data)
        self._scanner = TarScanner()
        self._number = 0  # of members so far
        self._begun: deque[tuple[int, bytes]] = deque()  # where members begin, for messages
        self._path = b""  # in whose bytes the current span begins
        self._span: StreamSpan | None = None
        self._span_number = 0
        self._left = 0  # bytes of the current span that are still to come
        self._position = 0
        self._hash = hashlib.sha256()

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        for member in self._scanner.feed(data):
            self._compare(member)
            self._begun.append((member.header_offset, member.entry.path))
        view = memoryview(data)
        while view:
            if not self._left:
                self._begin_span()
            part = view[: self._left]
            view = view[len(part) :]
            self._hash.update(part)
            self._left -= len(part)
            self._position += len(part)
            if not self._left:
                self._end_span()

    def finish(self) -> None:
        """Tell that there are no more bytes."""
        self._scanner.finish()
        further = next(self._expected, None)
        if further is not None:
            raise FormatError(_WHAT, f"has {_name(further)}, which its tar does not have")
        if self._left or next(self._spans, None) is not None or self._position != self._size:
            raise FormatError(
                _WHAT, f"is of a tar of {self._size} bytes or more, its tar has {self._position}"
            )

    def _compare(self, member: Member) -> None:
        self._number += 1
        expected = next(self._expected, None)
        if expected is None:
            raise FormatError(_WHAT, f"does not have {_name(member)} of its tar")
        if expected == member:
            return
        differences = [
            (name, getattr(expected.entry, name), getattr(member.entry, name))
            for name in Entry.__struct_fields__
        ]
        differences += [(name, getattr(expected, name), getattr(member, name)) for name in _PLACE]
        name, theirs, ours = next(one for one in differences if one[1] != one[2])
        raise FormatError(
            _WHAT,
            f"entry {self._number}, {_name(expected)}: {name} {theirs!r:.80}, in its tar"
            f" {ours!r:.80}",
        )

    def _begin_span(self) -> None:
        while self._begun and self._begun[0][0] <= self._position:
            self._path = self._begun.popleft()[1]
        self._span = next(self._spans, None)
        if self._span is None:
            raise FormatError(_WHAT, f"its spans end at byte {self._position} of its tar")
        self._left = self._span.length
        if not self._left:
            raise FormatError(_WHAT, f"span {self._span_number} is empty")
        self._hash = hashlib.sha256()

    def _end_span(self) -> None:
        assert self._span is not None  # noqa: S101 - it was begun
        if self._hash.digest() != self._span.digest:
            start = self._position - self._span.length
            raise FormatError(
                _WHAT,
                f"span {self._span_number}, bytes {start} to {self._position} of the tar, from"
                f" {self._path[:80]!r} on: not the bytes of its tar",
            )
        self._span_number += 1


def _name(member: Member) -> str:
    return repr(member.entry.path[:80])
