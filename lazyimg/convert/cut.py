"""Cuts a tar, as it arrives, where its frames begin and end. Pure: bytes in, cuts out."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from lazyimg_formats.tar.scanner import Member, TarScanner
from lazyimg_formats.tar_split import TarSplit, TarSplitWriter, checksum

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lazyimg_formats.tar.sparse import Region

MAX_PIECE: Final = 128 << 10
"""Bytes of the largest frame, decoded."""

_ALIGNMENT: Final = 4096
_LEAST_ZEROS: Final = 4096
_ZEROS: Final = bytes(MAX_PIECE)


class Frame(msgspec.Struct, frozen=True, gc=False):
    """What one frame holds.

    Attributes:
        length: bytes of the last member's file; 0: none, but what is no payload.
        digest: sha256 of them; None: they are all zero.
        whole: at a file's end, sha256 of all of it, where no frame has the same.
    """

    length: int
    digest: bytes | None
    whole: bytes | None


GAP: Final = Frame(0, None, None)


class Hole(msgspec.Struct, frozen=True, gc=False):
    """The next `length` bytes of the last member are zeros that the tar does not hold."""

    length: int


class NoTarSplit(NamedTuple):
    """The tar can have no tar-split data; `problem` says why."""

    problem: str


Item = Member | Frame | Hole | TarSplit | NoTarSplit
"""What stands in a tar, in its order: each member, then its Frames and Holes, if it has bytes.

Headers and padding are frames too. At the end stands the tar-split data, or why there is none.
"""


class Batch(NamedTuple):
    """A part of a tar.

    Attributes:
        items: what stands in it.
        frames: for each Frame in `items`, in their order, its bytes. Put together: the tar.
    """

    items: list[Item]
    frames: list[bytes | memoryview]


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

    Attributes:
        size: bytes taken since `take`.
    """

    def __init__(self) -> None:
        self.size = 0
        self._scanner = TarScanner()
        self._tar_split = TarSplitWriter()
        self._items: list[Item] = []
        self._frames: list[bytes | memoryview] = []
        self._parts: list[bytes | memoryview] = []  # of a frame that is not complete
        self._held = 0
        self._file: _File | None = None  # whose bytes are still to come

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        base = self._scanner.position
        members = self._scanner.feed(data)
        view = memoryview(data)
        raw = gap = self._take_payload(view, 0)  # up to where the bytes were taken
        for member in members:
            stop = member.data_offset - base
            self._tar_split.add_raw(view[raw:stop])
            raw = stop
            if member.data_size:
                self._end_gap(view[gap:stop])
                raw = gap = self._begin(member, view, stop)
            else:
                self._begin_without_data(member)
        self._tar_split.add_raw(view[raw:])
        self._take_gap(view[gap:])
        self.size += len(data)

    def finish(self) -> None:
        """Tell that there are no more bytes."""
        self._scanner.finish()
        self._end_gap(memoryview(b""))
        tar_split = self._tar_split.finish()
        if tar_split is not None:
            self._items.append(tar_split)
        elif self._tar_split.problem:
            self._items.append(NoTarSplit(self._tar_split.problem))

    def take(self) -> Batch:
        """Give what was cut since the last call."""
        batch = Batch(self._items, self._frames)
        self._items, self._frames, self.size = [], [], 0
        return batch

    def _begin(self, member: Member, view: memoryview, at: int) -> int:
        """Take what is there of a member's payload; give where that ends."""
        self._items.append(member)
        size = member.data_size
        end = at + size
        if size <= MAX_PIECE and end <= len(view) and member.regions is None:
            data = view[at:end]  # most files
            self._add_piece(data, None)
            self._tar_split.add_member(member, checksum(data))
            return end
        self._file = _File(member)
        self._end_piece(self._file)
        return self._take_payload(view, at)

    def _begin_without_data(self, member: Member) -> None:
        self._items.append(member)
        if member.regions is not None and member.entry.size:
            self._items.append(Hole(member.entry.size))
        self._tar_split.add_member(member)

    def _take_payload(self, view: memoryview, at: int) -> int:
        while self._file is not None and at < len(view):
            part = view[at : at + self._file.want - self._held]
            at += len(part)
            self._file.update(part)
            self._hold(part)
            if self._held == self._file.want:
                self._add_piece(self._join(), self._file.whole_digest())
                self._end_piece(self._file)
        return at

    def _end_piece(self, file: _File) -> None:
        """Go on to the file's next piece, or to what follows the file."""
        for length, is_hole in file.plan:
            if not is_hole:
                file.want = length
                return
            self._items.append(Hole(length))
        self._tar_split.add_member(file.member, file.crc)
        self._file = None

    def _add_piece(self, data: bytes | memoryview, whole: bytes | None) -> None:
        length = len(data)
        digest = None
        if data[0] or length < _LEAST_ZEROS or bytes(data) != _ZEROS[:length]:
            digest = hashlib.sha256(data).digest()
        self._items.append(Frame(length, digest, whole))
        self._frames.append(data)

    def _take_gap(self, view: memoryview) -> None:
        while view:
            part = view[: MAX_PIECE - self._held]
            view = view[len(part) :]
            self._hold(part)
            if self._held == MAX_PIECE:
                self._add_gap(self._join())

    def _end_gap(self, view: memoryview) -> None:
        if self._held or len(view) > MAX_PIECE:
            self._take_gap(view)
            if self._held:
                self._add_gap(self._join())
        elif view:
            self._add_gap(view)  # most of them

    def _add_gap(self, data: bytes | memoryview) -> None:
        self._items.append(GAP)
        self._frames.append(data)

    def _hold(self, part: memoryview) -> None:
        self._parts.append(part)
        self._held += len(part)

    def _join(self) -> bytes | memoryview:
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._held = 0
        return data


class _File:
    """A file that is cut into several pieces, or arrives in several.

    Attributes:
        member: what the scanner gave.
        plan: its pieces that are still to come.
        want: bytes of the current one.
        crc: of the bytes so far.
    """

    def __init__(self, member: Member) -> None:
        self.member = member
        self.plan = plan_pieces(member.entry.size, member.regions)
        self.want = 0
        self.crc = 0
        self._left = member.data_size
        self._whole = None
        if member.regions is None and member.data_size > MAX_PIECE:
            self._whole = hashlib.sha256()

    def update(self, data: memoryview) -> None:
        """Take the next bytes."""
        self._left -= len(data)
        self.crc = checksum(data, self.crc)
        if self._whole is not None:
            self._whole.update(data)

    def whole_digest(self) -> bytes | None:
        """Give the sha256 of all of it: at its end, and where no piece has the same."""
        return None if self._left or self._whole is None else self._whole.digest()
