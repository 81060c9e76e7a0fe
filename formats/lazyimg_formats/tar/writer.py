"""Writes members of a tar archive: ustar, with PAX records for what ustar cannot say.

An archive is, for each member, `serialize_header`, its bytes, `padding`; then `END`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from lazyimg_formats.layer import Entry, Kind
from lazyimg_formats.tar.header import BLOCK, ZERO_BLOCK
from lazyimg_formats.tar.pax import serialize_records

if TYPE_CHECKING:
    from collections.abc import Iterable

END: Final = ZERO_BLOCK * 2
"""What ends an archive."""

_FIELDS: Final = struct.Struct("<100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s155s12x")
_FLAGS: Final = {
    Kind.REGULAR: b"0",
    Kind.HARDLINK: b"1",
    Kind.SYMLINK: b"2",
    Kind.CHARACTER: b"3",
    Kind.BLOCK: b"4",
    Kind.DIRECTORY: b"5",
    Kind.FIFO: b"6",
}
_NAME: Final = 100
_SHORT: Final = 8**7
_LONG: Final = 8**11


def padding(size: int) -> bytes:
    """Give the zeros that follow a payload of `size` bytes."""
    return bytes(-size % BLOCK)


def serialize_header(entry: Entry) -> bytes:
    """Give the blocks before a member's payload.

    Args:
        entry: of a kind that tar has (no whiteout, no opaque directory); `path` and `target`
            are written as they are, `data` is ignored.
    """
    records = list(_records(entry))
    block = _block(entry, _FLAGS[entry.kind])
    if not records:
        return block
    payload = serialize_records(records)
    extension = Entry(b"PaxHeaders/" + entry.path[-80:], Kind.REGULAR, 0o644, size=len(payload))
    return _block(extension, b"x") + payload + padding(len(payload)) + block


def _records(entry: Entry) -> Iterable[tuple[bytes, bytes]]:
    if len(entry.path) > _NAME:
        yield b"path", entry.path
    if len(entry.target) > _NAME:
        yield b"linkpath", entry.target
    for key, number, limit in (
        (b"size", entry.size, _LONG),
        (b"uid", entry.uid, _SHORT),
        (b"gid", entry.gid, _SHORT),
    ):
        if number >= limit:
            yield key, b"%d" % number
    if entry.mtime_ns or not 0 <= entry.mtime < _LONG:
        yield b"mtime", _time(entry.mtime, entry.mtime_ns)
    for name, value in entry.xattrs:
        yield b"SCHILY.xattr." + name, value


def _time(seconds: int, nanoseconds: int) -> bytes:
    sign = b""
    if seconds < 0:
        sign, seconds = b"-", -seconds
        if nanoseconds:
            seconds, nanoseconds = seconds - 1, 1_000_000_000 - nanoseconds
    text = sign + b"%d" % seconds
    return text + b".%09d" % nanoseconds if nanoseconds else text


def _block(entry: Entry, flag: bytes) -> bytes:
    fields = [
        entry.path[:_NAME],
        _octal(entry.mode, _SHORT),
        _octal(entry.uid, _SHORT),
        _octal(entry.gid, _SHORT),
        _octal(entry.size, _LONG),
        _octal(entry.mtime, _LONG),
        b" " * 8,
        flag,
        entry.target[:_NAME],
        b"ustar",
        b"00",
        b"",
        b"",
        _octal(entry.major, _SHORT),
        _octal(entry.minor, _SHORT),
        b"",
    ]
    fields[6] = b"%06o\0 " % sum(_FIELDS.pack(*fields))
    return _FIELDS.pack(*fields)


def _octal(value: int, limit: int) -> bytes:
    """Give the digits, or zero where a record says the value."""
    return b"%0*o" % (len(oct(limit)) - 3, value if 0 <= value < limit else 0)
