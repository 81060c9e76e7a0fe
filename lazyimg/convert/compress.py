"""Cuts of a tar to frames: the work that takes the time, for a thread of its own."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from zstandard import ZstdCompressor

from lazyimg.convert.cut import MAX_PIECE, Cut, FileEnd, Gap, Hole, Piece
from lazyimg_formats.tar.scanner import Member
from lazyimg_formats.tar_split import TarSplit

if TYPE_CHECKING:
    from collections.abc import Sequence

_ZEROS: Final = bytes(MAX_PIECE)
_LEAST_ZEROS: Final = 4096


class Frames(NamedTuple):
    """Compressed bytes.

    Attributes:
        data: whole frames.
        length: bytes of a file; 0: none of a file.
        digest: sha256 of them; None: they are all zero.
    """

    data: bytes
    length: int
    digest: bytes | None


Packed = Member | Hole | FileEnd | Frames | TarSplit
"""A cut whose bytes, if it has any, are compressed."""


def compress_cuts(cuts: Sequence[Cut], level: int) -> list[Packed]:
    """Give the cuts with the bytes in them compressed."""
    compress = ZstdCompressor(level=level).compress
    result: list[Packed] = []
    for cut in cuts:
        if isinstance(cut, Piece):
            data = cut.data
            length = len(data)
            if length >= _LEAST_ZEROS and not data[0] and bytes(data) == _ZEROS[:length]:
                result.append(Frames(_compress_zeros(length, level), length, None))
            else:
                result.append(Frames(compress(data), length, hashlib.sha256(data).digest()))
        elif isinstance(cut, Gap):
            result.append(Frames(compress(cut.data), 0, None))
        else:
            result.append(cut)
    return result


@lru_cache(maxsize=64)
def _compress_zeros(length: int, level: int) -> bytes:
    return ZstdCompressor(level=level).compress(bytes(length))
