"""zstd frames: their headers, their ends without decompressing, and one frame's bytes.

Source: RFC 8878, "Zstandard Compression and the application/zstd Media Type".
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from zstandard import ZstdDecompressor, ZstdError

from lazyimg_formats.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC: Final = b"\x28\xb5\x2f\xfd"
"""What a frame begins with."""

SKIPPABLE_HEADER: Final = 8
"""Bytes before a skippable frame's payload: magic and length."""

MAX_BLOCK: Final = 1 << 17
"""Bytes of one block, compressed or not."""

START: Final = 5
"""Bytes of a frame that say how long its header is."""

BLOCK_HEADER: Final = 3
"""Bytes before a block's."""

CHECKSUM: Final = 4
"""Bytes behind the last block of a frame that has a checksum."""

_SKIPPABLE_MAGIC: Final = b"\x50\x2a\x4d\x18"
_SKIPPABLE_TAIL: Final = b"\x2a\x4d\x18"
_U32: Final = struct.Struct("<I")
_CONTENT_SIZES: Final = (0, 2, 4, 8)
_DICTIONARY_SIZES: Final = (0, 1, 2, 4)
_RLE: Final = 1
_RESERVED: Final = 3
_MAX_WINDOW_EXPONENT: Final = 31


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """What a frame says of itself.

    Attributes:
        length: bytes of the header.
        content_size: bytes when decoded; None: not said.
        window_size: bytes of memory that decoding needs.
        dictionary_id: 0: none.
        has_checksum: four bytes follow the last block.
    """

    length: int
    content_size: int | None
    window_size: int
    dictionary_id: int
    has_checksum: bool


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a blob: `content_size` as in `FrameHeader`, 0 for a skippable one."""

    offset: int
    length: int
    content_size: int | None
    skippable: bool


def is_skippable(data: bytes | memoryview, offset: int = 0) -> bool:
    """Tell whether a skippable frame begins at `offset`."""
    return (
        len(data) - offset >= _U32.size
        and data[offset] & 0xF0 == _SKIPPABLE_MAGIC[0]
        and bytes(data[offset + 1 : offset + 4]) == _SKIPPABLE_TAIL
    )


def parse_frame_header(data: bytes | memoryview, offset: int = 0) -> FrameHeader:
    """Give the header of the frame at `offset`.

    Raises:
        FormatError: no frame begins there, or its header is cut short.
    """
    end = offset + parse_header_length(data, offset)
    descriptor = data[offset + 4]
    single = descriptor & 0x20
    dictionary_size, content_length = _field_sizes(descriptor)
    at = end - dictionary_size - content_length
    if len(data) < end:
        raise FormatError("zstd frame", "header is cut short")
    dictionary = int.from_bytes(data[at : at + dictionary_size], "little")
    content: int | None = None
    if content_length:
        content = int.from_bytes(data[end - content_length : end], "little")
        if content_length == 2:
            content += 256
    if single:
        window = content or 0
    else:
        base = 1 << (10 + (data[offset + START] >> 3))
        window = base + (base >> 3) * (data[offset + START] & 7)
    return FrameHeader(end - offset, content, window, dictionary, bool(descriptor & 4))


def parse_header_length(data: bytes | memoryview, offset: int = 0) -> int:
    """Give the bytes of the header of the frame at `offset`, whose first `START` bytes are there.

    Raises:
        FormatError: no frame begins there, or it is cut short.
    """
    if bytes(data[offset : offset + 4]) != MAGIC:
        raise FormatError("zstd frame", f"no magic at byte {offset}")
    if len(data) < offset + START:
        raise FormatError("zstd frame", "header is cut short")
    descriptor = data[offset + 4]
    if descriptor & 0x08:
        raise FormatError("zstd frame", "a reserved bit is set")
    return START + (0 if descriptor & 0x20 else 1) + sum(_field_sizes(descriptor))


def _field_sizes(descriptor: int) -> tuple[int, int]:
    """Give the bytes of a dictionary's number and of the content's size."""
    least = 1 if descriptor & 0x20 else 0
    return _DICTIONARY_SIZES[descriptor & 3], _CONTENT_SIZES[descriptor >> 6] or least


def parse_block_header(data: bytes | memoryview, offset: int = 0) -> tuple[int, bool]:
    """Give how many bytes the block has behind its header at `offset`, and whether it is the last.

    Raises:
        FormatError: it is cut short, or no block.
    """
    if len(data) < offset + BLOCK_HEADER:
        raise FormatError("zstd frame", f"cut short: no block at byte {offset}")
    block = data[offset] | data[offset + 1] << 8 | data[offset + 2] << 16
    kind, size = block >> 1 & 3, block >> 3
    if kind == _RESERVED or size > MAX_BLOCK:
        raise FormatError("zstd frame", f"impossible block at byte {offset}")
    return 1 if kind == _RLE else size, block & 1 != 0


def find_frame_end(data: bytes | memoryview, offset: int = 0) -> int:
    """Give where the frame at `offset` ends, by its blocks' headers; nothing is decoded.

    Raises:
        FormatError: no frame begins there, or it is cut short.
    """
    if is_skippable(data, offset):
        if len(data) < offset + SKIPPABLE_HEADER:
            raise FormatError("zstd frame", "header is cut short")
        at = offset + SKIPPABLE_HEADER + int.from_bytes(data[offset + 4 : offset + 8], "little")
    else:
        header = parse_frame_header(data, offset)
        at = _find_blocks_end(data, offset + header.length) + CHECKSUM * header.has_checksum
    if at > len(data):
        raise FormatError("zstd frame", f"cut short: ends at byte {at}, got {len(data)}")
    return at


def _find_blocks_end(data: bytes | memoryview, at: int) -> int:
    while True:
        length, is_last = parse_block_header(data, at)
        at += BLOCK_HEADER + length
        if is_last:
            return at


def iterate_frames(data: bytes | memoryview) -> Iterator[Frame]:
    """Give the frames that `data` consists of.

    Raises:
        FormatError: it does not consist of frames.
    """
    offset = 0
    while offset < len(data):
        end = find_frame_end(data, offset)
        skippable = is_skippable(data, offset)
        content = 0 if skippable else parse_frame_header(data, offset).content_size
        yield Frame(offset, end - offset, content, skippable)
        offset = end


def serialize_skippable(payload: bytes) -> bytes:
    """Give a skippable frame: decoders of zstd pass over it."""
    return serialize_skippable_header(len(payload)) + payload


def serialize_skippable_header(length: int) -> bytes:
    """Give what stands before the payload of a skippable frame, of `length` bytes."""
    return _SKIPPABLE_MAGIC + _U32.pack(length)


class _Decoders(threading.local):
    """One decompressor for each thread: it costs more to make than a small frame to decode."""

    def __init__(self) -> None:
        self.decompress = ZstdDecompressor().decompress


_decoders = _Decoders()


def decode_frame(data: bytes | memoryview, max_length: int) -> bytes:
    """Give the bytes in one frame.

    Args:
        data: the frame, whole, and nothing else.
        max_length: the most bytes that it may decode to; no more memory than that is used.

    Raises:
        FormatError: no single whole frame, damaged, over `max_length`, or needs a dictionary.
    """
    if is_skippable(data):
        raise FormatError("zstd frame", "expected data, got a skippable frame")
    header = parse_frame_header(data)
    if header.dictionary_id:
        raise FormatError("zstd frame", f"needs dictionary {header.dictionary_id}")
    if header.content_size is not None and header.content_size > max_length:
        raise FormatError(
            "zstd frame", f"holds {header.content_size} bytes, at most {max_length} expected"
        )
    end = find_frame_end(data)
    if end != len(data):
        raise FormatError("zstd frame", f"ends at byte {end} of {len(data)}")
    try:
        decoded = _decoders.decompress(data, max_output_size=max(max_length, 1))
    except ZstdError as error:
        raise FormatError("zstd frame", f"cannot be decoded: {error}") from error
    if len(decoded) > max_length:
        raise FormatError("zstd frame", f"holds more than the {max_length} bytes expected")
    return decoded
