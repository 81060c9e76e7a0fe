"""Parts of zstd streams: whole, in every step, cut short, damaged, and bombs."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zstandard import ZstdCompressor, ZstdDecompressor, ZstdError

from lazyimg_formats.errors import FormatError
from lazyimg_formats.zstd_frames import MAX_BLOCK, serialize_skippable
from lazyimg_formats.zstd_stream import StreamCutter

TEXT = b"".join(b"line %d\n" % number for number in range(40_000))
MOST = 200_000


def stream(data: bytes, *, checksum: bool = False) -> bytes:
    """Give a frame that does not say how long it is."""
    compressor = ZstdCompressor(level=1, write_checksum=checksum).compressobj()
    return compressor.compress(data) + compressor.flush()


SAMPLES = {
    "frame": ZstdCompressor(level=3).compress(TEXT),
    "checksum": stream(TEXT, checksum=True) + stream(b"", checksum=True),
    "zeros": stream(bytes(30 * MAX_BLOCK)),
    "frames": (
        serialize_skippable(b"x" * 300_000)
        + b"".join(ZstdCompressor().compress(TEXT[at : at + 900]) for at in range(0, 90_000, 900))
        + serialize_skippable(b"")
    ),
}


def parts_of(data: bytes, step: int) -> list[bytes]:
    cutter = StreamCutter(MOST)
    parts: list[bytes] = []
    for at in range(0, len(data), step):
        parts += map(bytes, cutter.cut(data[at : at + step]))
    cutter.finish()
    return parts


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000, 1 << 26])
@pytest.mark.parametrize("name", SAMPLES)
def test_parts(name: str, step: int) -> None:
    data = SAMPLES[name][: None if step > 9 else 4000]
    cutter = StreamCutter(MOST)
    decoder = ZstdDecompressor().decompressobj(read_across_frames=True)
    taken = 0
    for at in range(0, len(data), step):
        for part in cutter.cut(data[at : at + step]):
            assert part == data[taken : taken + len(part)]
            taken += len(part)
            assert len(decoder.decompress(part)) < MOST + 2 * MAX_BLOCK
    assert taken == len(data)


def test_no_bytes() -> None:
    assert parts_of(b"", 1) == []
    assert list(StreamCutter(MOST).cut(b"")) == []


def test_small_frames_share_parts() -> None:
    assert len(parts_of(SAMPLES["frames"], 1 << 26)) < 4
    assert len(parts_of(SAMPLES["zeros"], 1 << 26)) == 16


@pytest.mark.parametrize("name", SAMPLES)
def test_cut_short(name: str) -> None:
    data = SAMPLES[name]
    for end in (*range(1, 30), len(data) // 2, len(data) - 1):
        with pytest.raises(FormatError, match=r"^zstd: cut short$"):
            parts_of(data[:end], 1000)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"GARBAGE", "no magic at byte 0 of what begins at byte 0"),
        (stream(b"x") + bytes(9), "no magic at byte 0 of what begins at byte 10"),
        (b"\x28\xb5\x2f\xfd\x08\0", "a reserved bit is set of what begins at byte 0"),
        (stream(b"x")[:6] + b"\6\0\0", "impossible block at byte 0 of what begins at byte 6"),
        (stream(b"x")[:6] + b"\xff" * 3, "impossible block at byte 0 of what begins at byte 6"),
    ],
    ids=["garbage", "tail", "reserved bit", "kind", "size"],
)
@pytest.mark.parametrize("step", [1, 100])
def test_no_stream(data: bytes, problem: str, step: int) -> None:
    with pytest.raises(FormatError, match=f"^zstd: {re.escape(problem)}$"):
        parts_of(data, step)


def test_what_comes_before_the_damage_is_given() -> None:
    data = SAMPLES["zeros"]
    parts = StreamCutter(MOST).cut(data + b"GARBAGE")
    given = [bytes(next(parts)) for _ in range(14)]
    assert data.startswith(b"".join(given))
    with pytest.raises(FormatError, match="no magic"):
        list(parts)


def test_frame_that_lies_about_its_size() -> None:
    """It says that it holds one byte, in a window of 1 MiB; its blocks repeat theirs."""
    repeated = ((MAX_BLOCK << 3) | 2).to_bytes(3, "little") + b"\0"
    data = b"\x28\xb5\x2f\xfd\x80\x50" + (1).to_bytes(4, "little") + repeated * 100
    parts = list(StreamCutter(MOST).cut(data))
    assert max(map(len, parts)) <= 10 + 2 * len(repeated)
    decoder = ZstdDecompressor().decompressobj(read_across_frames=True)
    with pytest.raises(ZstdError, match="too small"):
        decoder.decompress(parts[0])


@given(st.binary(max_size=400), st.integers(1, 50), st.sampled_from(list(SAMPLES)))
def test_any_bytes(noise: bytes, step: int, name: str) -> None:
    data = SAMPLES[name][:2000] + noise
    cutter = StreamCutter(MOST)
    decoder = ZstdDecompressor().decompressobj(read_across_frames=True)
    try:
        for at in range(0, len(data), step):
            for part in cutter.cut(data[at : at + step]):
                assert len(decoder.decompress(part)) < MOST + 2 * MAX_BLOCK
    except (FormatError, ZstdError):
        pass
