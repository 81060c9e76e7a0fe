"""Frames' bytes to frames: the work that takes the most time, for a thread of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from zstandard import ZstdCompressor

if TYPE_CHECKING:
    from collections.abc import Sequence


class Frames(NamedTuple):
    """Frames of zstd, one behind the other.

    Attributes:
        data: the frames.
        sizes: bytes of each.
    """

    data: bytes
    sizes: list[int]


def compress_frames(contents: Sequence[bytes | memoryview], level: int) -> Frames:
    """Compress each of `contents`, none of them empty, to a frame that tells its length.

    All of it is one call that does not hold the interpreter's lock: threads that take turns for
    each frame spend more time on that than on small frames.
    """
    if not contents:
        return Frames(b"", [])
    made: Any = ZstdCompressor(level=level).multi_compress_to_buffer(list(contents))
    segments = list(made)  # the stubs do not know that this can be done
    return Frames(b"".join(segments), list(map(len, segments)))
