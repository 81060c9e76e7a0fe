"""Cuts a tar, as it arrives, where its frames begin and end. Pure: bytes in, cuts out."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, NamedTuple

from lazyimg_formats.tar.scanner import Member, TarScanner
from lazyimg_formats.tar_split import TarSplit, TarSplitWriter, checksum

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lazyimg_formats.tar.sparse import Region

MAX_PIECE: Final = 128 << 10
"""Bytes of the largest frame, decoded."""

_ALIGNMENT: Final = 4096


class Gap(NamedTuple):
    """Bytes of the tar that are no payload."""

    data: bytes | memoryview


class Piece(NamedTuple):
    """The next bytes of the last member's payload."""

    data: bytes | memoryview


class Hole(NamedTuple):
    """The next `length` bytes of the last member are zeros that the tar does not hold."""

    length: int


class FileEnd(NamedTuple):
    """The last member has no more bytes; `digest` is its sha256 where no piece has the same."""

    digest: bytes | None


Cut = Member | Gap | Piece | Hole | FileEnd | TarSplit
"""For each member: itself; if it has data, its Pieces and Holes in order, and its FileEnd.

At the end the tar-split data, if the tar can have any.
"""


def plan_pieces(size: int, regions: tuple[Region, ...] | None) -> Iterator[tuple[int, bool]]:
    """Give (length, whether it is a hole) for each piece of a file of `size` bytes.

    Args:
        size: of the file.
        regions: which parts of it have bytes; None: all.
    """
    end = 0
    for offset, length in ((0, size),) if regions is None else regions:
        if offset > end:
            yield offset - end, True
        end = offset + length
        count = -(-length // MAX_PIECE)
        piece = -(-length // (count * _ALIGNMENT)) * _ALIGNMENT if count else 0
        for at in range(0, length, piece or 1):
            yield min(piece, length - at), False
    if end < size:
        yield size - end, True


class Cutter:
    """Takes a tar piece by piece.

    Every method raises FormatError when it is no tar.
    """

    def __init__(self) -> None:
        self._scanner = TarScanner()
        self._cuts: list[Cut] = []
        self._parts: list[bytes | memoryview] = []  # of a gap or piece that is not complete
        self._held = 0
        self._left = 0  # bytes of the current file that are still to come
        self._plan: Iterator[tuple[int, bool]] = iter(())
        self._want = 0  # bytes of the current piece
        self._whole = hashlib.sha256()
        self._digest_whole = False
        self._member: Member | None = None  # whose bytes are still to come
        self._crc = 0
        self._tar_split = TarSplitWriter()

    def feed(self, data: bytes) -> list[Cut]:
        """Take the next bytes; give the cuts that they complete."""
        base = self._scanner.position
        view = memoryview(data)
        at = 0
        for member in self._scanner.feed(data):
            stop = member.data_offset - base
            self._take(view[at:stop])
            at = stop
            self._begin(member)
        self._take(view[at:])
        cuts, self._cuts = self._cuts, []
        return cuts

    def finish(self) -> list[Cut]:
        """Tell that there are no more bytes; give the last cuts."""
        self._scanner.finish()
        self._flush_gap()
        tar_split = self._tar_split.finish()
        if tar_split is not None:
            self._cuts.append(tar_split)
        cuts, self._cuts = self._cuts, []
        return cuts

    def _begin(self, member: Member) -> None:
        if member.data_size:
            self._flush_gap()
        self._cuts.append(member)
        if not member.has_data:
            self._tar_split.add_member(member)
            return
        self._member = member
        self._crc = 0
        self._left = member.data_size
        self._plan = plan_pieces(member.entry.size, member.regions)
        self._digest_whole = member.regions is None and member.data_size > MAX_PIECE
        self._whole = hashlib.sha256()
        self._next_piece()

    def _next_piece(self) -> None:
        for length, is_hole in self._plan:
            if not is_hole:
                self._want = length
                return
            self._cuts.append(Hole(length))
        assert self._member is not None  # noqa: S101 - a plan is that of a member
        self._tar_split.add_member(self._member, self._crc)
        self._cuts.append(FileEnd(self._whole.digest() if self._digest_whole else None))

    def _take(self, view: memoryview) -> None:
        if self._left and view:
            length = min(self._left, len(view))
            self._left -= length
            self._take_payload(view[:length])
            view = view[length:]
        self._tar_split.add_raw(view)
        while view:
            part = view[: MAX_PIECE - self._held]
            self._hold(part)
            view = view[len(part) :]
            if self._held == MAX_PIECE:
                self._flush_gap()

    def _take_payload(self, view: memoryview) -> None:
        if self._digest_whole:
            self._whole.update(view)
        self._crc = checksum(view, self._crc)
        while view:
            part = view[: self._want - self._held]
            self._hold(part)
            view = view[len(part) :]
            if self._held == self._want:
                self._cuts.append(Piece(self._join()))
                self._next_piece()

    def _hold(self, part: memoryview) -> None:
        self._parts.append(part)
        self._held += len(part)

    def _join(self) -> bytes | memoryview:
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._held = 0
        return data

    def _flush_gap(self) -> None:
        if self._held:
            self._cuts.append(Gap(self._join()))
