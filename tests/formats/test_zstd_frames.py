"""zstd frames, against frames that libzstd made."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zstandard import (
    DICT_TYPE_RAWCONTENT,
    ZstdCompressionDict,
    ZstdCompressor,
    get_frame_parameters,
)

from lazyimg_formats.errors import FormatError
from lazyimg_formats.zstd_frames import (
    Frame,
    FrameHeader,
    decode_frame,
    find_frame_end,
    is_skippable,
    iterate_frames,
    parse_frame_header,
    serialize_skippable,
)

TEXT = b"".join(b"line %d of some text\n" % number for number in range(30_000))
SKIPPABLE = serialize_skippable(b"anything")


def compress(data: bytes, *, write_checksum: bool = False) -> bytes:
    return ZstdCompressor(level=3, write_checksum=write_checksum).compress(data)


def stream(data: bytes) -> bytes:
    """Give a frame that does not say how long its content is."""
    compressor = ZstdCompressor(level=3).compressobj()
    return compressor.compress(data) + compressor.flush()


def raw_frame(descriptor: int, fields: bytes, blocks: bytes = b"\x01\0\0") -> bytes:
    return b"\x28\xb5\x2f\xfd" + bytes([descriptor]) + fields + blocks


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_791, 65_792, 600_000])
@pytest.mark.parametrize("checksum", [False, True])
def test_header_as_libzstd_reads_it(size: int, checksum: bool) -> None:  # noqa: FBT001
    for data in (compress(TEXT[:size], write_checksum=checksum), stream(TEXT[:size])):
        header, expected = parse_frame_header(data), get_frame_parameters(data)
        content = None if expected.content_size == 2**64 - 1 else expected.content_size
        assert (header.content_size, header.window_size) == (content, expected.window_size)
        assert (header.dictionary_id, header.has_checksum) == (0, expected.has_checksum)


def test_header_with_everything() -> None:
    data = raw_frame(0b11000111, b"\x0b" + b"\1\2\3\4" + struct.pack("<Q", 1 << 40))
    assert parse_frame_header(data) == FrameHeader(
        length=18,
        content_size=1 << 40,
        window_size=2048 + 3 * 256,
        dictionary_id=0x04030201,
        has_checksum=True,
    )


def test_header_behind_other_bytes() -> None:
    assert parse_frame_header(b"xx" + compress(b"abc"), 2).content_size == 3


def test_header_with_a_reserved_bit() -> None:
    with pytest.raises(FormatError, match=r"^zstd frame: a reserved bit is set$"):
        parse_frame_header(raw_frame(0x28, b"\0"))


def test_header_without_magic() -> None:
    with pytest.raises(FormatError, match=r"^zstd frame: no magic at byte 0$"):
        parse_frame_header(b"\x1f\x8b\x08\0\0")


@pytest.mark.parametrize(
    "data", [compress(b""), compress(b"abc"), compress(TEXT), compress(TEXT, write_checksum=True)]
)
@pytest.mark.parametrize("tail", [b"", b"\0", compress(b"next")])
def test_end(data: bytes, tail: bytes) -> None:
    assert find_frame_end(data + tail) == len(data)
    assert find_frame_end(b"xyz" + data + tail, 3) == 3 + len(data)


def test_end_of_blocks_of_one_repeated_byte() -> None:
    data = compress(bytes(1 << 20))
    assert find_frame_end(data) == len(data) < 200


def test_end_of_a_skippable_frame() -> None:
    assert find_frame_end(SKIPPABLE + b"x") == len(SKIPPABLE) == 16


@pytest.mark.parametrize("block", [b"\x07\0\0", b"\x05\0\x20"])
def test_end_of_an_impossible_block(block: bytes) -> None:
    with pytest.raises(FormatError, match=r"^zstd frame: impossible block at byte 6$"):
        find_frame_end(raw_frame(0x20, b"\0", block))


@pytest.mark.parametrize(
    "data", [compress(b"abc"), compress(TEXT[:9000], write_checksum=True), SKIPPABLE]
)
def test_cut_short_at_every_byte(data: bytes) -> None:
    for end in range(len(data)):
        with pytest.raises(FormatError, match=r"^zstd frame: "):
            find_frame_end(data[:end])
        with pytest.raises(FormatError):
            decode_frame(data[:end], 10_000)


def test_frames() -> None:
    first, second = compress(b"abc"), stream(b"de")
    assert list(iterate_frames(first + SKIPPABLE + second)) == [
        Frame(0, len(first), 3, skippable=False),
        Frame(len(first), 16, 0, skippable=True),
        Frame(len(first) + 16, len(second), None, skippable=False),
    ]
    assert list(iterate_frames(b"")) == []


def test_frames_with_garbage_behind_them() -> None:
    with pytest.raises(FormatError, match="no magic at byte"):
        list(iterate_frames(compress(b"abc") + b"garbage"))


def test_skippable() -> None:
    assert is_skippable(b"\x5f\x2a\x4d\x18\0\0\0\0")
    assert not is_skippable(b"\x60\x2a\x4d\x18")
    assert not is_skippable(b"\x50\x2a\x4d\x19")
    assert not is_skippable(b"\x50\x2a\x4d")
    assert is_skippable(b"x" + SKIPPABLE, 1)


@pytest.mark.parametrize("make", [compress, stream])
@pytest.mark.parametrize("size", [0, 1, 4096, 600_000])
def test_decode(make: type, size: int) -> None:
    data = make(TEXT[:size])
    assert decode_frame(data, size) == TEXT[:size]
    assert decode_frame(memoryview(data), size + 1) == TEXT[:size]


@pytest.mark.parametrize("make", [compress, stream])
@pytest.mark.parametrize("limit", [0, 1, 599_999])
def test_decode_over_the_limit(make: type, limit: int) -> None:
    with pytest.raises(FormatError, match=r"^zstd frame: (holds|cannot be decoded)"):
        decode_frame(make(TEXT[:600_000]), limit)


def test_decode_one_byte_where_none_is_expected() -> None:
    with pytest.raises(FormatError, match=r"^zstd frame: holds more than the 0 bytes expected$"):
        decode_frame(stream(b"x"), 0)


def test_decode_says_what_it_expected() -> None:
    with pytest.raises(FormatError, match=r"^zstd frame: holds 3 bytes, at most 2 expected$"):
        decode_frame(compress(b"abc"), 2)


@pytest.mark.parametrize("content", [b"", b"abc"])
@pytest.mark.parametrize("tail", [b"\0", SKIPPABLE, compress(b"next")])
def test_decode_with_trailing_bytes(content: bytes, tail: bytes) -> None:
    data = compress(content)
    with pytest.raises(FormatError, match=rf"^zstd frame: ends at byte {len(data)} of "):
        decode_frame(data + tail, 100)


def test_decode_a_skippable_frame() -> None:
    with pytest.raises(FormatError, match="expected data, got a skippable frame"):
        decode_frame(SKIPPABLE, 100)


def test_decode_with_a_dictionary() -> None:
    data = raw_frame(0b00100001, b"\x07\0")
    with pytest.raises(FormatError, match=r"^zstd frame: needs dictionary 7$"):
        decode_frame(data, 100)


def test_decode_with_a_dictionary_that_has_no_number() -> None:
    dictionary = ZstdCompressionDict(TEXT[:5000], dict_type=DICT_TYPE_RAWCONTENT)
    data = ZstdCompressor(level=3, dict_data=dictionary).compress(TEXT[:3000])
    with pytest.raises(FormatError, match="cannot be decoded"):
        decode_frame(data, 3000)


def test_decode_with_a_wrong_checksum() -> None:
    data = bytearray(compress(TEXT, write_checksum=True))
    data[-1] ^= 1
    with pytest.raises(FormatError, match="cannot be decoded"):
        decode_frame(bytes(data), len(TEXT))


def test_decode_a_bomb() -> None:
    bomb = compress(bytes(256 << 20))
    assert len(bomb) < 20_000
    with pytest.raises(FormatError, match="holds 268435456 bytes, at most 131072 expected"):
        decode_frame(bomb, 131_072)
    with pytest.raises(FormatError, match="cannot be decoded"):
        decode_frame(stream(bytes(1 << 20)), 131_072)


def test_decode_a_frame_that_wants_a_window_of_2_gib() -> None:
    with pytest.raises(FormatError, match=r"cannot be decoded: .*too much memory"):
        decode_frame(raw_frame(0, b"\xa8", b"\x19\0\0abc"), 3)


@given(st.binary(max_size=5000))
def test_round_trip(data: bytes) -> None:
    frame = compress(data)
    assert decode_frame(frame, len(data)) == data


@given(st.binary(max_size=60))
def test_noise(data: bytes) -> None:
    for head in (b"", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"):
        with suppress(FormatError):
            assert len(decode_frame(head + data, 1000)) <= 1000
        try:
            frames = list(iterate_frames(head + data))
        except FormatError:
            continue
        assert sum(frame.length for frame in frames) == len(head + data)


@given(st.data())
def test_damaged(data: st.DataObject) -> None:
    frame = bytearray(compress(TEXT[:2000], write_checksum=True))
    frame[data.draw(st.integers(0, len(frame) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decoded = decode_frame(bytes(frame), 2000)
    except FormatError:
        return
    assert decoded == TEXT[:2000]
