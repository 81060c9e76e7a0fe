"""Records of PAX extended headers.

Sources: POSIX.1-2017 pax, "pax Extended Header"; the GNU tar manual, "Storing Sparse Files".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from lazyimg_formats.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterable

SPARSE_MAP: Final = b"GNU.sparse.map"

_SPARSE_PAIR: Final = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
_TEXTS: Final = frozenset({b"path", b"linkpath", b"uname", b"gname"})
_MAX_LENGTH_DIGITS: Final = 9
_SHORTEST: Final = 5
_INTEGER: Final = re.compile(rb"[+-]?[0-9]{1,19}")
_TIME: Final = re.compile(rb"([+-]?[0-9]{1,19})(?:\.([0-9]*))?")
_NANOSECONDS: Final = 1_000_000_000


def parse_records(data: bytes) -> dict[bytes, bytes]:
    """Give the records of an extended header; a later one of a key replaces an earlier one.

    Sparse format 0.0, which repeats two keys, is turned into 0.1, which has a list.

    Raises:
        FormatError: a record has another form.
    """
    records: dict[bytes, bytes] = {}
    pairs: list[bytes] = []
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + _MAX_LENGTH_DIGITS + 1)
        digits = data[at:space] if space >= 0 else b""
        stop = at + int(digits) if digits.isdigit() else 0
        if not at + _SHORTEST <= stop <= len(data) or stop <= space + 1 or data[stop - 1] != 10:
            raise FormatError("PAX record", f"no length and line at byte {at} of the header")
        key, equals, value = data[space + 1 : stop - 1].partition(b"=")
        if not equals or not key or b"\0" in (value if key in _TEXTS else key):
            raise FormatError("PAX record", f"impossible record {data[at:stop][:80]!r}")
        if key in _SPARSE_PAIR:
            if key != _SPARSE_PAIR[len(pairs) % 2] or b"," in value:
                raise FormatError("PAX record", f"{key.decode()} is out of order")
            pairs.append(value)
        else:
            records[key] = value
        at = stop
    if pairs:
        records[SPARSE_MAP] = b",".join(pairs)
    return records


def parse_integer(value: bytes) -> int:
    """Give a decimal number of 64 bits.

    Raises:
        FormatError: it is something else.
    """
    if _INTEGER.fullmatch(value) is not None:
        number = int(value)
        if -(1 << 63) <= number < 1 << 63:
            return number
    raise FormatError("PAX record", f"expected a decimal number, got {value[:80]!r}")


def parse_time(value: bytes) -> tuple[int, int]:
    """Give seconds since the epoch, rounded down, and the nanoseconds above them.

    Raises:
        FormatError: it is not a time.
    """
    match = _TIME.fullmatch(value)
    if match is None:
        raise FormatError("PAX record", f"expected a time, got {value[:80]!r}")
    seconds = int(match[1])
    nanoseconds = int((match[2] or b"")[:9].ljust(9, b"0"))
    if nanoseconds and value.startswith(b"-"):
        seconds, nanoseconds = seconds - 1, _NANOSECONDS - nanoseconds
    if not -(1 << 63) <= seconds < 1 << 63:
        raise FormatError("PAX record", f"time {value[:80]!r} is over 64 bits")
    return seconds, nanoseconds


def serialize_records(records: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Give the payload of an extended header."""
    return b"".join(_serialize_record(key, value) for key, value in records)


def _serialize_record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) != len(str(rest)):
        length += 1
    return b"%d %s=%s\n" % (length, key, value)
