"""Spans decode to exactly what was promised, or not at all."""

from __future__ import annotations

import gzip
import hashlib
import struct

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from lazyimg.errors import CorruptError
from lazyimg.fill.decode import decode_into, decode_span, decode_spans
from lazyimg_formats.device_table import Codec, Span
from tests.fakes.devices import aligned_device, encode, pattern

CONTENT = pattern(5000, 1)


def span_of(stored: bytes, codec: Codec, content: bytes = CONTENT) -> Span:
    return Span(100, len(stored), len(content), hashlib.sha256(content).digest(), codec)


def decode(stored: bytes, codec: Codec, content: bytes = CONTENT) -> bytes:
    return decode_span("dev", span_of(stored, codec, content), memoryview(stored))


@pytest.mark.parametrize("codec", list(Codec))
def test_whole_truncated_trailing_and_flipped(codec: Codec) -> None:
    stored = encode(CONTENT, codec)
    assert decode(stored, codec) == CONTENT
    for end in range(0, len(stored), 7):
        with pytest.raises(CorruptError, match=r"^device dev: bytes 100-\d+ of its blob: "):
            decode(stored[:end], codec)
    with pytest.raises(CorruptError):
        decode(stored + b"\0", codec)
    for position in range(0, len(stored), 5):
        flipped = bytearray(stored)
        flipped[position] ^= 0x10
        try:
            assert decode(bytes(flipped), codec) == CONTENT  # in a header, it may mean nothing
        except CorruptError:
            continue


def test_wrong_digest() -> None:
    other = hashlib.sha256(b"other").digest()
    span = Span(0, 5, 5, other, Codec.RAW)
    with pytest.raises(CorruptError) as caught:
        decode_span("dev", span, memoryview(b"bytes"))
    assert str(caught.value) == (
        "device dev: bytes 0-4 of its blob: expected digest "
        f"sha256:{other.hex()}, got sha256:{hashlib.sha256(b'bytes').hexdigest()}"
    )


def test_raw_of_another_length() -> None:
    with pytest.raises(CorruptError, match="does not decode as RAW: expected 5000 bytes, got 3"):
        decode(b"abc", Codec.RAW)


def test_zstd_frame_without_content_size() -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    assert decode(compressor.compress(CONTENT), Codec.ZSTD) == CONTENT
    with pytest.raises(CorruptError, match="does not decode as ZSTD: "):
        decode(compressor.compress(CONTENT + b"x"), Codec.ZSTD)
    with pytest.raises(CorruptError, match="expected 5000 bytes decoded, got 4999"):
        decode(compressor.compress(CONTENT[:-1]), Codec.ZSTD)


def test_zstd_frame_that_says_it_is_huge() -> None:
    stored = struct.pack("<IBQ", 0xFD2FB528, 0xE0, 1 << 50) + b"\1\0\0"
    with pytest.raises(CorruptError, match="the frame says 1125899906842624 bytes, expected 5000"):
        decode(stored, Codec.ZSTD)


def test_zstd_of_several_frames() -> None:
    half = zstandard.ZstdCompressor().compress(CONTENT[:2500])
    with pytest.raises(CorruptError, match="the frame says 2500 bytes, expected 5000"):
        decode(half + half, Codec.ZSTD)


def test_gzip_that_is_larger_or_shorter() -> None:
    with pytest.raises(CorruptError, match="does not decode as GZIP: not exactly one member"):
        decode(gzip.compress(CONTENT + bytes(1 << 20)), Codec.GZIP)
    with pytest.raises(CorruptError, match="expected 5000 bytes decoded, got 5001"):
        decode(gzip.compress(CONTENT + b"x"), Codec.GZIP)
    with pytest.raises(CorruptError, match="expected 5000 bytes decoded, got 4999"):
        decode(gzip.compress(CONTENT[:-1]), Codec.GZIP)


def test_gzip_of_two_members() -> None:
    half = gzip.compress(CONTENT[:2500])
    with pytest.raises(CorruptError, match="not exactly one member"):
        decode(half + half, Codec.GZIP)


@given(st.binary(max_size=200), st.sampled_from(Codec))
def test_any_bytes_decode_or_are_corrupt(data: bytes, codec: Codec) -> None:
    try:
        decoded = decode(data, codec, b"x" * 10)
    except CorruptError:
        return
    assert decoded == b"x" * 10


def decode_in_place(stored: bytes, codec: Codec, content: bytes = CONTENT) -> bytes:
    buffer = bytearray(b"!" * len(content))
    decode_into("dev", span_of(stored, codec, content), memoryview(stored), memoryview(buffer))
    return bytes(buffer)


@pytest.mark.parametrize("codec", list(Codec))
def test_in_place_whole_truncated_trailing_and_flipped(codec: Codec) -> None:
    stored = encode(CONTENT, codec)
    assert decode_in_place(stored, codec) == CONTENT
    for end in range(0, len(stored), 7):
        with pytest.raises(CorruptError, match=r"^device dev: bytes 100-\d+ of its blob: "):
            decode_in_place(stored[:end], codec)
    with pytest.raises(CorruptError):
        decode_in_place(stored + b"\0\0\0\0\0", codec)
    for position in range(0, len(stored), 5):
        flipped = bytearray(stored)
        flipped[position] ^= 0x10
        try:
            assert decode_in_place(bytes(flipped), codec) == CONTENT
        except CorruptError:
            continue


def test_in_place_zstd_of_other_lengths() -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    assert decode_in_place(compressor.compress(CONTENT), Codec.ZSTD) == CONTENT
    with pytest.raises(CorruptError, match="expected 5000 bytes decoded, got 5001"):
        decode_in_place(compressor.compress(CONTENT + b"xy"), Codec.ZSTD)
    with pytest.raises(CorruptError, match="expected 5000 bytes decoded, got 4999"):
        decode_in_place(compressor.compress(CONTENT[:-1]), Codec.ZSTD)
    half = zstandard.ZstdCompressor().compress(CONTENT[:2500])
    with pytest.raises(CorruptError, match="the frame says 2500 bytes, expected 5000"):
        decode_in_place(half + half, Codec.ZSTD)
    with pytest.raises(CorruptError, match="expected digest sha256:"):
        decode_in_place(compressor.compress(CONTENT[::-1]), Codec.ZSTD)


@given(st.binary(max_size=200), st.sampled_from(Codec))
def test_any_bytes_decode_in_place_or_are_corrupt(data: bytes, codec: Codec) -> None:
    try:
        decoded = decode_in_place(data, codec, b"x" * 10)
    except CorruptError:
        return
    assert decoded == b"x" * 10


def test_spans_of_one_piece_of_the_blob() -> None:
    device = aligned_device(4, gap=10, shift=5)
    start = device.table.blob_range(1)[0] - 4
    data = bytearray(device.blob[start:])
    data[4 + 8192 + 10] ^= 1
    good, bad = decode_spans(device.table, [1, 2, 3], start, bytes(data))
    assert good == {1: device.content[8192:16_384], 3: device.content[24_576:]}
    assert list(bad) == [2]
    assert "expected digest" in str(bad[2])
