"""Cuts to frames."""

from __future__ import annotations

import hashlib

import pytest

from lazyimg.convert.compress import Frames, compress_cuts
from lazyimg.convert.cut import MAX_PIECE, Cut, FileEnd, Gap, Hole, Piece
from lazyimg_formats.layer import Entry, Kind
from lazyimg_formats.tar.scanner import Member
from lazyimg_formats.zstd_frames import decode_frame

TEXT = b"".join(b"%d " % number for number in range(20_000))[:100_000]


def one(cut: Cut) -> Frames:
    (frames,) = compress_cuts([cut], 3)
    assert isinstance(frames, Frames)
    return frames


@pytest.mark.parametrize("kind", [bytes, memoryview])
def test_piece(kind: type) -> None:
    frames = one(Piece(kind(TEXT)))
    assert (frames.length, frames.digest) == (100_000, hashlib.sha256(TEXT).digest())
    assert decode_frame(frames.data, 100_000) == TEXT


def test_gap() -> None:
    frames = one(Gap(TEXT))
    assert (frames.length, frames.digest) == (0, None)
    assert decode_frame(frames.data, 100_000) == TEXT


@pytest.mark.parametrize("size", [4096, 4097, MAX_PIECE])
@pytest.mark.parametrize("kind", [bytes, memoryview])
def test_zeros(size: int, kind: type) -> None:
    frames = one(Piece(kind(bytes(size))))
    assert (frames.length, frames.digest) == (size, None)
    assert decode_frame(frames.data, size) == bytes(size)


@pytest.mark.parametrize("data", [bytes(4095), bytes(4095) + b"x", b"x" + bytes(MAX_PIECE - 1)])
def test_what_is_not_marked_as_zeros(data: bytes) -> None:
    assert one(Piece(data)).digest == hashlib.sha256(data).digest()


def test_everything_else_passes_through_in_its_order() -> None:
    member = Member(Entry(b"f", Kind.REGULAR, size=1), 0, 512, 1)
    cuts: list[Cut] = [member, Piece(b"x"), Hole(5), FileEnd(None), Gap(b"y")]
    kinds = [type(item) for item in compress_cuts(cuts, 3)]
    assert kinds == [Member, Frames, Hole, FileEnd, Frames]


def test_level() -> None:
    fast, best = (compress_cuts([Piece(TEXT)], level)[0] for level in (1, 19))
    assert isinstance(fast, Frames)
    assert isinstance(best, Frames)
    assert len(best.data) < len(fast.data)
