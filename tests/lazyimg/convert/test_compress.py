"""Contents to frames."""

from __future__ import annotations

import pytest

from lazyimg.convert.compress import Frames, compress_frames
from lazyimg.convert.cut import MAX_PIECE
from lazyimg_formats.zstd_frames import decode_frame, iterate_frames

TEXT = b"".join(b"%d " % number for number in range(20_000))[:100_000]


@pytest.mark.parametrize("kind", [bytes, memoryview])
def test_every_content_has_its_frame(kind: type) -> None:
    contents = [TEXT, b"x", bytes(MAX_PIECE), TEXT[:700] * 100, *(TEXT[:n] for n in range(1, 2000))]
    made = compress_frames([kind(content) for content in contents], 3)
    frames = list(iterate_frames(made.data))
    assert [frame.length for frame in frames] == made.sizes
    assert [frame.content_size for frame in frames] == list(map(len, contents))
    for frame, content in zip(frames, contents, strict=True):
        assert decode_frame(made.data[frame.offset :][: frame.length], MAX_PIECE) == content


def test_a_frame_does_not_depend_on_those_beside_it() -> None:
    alone = compress_frames([TEXT], 3).data
    assert compress_frames([b"x" * 5000, TEXT, TEXT[:9]], 3).data.count(alone) == 1


def test_no_contents() -> None:
    assert compress_frames([], 3) == Frames(b"", [])


def test_level() -> None:
    fast, best = (compress_frames([TEXT], level) for level in (1, 19))
    assert len(best.data) < len(fast.data)
