"""One tar header block of 512 bytes.

Sources: POSIX.1-2017 pax, "ustar Interchange Format"; the GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final
from zlib import adler32

import msgspec

from lazyimg_formats.errors import FormatError

BLOCK: Final = 512
"""Bytes. Headers and payloads start on a multiple of it."""

ZERO_BLOCK: Final = bytes(BLOCK)

_FIELDS: Final = struct.Struct("<100s24s12s12s8s1s100s8s64x16s155s12x")
_USTAR: Final = b"ustar\0"
_GNU: Final = b"ustar  \0"
_STAR_TRAILER: Final = b"tar\0"
_BLANK_CHECKSUM: Final = 8 * 0x20


class Header(msgspec.Struct, frozen=True, gc=False):
    """What stands in one block; the extended headers before it may say otherwise.

    Attributes:
        name: with the prefix, if the format has one.
        mode: as it stands there.
        uid: owner.
        gid: group.
        size: bytes, as it stands there.
        mtime: seconds since the epoch.
        flag: the type, one byte.
        target: the link's name.
        major: device number's major part.
        minor: device number's minor part.
        gnu: whether the block is in the GNU format.
        accessed: seconds since the epoch; None: not given.
        changed: seconds since the epoch; None: not given.
    """

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    flag: bytes
    target: bytes
    major: int = 0
    minor: int = 0
    gnu: bool = False
    accessed: int | None = None
    changed: int | None = None


@lru_cache(maxsize=16_384)
def parse_number(field: bytes) -> int:
    """Give a numeric field: octal digits, or GNU's base 256.

    Raises:
        FormatError: neither, or over 64 bits.
    """
    first = field[0]
    if first & 0x80:
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") & ((1 << bits) - 1)
        if first & 0x40:
            value -= 1 << bits
        if not -(1 << 63) <= value < 1 << 63:
            raise FormatError("tar header", f"number {field.hex()} is over 64 bits")
        return value
    digits = field.strip(b" \0").partition(b"\0")[0]
    if not digits:
        return 0
    if digits.isdigit():
        try:
            return int(digits, 8)
        except ValueError:  # an 8 or a 9
            pass
    raise FormatError("tar header", f"expected an octal number, got {field!r}")


@lru_cache(maxsize=16_384)
def _parse_owner(fields: bytes) -> tuple[int, int, int]:
    """Give mode, owner and group, which most members have in common with others."""
    return parse_number(fields[:8]), parse_number(fields[8:16]), parse_number(fields[16:])


@lru_cache(maxsize=4096)
def _parse_device(fields: bytes) -> tuple[int, int]:
    return parse_number(fields[:8]), parse_number(fields[8:])


@lru_cache(maxsize=16_384)
def _parse_checksum(field: bytes) -> int:
    """Give the sum that a block has in which the field is what it is."""
    return parse_number(field) - _BLANK_CHECKSUM + sum(field)


def _check_sum(block: bytes, field: bytes) -> None:
    expected = _parse_checksum(field)
    # Adler's low half is 1 + the sum of the bytes, modulo 65521: exact where no byte is over 127.
    total = (adler32(block) & 0xFFFF) - 1 if block.isascii() else sum(block)
    if total == expected:
        return
    signed = (
        total - 256 * sum(byte > 127 for byte in block) + 256 * sum(byte > 127 for byte in field)
    )
    if signed != expected:
        total += parse_number(field) - expected
        raise FormatError("tar header", f"checksum is {parse_number(field)}, expected {total}")


def parse_header(block: bytes) -> Header:
    """Give what stands in a header block.

    Args:
        block: `BLOCK` bytes, not all zero.

    Raises:
        FormatError: the checksum is wrong, or a field is not a number.
    """
    (
        name, owner, size, mtime, checksum, flag, target, magic, numbers, prefix,
    ) = _FIELDS.unpack(block)  # fmt: skip
    _check_sum(block, checksum)
    mode, uid, gid = _parse_owner(owner)
    common = (
        name.partition(b"\0")[0],
        mode,
        uid,
        gid,
        parse_number(size),
        parse_number(mtime),
        flag,
        target.partition(b"\0")[0] if target[0] else b"",
    )
    gnu = magic == _GNU
    if not gnu and magic[:6] != _USTAR:
        return Header(*common)
    device = _parse_device(numbers)
    if gnu:
        return _parse_gnu(block, common, device)
    if block.endswith(_STAR_TRAILER):
        times = (parse_number(block[476:488]), parse_number(block[488:500]))
        return Header(
            _join(prefix[:131], common[0]),
            *common[1:],
            *device,
            gnu=False,
            accessed=times[0],
            changed=times[1],
        )
    if prefix[0]:
        return Header(_join(prefix, common[0]), *common[1:], *device)
    return Header(*common, *device)


def _parse_gnu(
    block: bytes,
    common: tuple[bytes, int, int, int, int, int, bytes, bytes],
    device: tuple[int, int],
) -> Header:
    accessed = changed = None
    try:
        if block[345]:
            accessed = parse_number(block[345:357])
        if block[357]:
            changed = parse_number(block[357:369])
    except FormatError:  # Go before 1.8 wrote a prefix here
        prefix = block[345:500]
        if prefix.partition(b"\0")[0].isascii():
            return Header(_join(prefix, common[0]), *common[1:], *device, gnu=True)
        accessed = changed = None
    return Header(*common, *device, gnu=True, accessed=accessed, changed=changed)


def _join(prefix: bytes, name: bytes) -> bytes:
    prefix = prefix.partition(b"\0")[0]
    return prefix + b"/" + name if prefix else name
