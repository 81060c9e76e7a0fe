"""libz, which says where the blocks of a deflate stream begin; Python's own zlib does not.

Source: zlib.h, "inflate" (Z_BLOCK and data_type), "inflateGetDictionary".
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Final, NamedTuple

from lazyimg.errors import LazyimgError
from lazyimg_formats.device_table import MAX_WINDOW
from lazyimg_formats.errors import FormatError

LIBRARY: Final = "libz.so.1"

_GZIP: Final = 31  # window bits: the largest window, with gzip's header and trailer
_NO_FLUSH: Final = 0
_BLOCK: Final = 5
_OK: Final = 0
_END: Final = 1
_NO_PROGRESS: Final = -5  # Z_BUF_ERROR
_UNUSED_BITS: Final = 7  # these are data_type's parts
_LAST_BLOCK: Final = 64
_BETWEEN_BLOCKS: Final = 128
_VERSION: Final = b"1.2.8"  # the first one that has inflateGetDictionary


class _Stream(ctypes.Structure):
    """z_stream."""

    _fields_ = (
        ("next_in", ctypes.c_void_p),
        ("avail_in", ctypes.c_uint),
        ("total_in", ctypes.c_ulong),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_uint),
        ("total_out", ctypes.c_ulong),
        ("msg", ctypes.c_char_p),
        ("state", ctypes.c_void_p),
        ("zalloc", ctypes.c_void_p),
        ("zfree", ctypes.c_void_p),
        ("opaque", ctypes.c_void_p),
        ("data_type", ctypes.c_int),
        ("adler", ctypes.c_ulong),
        ("reserved", ctypes.c_ulong),
    )


@cache
def load_library() -> ctypes.CDLL:
    """Give libz.

    Raises:
        LazyimgError: it is not there.
    """
    try:
        library = ctypes.CDLL(LIBRARY)
        library.inflateGetDictionary  # noqa: B018 - raises where there is none
    except (OSError, AttributeError) as error:
        raise LazyimgError(
            LIBRARY, f"cannot be used: {error}", "install zlib, 1.2.8 or later (Debian: zlib1g)"
        ) from error
    return library


class Step(NamedTuple):
    """What one call of `Inflater.step` did.

    Attributes:
        output: decoded bytes, valid until the next call.
        taken: bytes of the input that were used.
        boundary: bits of the last byte taken that belong to the next block (0 to 7), if this is
            between two blocks, or before the first one; None: it is not.
        ended: the member is over, trailer and all; it was right.
    """

    output: memoryview
    taken: int
    boundary: int | None
    ended: bool


class Inflater:
    """Decodes gzip members, one after the other, block by block where that is wanted.

    Args:
        size: bytes of output that a step gives at most.
    """

    def __init__(self, size: int) -> None:
        self._open = False
        self._library = load_library()
        self._buffer = ctypes.create_string_buffer(size)
        self._view = memoryview(self._buffer).cast("B")
        self._dictionary = ctypes.create_string_buffer(MAX_WINDOW)
        self._stream = _Stream()
        self._check(
            self._library.inflateInit2_(
                ctypes.byref(self._stream), _GZIP, _VERSION, ctypes.sizeof(_Stream)
            )
        )
        self._open = True

    def step(self, data: bytes, at: int, most: int, *, stop: bool) -> Step:
        """Decode on.

        Args:
            data: input; what comes before `at` was taken before.
            at: where to go on.
            most: bytes of output wanted, at most.
            stop: at the next boundary, if it comes before.

        Raises:
            FormatError: it is no gzip, or damaged.
        """
        stream = self._stream
        source = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
        size = min(most, len(self._view))
        stream.next_in, stream.avail_in = source + at, len(data) - at
        stream.next_out, stream.avail_out = ctypes.addressof(self._buffer), size
        code = self._library.inflate(ctypes.byref(stream), _BLOCK if stop else _NO_FLUSH)
        taken = len(data) - at - stream.avail_in
        stream.next_in = None  # `data` may be gone by the next call
        if code not in {_OK, _END, _NO_PROGRESS}:
            self._check(code)
        if code == _END:
            self._check(self._library.inflateReset(ctypes.byref(stream)))
        said = stream.data_type
        between = stop and said & _BETWEEN_BLOCKS and not said & _LAST_BLOCK
        return Step(
            self._view[: size - stream.avail_out],
            taken,
            said & _UNUSED_BITS if between and code != _END else None,
            code == _END,
        )

    def window(self) -> bytes:
        """Give the bytes before the current position that what follows may refer to."""
        length = ctypes.c_uint(0)
        self._check(
            self._library.inflateGetDictionary(
                ctypes.byref(self._stream), self._dictionary, ctypes.byref(length)
            )
        )
        return self._dictionary.raw[: length.value]

    def _check(self, code: int) -> None:
        if code != _OK:
            said = self._stream.msg or b""
            raise FormatError("gzip", said.decode(errors="replace") or f"zlib's error {code}")

    def __del__(self) -> None:
        if self._open:
            self._library.inflateEnd(ctypes.byref(self._stream))
