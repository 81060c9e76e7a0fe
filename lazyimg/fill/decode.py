"""Compressed bytes of a blob to checked bytes of spans. CPU work: runs in worker threads."""

from __future__ import annotations

import hashlib
import threading
import zlib
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import lz4.block
import zstandard

from lazyimg.errors import CorruptError, StorageError
from lazyimg_formats.device_table import INPUTS, PARTS, Codec
from lazyimg_formats.errors import FormatError
from lazyimg_formats.gzip_spans import digest_input, serialize_entry

try:
    from isal import isal_zlib as _inflate  # twice as fast as zlib
except ImportError:  # no wheel for this machine
    import zlib as _inflate  # type: ignore[no-redef]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from lazyimg_formats.device_table import DeviceTable, Span

MAX_WINDOW: Final = 64 << 20
"""Bytes that decoding a part of a zstd frame may remember, in each thread."""

MAX_LZ4: Final = 16 << 20
"""Bytes, decoded, of an lz4 block that has several spans."""

MAX_MEMBERS: Final = 1024
"""Gzip members that one stretch of a blob may go on in."""

_GZIP: Final = 16 + zlib.MAX_WBITS
_RAW_DEFLATE: Final = -zlib.MAX_WBITS
_ERRORS: Final[Any] = (
    zstandard.ZstdError, zlib.error, _inflate.error, lz4.block.LZ4BlockError, ValueError
)  # fmt: skip
_TRAILER: Final = 8  # bytes of a gzip member behind its deflate stream
_MEMBER_PIECE: Final = 32 << 10  # bytes: what is left of them at a member's end is copied
_LZ4_RATIO: Final = 255  # bytes that a byte of an lz4 block gives at most
_PIECE: Final = 256 << 10  # bytes of what is passed over that are decoded at a time
_MUCH: Final = 4 * _PIECE


class _Decompressors(threading.local):
    """One zstd decompressor for each thread: they are costly to make and cannot be shared."""

    def __init__(self) -> None:
        self.zstd = zstandard.ZstdDecompressor()
        self.parts = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)


_decompressors = _Decompressors()


def decode_span(
    device: str, span: Span, data: memoryview, window: Callable[[], bytes] = bytes
) -> bytes:
    """Give the decoded bytes of a span, checked against its digest.

    Args:
        device: its name, for messages.
        span: what is expected.
        data: the span's bytes in the blob.
        window: gives the decoded bytes before a stretch of a deflate stream, as
            `DeviceTable.window` does.

    Raises:
        CorruptError: `data` does not decode to exactly `span.length` bytes with that digest.
        StorageError: the table has no window of it any more.
    """
    return _decode(device, span, data, window, None)


def _decode(
    device: str,
    span: Span,
    data: memoryview,
    window: Callable[[], bytes],
    parts: _Parts | None,
) -> bytes:
    try:
        if span.codec in PARTS:
            parts = parts or _Parts(span, data, partial(_read_window, device, window))
            decoded = parts.take(span.skip, span.length)
        elif span.codec is Codec.DEFLATE:
            decoded = _decode_stretch(data, span.length, span.bit, _read_window(device, window))
        elif span.codec is Codec.GZIP_STRETCH:
            before = _read_window(device, window)
            _check_input(device, span, data, before)
            decoded = _decode_members(data, span.length, span.bit, before)
        else:
            decoded = _WHOLE[span.codec](data, span.length)
    except _ERRORS as error:
        raise _corrupt(device, span, f"does not decode as {span.codec.name}: {error}") from error
    if len(decoded) != span.length:
        raise _corrupt(device, span, f"expected {span.length} bytes decoded, got {len(decoded)}")
    if span.codec not in INPUTS:
        _check_digest(device, span, decoded)
    return decoded


def decode_into(
    device: str,
    span: Span,
    data: memoryview,
    buffer: memoryview,
    window: Callable[[], bytes] = bytes,
) -> None:
    """Put the decoded bytes of a span into `buffer`, and check them against its digest there.

    Args:
        device: its name, for messages.
        span: what is expected.
        data: the span's bytes in the blob.
        buffer: `span.length` bytes; holds anything when this raises.
        window: as `decode_span` takes it.

    Raises:
        CorruptError, StorageError: as `decode_span`.
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
        buffer[:] = decode_span(device, span, data, window)


def _check_digest(device: str, span: Span, decoded: bytes | memoryview) -> None:
    digest = span.hash.digest(decoded)
    if digest != span.digest:
        name = span.hash.name.lower()
        raise _corrupt(
            device, span, f"expected digest {name}:{span.digest.hex()}, got {name}:{digest.hex()}"
        )


def _check_input(device: str, span: Span, data: memoryview, window: bytes) -> None:
    stored = hashlib.sha256(data).digest()
    if digest_input(stored, hashlib.sha256(window).digest()) != span.digest:
        raise _corrupt(
            device, span, f"not the bytes that its index is about: sha256:{stored.hex()}"
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


def _read_window(device: str, window: Callable[[], bytes]) -> bytes:
    try:
        return window()
    except FormatError as error:
        raise StorageError(
            f"device {device}", f"its table cannot be used: {error}", "mount the image again"
        ) from error


def _decode_stretch(data: memoryview, length: int, bit: int, window: bytes) -> bytes:
    if not data:
        raise ValueError("no bytes")
    decoder = _inflate.decompressobj(_RAW_DEFLATE, zdict=window)
    head: bytes = decoder.decompress(serialize_entry(data[0], bit))
    if len(head) >= length:
        return head
    rest: bytes = decoder.decompress(data[1:], length - len(head))
    return head + rest if head else rest


def _decode_members(data: memoryview, length: int, bit: int, window: bytes) -> bytes:
    """Decode a stretch that may go on into further members; what follows `length` is left."""
    if not data:
        raise ValueError("no bytes")
    decoder = _inflate.decompressobj(_RAW_DEFLATE, zdict=window)
    parts: list[bytes] = [decoder.decompress(serialize_entry(data[0], bit), length)]
    left, at = length - len(parts[0]), 1
    trailer = _TRAILER  # which the first decoder knows nothing of
    while left > 0 and at < len(data):
        piece = data[at : at + _MEMBER_PIECE]
        parts.append(decoder.decompress(piece, left))
        left -= len(parts[-1])
        at += len(piece)
        if decoder.eof:
            at += trailer - len(decoder.unused_data)
            decoder, trailer = _inflate.decompressobj(_GZIP), 0
    return b"".join(parts)


def _decode_lz4(data: memoryview, length: int) -> bytes:
    decoded: bytes = lz4.block.decompress(data, uncompressed_size=length)
    return decoded


_WHOLE: Final = {Codec.RAW: _decode_raw, Codec.ZSTD: _decode_zstd, Codec.LZ4: _decode_lz4}


class _Stream(Protocol):
    """Bytes that are decoded as they are asked for."""

    def read(self, length: int) -> bytes:
        """Give the next bytes: fewer than `length`, but some, unless there are no more."""
        ...


class _GzipStream:
    """What one gzip member holds."""

    def __init__(self, data: memoryview) -> None:
        self._member: Any = _inflate.decompressobj(_GZIP)
        self._data = data
        self._rest: bytes | memoryview = b""  # what was given to it, and not taken

    def read(self, length: int) -> bytes:
        """See _Stream."""
        decoded = b""
        while not decoded and not self._member.eof:
            if not self._rest:  # what is not taken is copied: small pieces, unless much is wanted
                size = _PIECE if length < _MUCH else len(self._data)
                self._rest, self._data = self._data[:size], self._data[size:]
            end = not self._rest
            decoded = self._member.decompress(self._rest, length)
            self._rest = self._member.unconsumed_tail
            if end:
                break
        return decoded


class _DeflateStream(_GzipStream):
    """A stretch of a gzip member, and the members behind it as far as `data` has them."""

    def __init__(self, data: memoryview, bit: int, window: bytes) -> None:
        super().__init__(data[1:])
        self._member = _inflate.decompressobj(_RAW_DEFLATE, zdict=window)
        self._rest = serialize_entry(data[0], bit) if data else b""
        self._whole = data
        self._trailer = _TRAILER
        self._members = 0

    def read(self, length: int) -> bytes:
        """See _Stream."""
        while not (decoded := super().read(length)) and self._member.eof:
            self._members += 1
            unused = len(self._data) + len(self._member.unused_data) - self._trailer
            if unused <= 0:
                break
            if self._members > MAX_MEMBERS:
                raise ValueError(f"over {MAX_MEMBERS} gzip members")
            self._rest, self._data = b"", self._whole[-unused:]
            self._member, self._trailer = _inflate.decompressobj(_GZIP), 0
        return decoded


class _Lz4Stream:
    """What one lz4 block holds."""

    def __init__(self, data: memoryview) -> None:
        most = min(MAX_LZ4, _LZ4_RATIO * len(data))
        self._decoded = memoryview(_decode_lz4(data, most))

    def read(self, length: int) -> bytes:
        """See _Stream."""
        part, self._decoded = self._decoded[:length], self._decoded[length:]
        return bytes(part)


def _open_stream(span: Span, data: memoryview, window: Callable[[], bytes]) -> _Stream:
    if span.codec is Codec.GZIP:
        return _GzipStream(data)
    if span.codec is Codec.DEFLATE_PART:
        return _DeflateStream(data, span.bit, window())
    if span.codec is Codec.LZ4_PART:
        return _Lz4Stream(data)
    return _decompressors.parts.stream_reader(data, read_across_frames=False)


class _Parts:
    """Parts of what is decoded as a whole; those asked for in order cost one pass.

    Args:
        span: one of them.
        data: the bytes in the blob of each of them.
        window: as `_read_window` gives it.
    """

    def __init__(self, span: Span, data: memoryview, window: Callable[[], bytes]) -> None:
        self.unit = _unit_of(span)
        self._open = partial(_open_stream, span, data, window)
        self._stream: _Stream | None = None
        self._position = 0

    def take(self, skip: int, length: int) -> bytes:
        """Give the bytes at `skip`; fewer than `length` where it ends before."""
        if skip < self._position:
            self._stream, self._position = None, 0
        while self._position < skip and self._read(min(skip - self._position, _PIECE)):
            pass
        parts = []
        while length and (part := self._read(length)):
            parts.append(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read(self, length: int) -> bytes:
        if self._stream is None:
            self._stream = self._open()
        data = self._stream.read(length)
        self._position += len(data)
        return data


def _unit_of(span: Span) -> tuple[int, ...]:
    """Give what the parts of the same bytes have in common."""
    return span.blob_offset, span.blob_length, span.codec, span.bit


def decode_spans(
    table: DeviceTable, spans: Iterable[int], blob_offset: int, data: bytes
) -> tuple[dict[int, bytes], dict[int, CorruptError]]:
    """Give the decoded, checked bytes of each good span, and what is wrong with each bad one.

    Args: as `iterate_spans`.
    """
    good, bad = {}, {}
    for index, decoded in iterate_spans(table, spans, blob_offset, data):
        if isinstance(decoded, CorruptError):
            bad[index] = decoded
        else:
            good[index] = decoded
    return good, bad


def iterate_spans(
    table: DeviceTable, spans: Iterable[int], blob_offset: int, data: bytes
) -> Iterator[tuple[int, bytes | CorruptError]]:
    """Give the decoded, checked bytes of each span, or what is wrong with it.

    Args:
        table: the device.
        spans: those that lie wholly in `data`.
        blob_offset: where `data` begins in the blob.
        data: bytes of the blob.
    """
    view = memoryview(data)
    parts = None
    for index in spans:
        span = table.span(index)
        start = span.blob_offset - blob_offset
        stored = view[start : start + span.blob_length]
        window = partial(table.window, index)
        if span.codec in PARTS and (parts is None or parts.unit != _unit_of(span)):
            parts = _Parts(span, stored, partial(_read_window, table.name, window))
        try:
            yield index, _decode(table.name, span, stored, window, parts)
        except CorruptError as error:
            yield index, error
