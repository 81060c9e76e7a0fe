"""Spans decode to exactly what was promised, or not at all."""

from __future__ import annotations

import gzip
import hashlib
import struct
import tracemalloc
import zlib
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import zstandard
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from lazyimg.errors import CorruptError, StorageError
from lazyimg.fill import decode as decode_module
from lazyimg.fill.decode import decode_into, decode_span, decode_spans
from lazyimg_formats.device_table import (
    PARTS,
    Codec,
    DeviceColumns,
    DeviceTable,
    Hash,
    Span,
    serialize_device_table,
)
from lazyimg_formats.errors import FormatError
from lazyimg_formats.gzip_spans import digest_input
from tests.fakes.devices import SpanPlan, aligned_device, encode, make_device, pattern

if TYPE_CHECKING:
    from collections.abc import Callable

CONTENT = pattern(5000, 1)


def span_of(stored: bytes, codec: Codec, content: bytes = CONTENT) -> Span:
    return Span(100, len(stored), len(content), hashlib.sha256(content).digest(), codec)


def decode(stored: bytes, codec: Codec, content: bytes = CONTENT) -> bytes:
    return decode_span("dev", span_of(stored, codec, content), memoryview(stored))


@pytest.mark.parametrize("codec", [Codec.RAW, Codec.ZSTD])
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


@pytest.mark.parametrize("codec", sorted(PARTS))
@pytest.mark.parametrize("skip", [0, 700, 600_000])
def test_part_whole_truncated_and_flipped(codec: Codec, skip: int) -> None:
    stored = encode(b"-" * skip + CONTENT + b"behind" * 1000, codec)
    span = replace(span_of(stored, codec), skip=skip)
    assert decode_span("dev", span, memoryview(stored)) == CONTENT
    if codec is not Codec.LZ4_PART:  # a block does not say where it ends
        assert decode_span("dev", span, memoryview(stored + b"another member")) == CONTENT
    for end in range(0, len(stored) // 3, 7):
        with pytest.raises(CorruptError, match=r"^device dev: bytes 100-\d+ of its blob: "):
            decode_span("dev", span, memoryview(stored[:end]))
    for position in range(0, len(stored), 5):
        flipped = bytearray(stored)
        flipped[position] ^= 0x10
        with suppress(CorruptError):
            assert decode_span("dev", span, memoryview(flipped)) == CONTENT


@pytest.mark.parametrize("codec", sorted(PARTS))
@pytest.mark.parametrize("skip", [1, 5000, 5001, 1 << 20])
def test_part_behind_the_end(codec: Codec, skip: int) -> None:
    stored = encode(CONTENT, codec)
    with pytest.raises(CorruptError, match="expected 5000 bytes decoded, got "):
        decode_span("dev", replace(span_of(stored, codec), skip=skip), memoryview(stored))


@pytest.mark.parametrize("codec", sorted(PARTS - {Codec.LZ4_PART}))
def test_bomb_behind_a_part_is_not_decoded(codec: Codec) -> None:
    stored = encode(CONTENT + bytes(64 << 20), codec)
    tracemalloc.start()
    try:
        assert decode(stored, codec) == CONTENT
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2 << 20


def test_part_of_the_first_member_only() -> None:
    half = encode(CONTENT[:2500], Codec.GZIP)
    with pytest.raises(CorruptError, match="expected 5000 bytes decoded, got 2500"):
        decode(half + half, Codec.GZIP)


def test_large_part_of_a_member() -> None:
    """All that the decoder is given at once: it is wanted."""
    content = pattern(3 << 20, 7)
    member = encode(content + pattern(1 << 20, 8), Codec.GZIP)
    assert decode(member, Codec.GZIP, content) == content
    with pytest.raises(CorruptError, match=r"does not decode as GZIP|bytes decoded, got"):
        decode(member[: len(member) // 2], Codec.GZIP, content)


def test_part_of_a_frame_that_needs_much_memory() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    stored = compressor.compress(CONTENT) + compressor.flush()
    with pytest.raises(CorruptError, match=r"does not decode as ZSTD_PART: .* memory"):
        decode(stored, Codec.ZSTD_PART)


@pytest.mark.parametrize("codec", sorted(PARTS))
def test_parts_of_one_member(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """They cost one pass, unless they are not asked for in order; a bad one does no harm."""
    plans = [SpanPlan(pattern(900, i), codec, skip=100, joined=i not in {0, 3}) for i in range(5)]
    device = make_device(plans)
    opened = []

    def count(span: Span, data: memoryview, window: Callable[[], bytes]) -> object:
        opened.append(len(data))
        return open_stream(span, data, window)

    open_stream = decode_module._open_stream
    monkeypatch.setattr(decode_module, "_open_stream", count)
    contents = {i: plan.content for i, plan in enumerate(plans)}
    assert decode_spans(device.table, range(5), 0, device.blob) == (contents, {})
    assert opened == [device.table.blob_range(0)[1], device.table.blob_range(3)[1]]
    assert decode_spans(device.table, [2, 0, 1], 0, device.blob)[1] == {}
    assert len(opened) == 4

    spans = [device.table.span(i) for i in range(5)]
    spans[1] = replace(spans[1], digest=bytes(32))
    extents = [device.table.extent(i) for i in range(5)]
    lying = DeviceTable(serialize_device_table(device.table.size, extents, spans))
    good, bad = decode_spans(lying, range(5), 0, device.blob)
    assert (sorted(good), sorted(bad)) == ([0, 2, 3, 4], [1])


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


@pytest.mark.parametrize("codec", [Codec.RAW, Codec.ZSTD])
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


def stretch_of(content: bytes, window: bytes) -> bytes:
    """Give a stretch of a deflate stream that refers to what comes before it."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=window)
    return stream.compress(content) + stream.flush(zlib.Z_SYNC_FLUSH)


WINDOW = bytes(range(256)) * 128


def test_stretch_with_its_window() -> None:
    content = WINDOW[100:20_000] + b"new" + WINDOW[:1000]
    stored = stretch_of(content, WINDOW)
    assert len(stored) < 500
    span = span_of(stored, Codec.DEFLATE, content)
    assert decode_span("dev", span, memoryview(stored), lambda: WINDOW) == content
    buffer = bytearray(len(content))
    decode_into("dev", span, memoryview(stored), memoryview(buffer), lambda: WINDOW)
    assert buffer == content


def test_stretch_that_goes_on_is_cut() -> None:
    stored = stretch_of(b"more than is wanted", b"")
    span = span_of(stored, Codec.DEFLATE, b"more")
    assert decode_span("dev", span, memoryview(stored)) == b"more"


@pytest.mark.parametrize("end", [0, 1, 2, 100])
def test_stretch_that_is_cut_short(end: int) -> None:
    stored = stretch_of(CONTENT, b"")
    assert len(stored) > end
    with pytest.raises(CorruptError, match=r"expected 5000 bytes decoded, got|no bytes|DEFLATE"):
        decode(stored[:end], Codec.DEFLATE)


def test_stretch_whose_first_byte_holds_all_of_it() -> None:
    """Blocks of nothing stand before its bits, so the first byte may end it."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    stored = stream.compress(b"x") + stream.flush()
    value = int.from_bytes(stored, "little")
    for skip in range(8):
        shifted = (value << skip | (1 << skip) - 1).to_bytes(len(stored) + 1, "little")
        span = Span(0, len(shifted), 1, hashlib.sha256(b"x").digest(), Codec.DEFLATE, bit=skip)
        assert decode_span("dev", span, memoryview(shifted)) == b"x"


def test_stretch_with_another_window() -> None:
    content = WINDOW[100:20_000]
    stored = stretch_of(content, WINDOW)
    span = span_of(stored, Codec.DEFLATE, content)
    with pytest.raises(CorruptError):
        decode_span("dev", span, memoryview(stored))
    with pytest.raises(CorruptError, match="expected digest"):
        decode_span("dev", span, memoryview(stored), lambda: WINDOW[::-1])


def test_stretch_whose_window_is_damaged() -> None:
    def window() -> bytes:
        raise FormatError("zstd frame", "cut short")

    span = span_of(b"x", Codec.DEFLATE, b"x")
    with pytest.raises(StorageError) as caught:
        decode_span("dev", span, memoryview(b"x"), window)
    assert str(caught.value) == (
        "device dev: its table cannot be used: zstd frame: cut short; mount the image again"
    )


def input_span(stored: bytes, length: int, window: bytes = b"", bit: int = 0) -> Span:
    digest = digest_input(hashlib.sha256(stored).digest(), hashlib.sha256(window).digest())
    return Span(0, len(stored), length, digest, Codec.GZIP_STRETCH, bit=bit)


def test_stretch_that_goes_on_into_other_members() -> None:
    content = WINDOW[100:20_000]
    first = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=WINDOW)
    stored = first.compress(content) + first.flush() + b"trailer."
    stored += gzip.compress(b"") + gzip.compress(CONTENT * 20) + gzip.compress(b"last")
    whole = content + CONTENT * 20 + b"last"
    for length in (1, len(content), len(content) + 1, len(whole) - 4, len(whole)):
        span = input_span(stored, length, WINDOW)
        assert decode_span("dev", span, memoryview(stored), lambda: WINDOW) == whole[:length]
    span = input_span(stored, len(whole) + 1, WINDOW)
    with pytest.raises(CorruptError, match=f"expected {len(whole) + 1} bytes decoded, got"):
        decode_span("dev", span, memoryview(stored), lambda: WINDOW)


def test_stretch_of_inputs_at_every_bit() -> None:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    stored = stream.compress(b"x") + stream.flush()
    value = int.from_bytes(stored, "little")
    for skip in range(8):
        shifted = (value << skip | (1 << skip) - 1).to_bytes(len(stored) + 1, "little")
        assert decode_span("dev", input_span(shifted, 1, bit=skip), memoryview(shifted)) == b"x"


@pytest.mark.parametrize("wrong", ["stored", "window"])
def test_stretch_of_other_inputs(wrong: str) -> None:
    """It is not even decoded: what it decodes to has no digest."""
    stored = stretch_of(WINDOW[100:20_000], WINDOW)
    given = stored[:-1] + b"!" if wrong == "stored" else stored
    window = WINDOW[::-1] if wrong == "window" else WINDOW
    with pytest.raises(CorruptError) as caught:
        decode_span("dev", input_span(stored, 19_900, WINDOW), memoryview(given), lambda: window)
    assert str(caught.value) == (
        f"device dev: bytes 0-{len(stored) - 1} of its blob: not the bytes that its index is"
        f" about: sha256:{hashlib.sha256(given).hexdigest()}"
    )


@pytest.mark.parametrize("stored", [b"", b"\x07", b"\3\0trailer.no gzip member", b"\3\0trailer"])
def test_stretch_of_inputs_that_decode_to_nothing(stored: bytes) -> None:
    """A lie of the index: its digests are right."""
    with pytest.raises(CorruptError, match=r"does not decode as GZIP_STRETCH|bytes decoded, got 0"):
        decode_span("dev", input_span(stored, 5), memoryview(stored))


def test_lz4_block_of_another_length() -> None:
    stored = encode(CONTENT, Codec.LZ4)
    assert decode(stored, Codec.LZ4) == CONTENT
    with pytest.raises(CorruptError, match="does not decode as LZ4: "):
        decode(stored, Codec.LZ4, CONTENT[:-1])
    with pytest.raises(CorruptError, match="expected 5001 bytes decoded, got 5000"):
        decode(stored, Codec.LZ4, CONTENT + b"x")


def test_lz4_bomb() -> None:
    stored = encode(CONTENT + bytes(64 << 20), Codec.LZ4_PART)
    with pytest.raises(CorruptError, match="does not decode as LZ4_PART: "):
        decode(stored, Codec.LZ4_PART)


def test_blake3() -> None:
    span = replace(span_of(CONTENT, Codec.RAW), digest=blake3(CONTENT).digest(), hash=Hash.BLAKE3)
    assert decode_span("dev", span, memoryview(CONTENT)) == CONTENT
    with pytest.raises(CorruptError, match=r"expected digest blake3:[0-9a-f]{64}, got blake3:"):
        decode_span("dev", span, memoryview(CONTENT[::-1]))


def test_stretch_that_goes_on_in_other_members() -> None:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=WINDOW)
    stored = stream.compress(WINDOW[100:9000]) + stream.flush() + b"trailer."
    stored += encode(CONTENT[:3000], Codec.GZIP)
    end = len(stored)
    stored += encode(CONTENT[3000:], Codec.GZIP)
    span = replace(span_of(stored, Codec.DEFLATE_PART), skip=8900)
    assert decode_span("dev", span, memoryview(stored), lambda: WINDOW) == CONTENT
    with pytest.raises(CorruptError, match="expected 5000 bytes decoded, got 3000"):
        decode_span("dev", span, memoryview(stored)[:end], lambda: WINDOW)


def test_stretch_of_too_many_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_module, "MAX_MEMBERS", 3)
    empty = encode(b"", Codec.GZIP)
    head = encode(b"", Codec.DEFLATE) + bytes(8)
    member = encode(CONTENT, Codec.GZIP)
    assert decode(head + empty * 2 + member, Codec.DEFLATE_PART) == CONTENT
    with pytest.raises(CorruptError, match="DEFLATE_PART: over 3 gzip members"):
        decode(head + empty * 3 + member, Codec.DEFLATE_PART)


def test_parts_of_a_stretch_have_its_window() -> None:
    stored = stretch_of(WINDOW[100:20_000], WINDOW)
    columns = DeviceColumns()
    parts = [WINDOW[100:4196], WINDOW[5000:9000], WINDOW[9000:13_000]]
    window = zstandard.compress(WINDOW)
    for number, (part, skip) in enumerate(zip(parts, [0, 4900, 8900], strict=True)):
        digest = hashlib.sha256(part).digest()
        columns.add_span(
            7, len(stored), len(part), digest, Codec.DEFLATE_PART, skip,
            window=b"" if number else window,
        )  # fmt: skip
        columns.add_extent(4096 * number, len(part), number, 0)
    table = DeviceTable(columns.serialize(3 * 4096))
    assert decode_spans(table, [0, 1, 2], 7, stored) == (dict(enumerate(parts)), {})
    assert decode_spans(table, [2], 7, stored) == ({2: parts[2]}, {})


def test_part_of_a_stretch_without_bytes() -> None:
    with pytest.raises(CorruptError, match="expected 5000 bytes decoded, got 0"):
        decode(b"", Codec.DEFLATE_PART)
