"""Blobs to tars and spans, each of which decodes by itself."""

from __future__ import annotations

import gzip
import hashlib
import random
import zlib
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyimg.fill.decode import decode_span
from lazyimg.layers import stretches
from lazyimg.layers.stretches import (
    RAW_SPAN,
    Cut,
    GzipCutter,
    RawCutter,
    SpanCutter,
    ZstdCutter,
    choose_cutter,
)
from lazyimg_formats.device_table import Codec, Span
from lazyimg_formats.errors import FormatError
from lazyimg_formats.zstd_frames import serialize_skippable

if TYPE_CHECKING:
    from collections.abc import Callable

CHANCE = random.Random(7)  # noqa: S311 - the same bytes in every run
CONTENT = b"".join(
    CHANCE.randbytes(CHANCE.randrange(300)) + b"the same words " * CHANCE.randrange(50)
    for _ in range(1000)
)
SPACING = 50_000


def cut(cutter: SpanCutter, blob: bytes, step: int = 1 << 20) -> list[tuple[Cut, bytes]]:
    """Give the spans, each of which was decoded by itself, and what is in them."""
    parts: list[bytes | Cut] = []
    for at in range(0, len(blob), step):
        parts += cutter.feed(blob[at : at + step])
    parts += cutter.finish()
    spans, content = [], b""
    for part in parts:
        if not isinstance(part, Cut):
            content += part
            continue
        digest = hashlib.sha256(content).digest()
        span = Span(part.offset, part.length, len(content), digest, cutter.codec, bit=part.bit)
        stored = memoryview(blob)[part.offset : part.offset + part.length]
        assert decode_span("d", span, stored, partial(bytes, part.window)) == (content)
        spans.append((part, content))
        content = b""
    assert content == b""
    return spans


def deflate(content: bytes, level: int = 6, memory: int = 8, strategy: int = 0) -> bytes:
    stream = zlib.compressobj(level, zlib.DEFLATED, 31, memory, strategy)
    return stream.compress(content) + stream.flush()


def flushed(content: bytes, mode: int, every: int = 20_000) -> bytes:
    """Give one member whose blocks end where others than the compressor want it, as pigz does."""
    stream = zlib.compressobj(6, zlib.DEFLATED, 31)
    parts = [
        stream.compress(content[at : at + every]) + stream.flush(mode)
        for at in range(0, len(content), every)
    ]
    return b"".join(parts) + stream.flush()


@pytest.mark.parametrize(
    "compress",
    [
        deflate,
        lambda content: deflate(content, 9, 1),
        lambda content: deflate(content, 0),
        lambda content: deflate(content, 6, 8, zlib.Z_HUFFMAN_ONLY),
        lambda content: deflate(content, 6, 8, zlib.Z_FIXED),
        lambda content: flushed(content, zlib.Z_SYNC_FLUSH),
        lambda content: flushed(content, zlib.Z_FULL_FLUSH),
        lambda content: flushed(content, zlib.Z_BLOCK),
        lambda content: gzip.compress(content[:90_000]) + gzip.compress(content[90_000:]),
        lambda content: b"".join(map(gzip.compress, (b"", content[:1], b"", content[1:], b""))),
    ],
    ids=["6", "9", "stored", "huffman", "fixed", "sync", "full", "block", "two", "empty-ones"],
)
@pytest.mark.parametrize(("step", "size"), [(1 << 20, 1 << 20), (1000, 1 << 20), (1, 150_000)])
def test_gzip(compress: Callable[[bytes], bytes], step: int, size: int) -> None:
    content = CONTENT[:size]
    blob = compress(content)
    spans = cut(GzipCutter(SPACING), blob, step)
    assert b"".join(data for _, data in spans) == content
    assert len(spans) > 1 or compress(b"a" * 9) == deflate(b"a" * 9, 6, 8, zlib.Z_FIXED)


def test_gzip_spans_of_a_member_follow_each_other() -> None:
    spans = cut(GzipCutter(SPACING), deflate(CONTENT, 6, 2))
    assert len(spans) > 5
    for (before, _), (after, content) in pairwise(spans):
        assert after.offset == before.offset + before.length - bool(after.bit)
        assert len(after.window) == 32768
        assert SPACING <= len(content) < SPACING + 20_000 or after is spans[-1][0]


def test_gzip_spacing_decides_how_many() -> None:
    blob = deflate(CONTENT, 6, 2)
    few, many = (len(cut(GzipCutter(spacing), blob)) for spacing in (100_000, 20_000))
    assert 2 * few < many
    assert len(cut(choose_cutter(blob), blob)) == 1


def test_gzip_that_is_cut_short_or_goes_on() -> None:
    blob = deflate(CONTENT)
    for end in (5, 10, 1000, len(blob) - 1):
        with pytest.raises(FormatError, match=r"^gzip: cut short$"):
            cut(GzipCutter(SPACING), blob[:end])
    with pytest.raises(FormatError, match=r"^gzip: "):
        cut(GzipCutter(SPACING), blob + b"trailing")


def test_gzip_block_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stretches, "MAX_SPAN_SIZE", 200_000)
    blob = deflate(bytes(400_000), 6, 9)
    with pytest.raises(FormatError, match=r"^gzip: a block of over 150000 bytes$"):
        cut(GzipCutter(SPACING), blob)


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=200), st.integers(1, 50))
def test_gzip_of_any_bytes(data: bytes, step: int) -> None:
    try:
        cut(GzipCutter(1), b"\x1f\x8b\x08" + data, step)
    except FormatError:
        return


def frames(*sizes: int) -> bytes:
    blob, at = b"", 0
    for size in sizes:
        blob += zstandard.compress(CONTENT[at : at + size])
        at += size
    return blob + zstandard.compress(CONTENT[at:])


@pytest.mark.parametrize("step", [1 << 20, 1000, 1])
def test_zstd(step: int) -> None:
    blob = serialize_skippable(b"x" * 20) + frames(1000, 0, 200_000, 100) + serialize_skippable(b"")
    spans = cut(ZstdCutter(), blob, step)
    assert [len(content) for _, content in spans] == [1000, 200_000, 100, len(CONTENT) - 201_100]
    assert b"".join(content for _, content in spans) == CONTENT


def test_zstd_of_one_large_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stretches, "MAX_FRAME", 100_000)
    with pytest.raises(FormatError) as caught:
        cut(ZstdCutter(), zstandard.compress(CONTENT))
    assert str(caught.value) == (
        "zstd: a frame of over 0 MiB; nothing in a frame can be decoded without all that comes"
        " before it"
    )


def test_zstd_that_needs_much_memory() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    blob = compressor.compress(CONTENT) + compressor.flush()
    with pytest.raises(FormatError, match=r"^zstd: a frame of over 16 MiB;"):
        cut(ZstdCutter(), blob)


def test_zstd_that_is_damaged_or_cut_short() -> None:
    blob = frames(1000)
    with pytest.raises(FormatError, match=r"^zstd: cut short$"):
        cut(ZstdCutter(), blob[:-1])
    damaged = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(CONTENT))
    damaged[-1] ^= 1
    with pytest.raises(FormatError, match=r"^zstd: .*checksum"):
        cut(ZstdCutter(), bytes(damaged))


@pytest.mark.parametrize("step", [1 << 20, 100_000])
@pytest.mark.parametrize("size", [1, RAW_SPAN, RAW_SPAN + 1, 3 * RAW_SPAN])
def test_raw(size: int, step: int) -> None:
    content = (CONTENT * 9)[:size]
    spans = cut(RawCutter(), content, step)
    assert b"".join(data for _, data in spans) == content
    assert len(spans) == -(-size // RAW_SPAN)


def test_choice() -> None:
    assert choose_cutter(gzip.compress(b"")[:6]).codec is Codec.DEFLATE
    assert choose_cutter(zstandard.compress(b"")[:6]).codec is Codec.ZSTD
    assert choose_cutter(serialize_skippable(b"")).codec is Codec.ZSTD
    assert choose_cutter(b"etc/na").codec is Codec.RAW
    with pytest.raises(FormatError, match="layer: compressed with xz; gzip, zstd and none are"):
        choose_cutter(b"\xfd7zXZ\0")
