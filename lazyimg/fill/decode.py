"""Compressed bytes of a blob to checked bytes of spans. CPU work: runs in worker threads."""

from __future__ import annotations

import hashlib
import threading
import zlib
from typing import TYPE_CHECKING, Final

import zstandard

from lazyimg.errors import CorruptError
from lazyimg_formats.device_table import Codec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lazyimg_formats.device_table import DeviceTable, Span

_GZIP: Final = 16 + zlib.MAX_WBITS


class _Decompressors(threading.local):
    """One zstd decompressor for each thread: they are costly to make and cannot be shared."""

    def __init__(self) -> None:
        self.zstd = zstandard.ZstdDecompressor()


_decompressors = _Decompressors()


def decode_span(device: str, span: Span, data: memoryview) -> bytes:
    """Give the decoded bytes of a span, checked against its digest.

    Args:
        device: its name, for messages.
        span: what is expected.
        data: the span's bytes in the blob.

    Raises:
        CorruptError: `data` does not decode to exactly `span.length` bytes with that digest.
    """
    try:
        decoded = _DECODERS[span.codec](data, span.length)
    except (zstandard.ZstdError, zlib.error, ValueError) as error:
        raise _corrupt(device, span, f"does not decode as {span.codec.name}: {error}") from error
    if len(decoded) != span.length:
        raise _corrupt(device, span, f"expected {span.length} bytes decoded, got {len(decoded)}")
    _check_digest(device, span, decoded)
    return decoded


def decode_into(device: str, span: Span, data: memoryview, buffer: memoryview) -> None:
    """Put the decoded bytes of a span into `buffer`, and check them against its digest there.

    Args:
        device: its name, for messages.
        span: what is expected.
        data: the span's bytes in the blob.
        buffer: `span.length` bytes; holds anything when this raises.

    Raises:
        CorruptError: `data` does not decode to exactly `span.length` bytes with that digest.
    """
    if span.codec is Codec.ZSTD:
        try:
            size = _decode_zstd_into(data, buffer)
        except (zstandard.ZstdError, ValueError) as error:
            raise _corrupt(device, span, f"does not decode as ZSTD: {error}") from error
        if size != span.length:
            raise _corrupt(device, span, f"expected {span.length} bytes decoded, got {size}")
        _check_digest(device, span, buffer)
    else:
        buffer[:] = decode_span(device, span, data)


def _check_digest(device: str, span: Span, decoded: bytes | memoryview) -> None:
    digest = hashlib.sha256(decoded).digest()
    if digest != span.digest:
        raise _corrupt(
            device, span, f"expected digest sha256:{span.digest.hex()}, got sha256:{digest.hex()}"
        )


def _corrupt(device: str, span: Span, problem: str) -> CorruptError:
    last = span.blob_offset + span.blob_length - 1
    return CorruptError(
        f"device {device}", f"bytes {span.blob_offset}-{last} of its blob: {problem}"
    )


def _decode_raw(data: memoryview, length: int) -> bytes:
    if len(data) != length:
        raise ValueError(f"expected {length} bytes, got {len(data)}")
    return bytes(data)


def _check_frame(data: memoryview, length: int) -> None:
    said = zstandard.frame_content_size(data)  # what it says is allocated, so look first
    if said not in {-1, length}:
        raise ValueError(f"the frame says {said} bytes, expected {length}")


def _decode_zstd_into(data: memoryview, buffer: memoryview) -> int:
    """Give how many bytes there are: one more than fit means that there are more."""
    _check_frame(data, len(buffer))
    with _decompressors.zstd.stream_reader(data, read_across_frames=True) as reader:
        size = 0
        while size < len(buffer):
            taken = reader.readinto(buffer[size:])
            if not taken:
                return size
            size += taken
        return size + len(reader.read(1))


def _decode_zstd(data: memoryview, length: int) -> bytes:
    _check_frame(data, length)
    return _decompressors.zstd.decompress(data, max_output_size=length, allow_extra_data=False)


def _decode_gzip(data: memoryview, length: int) -> bytes:
    member = zlib.decompressobj(_GZIP)
    decoded = member.decompress(data, length + 1)  # one more, so that the trailer is read
    if not member.eof or member.unused_data:
        raise ValueError("not exactly one member of the expected length")
    return decoded


_DECODERS: Final = {
    Codec.RAW: _decode_raw,
    Codec.ZSTD: _decode_zstd,
    Codec.GZIP: _decode_gzip,
}


def decode_spans(
    table: DeviceTable, spans: Iterable[int], blob_offset: int, data: bytes
) -> tuple[dict[int, bytes], dict[int, CorruptError]]:
    """Give the decoded, checked bytes of each good span, and what is wrong with each bad one.

    Args:
        table: the device.
        spans: those that lie wholly in `data`.
        blob_offset: where `data` begins in the blob.
        data: bytes of the blob.
    """
    view = memoryview(data)
    good, bad = {}, {}
    for index in spans:
        span = table.span(index)
        start = span.blob_offset - blob_offset
        try:
            good[index] = decode_span(table.name, span, view[start : start + span.blob_length])
        except CorruptError as error:
            bad[index] = error
    return good, bad
