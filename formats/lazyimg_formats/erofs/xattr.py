"""Extended attributes: the body behind an inode, and entries in it or in the shared area.

The start of a name that many have in common is stored as a number (`XattrIndex`). Images made by
others may have a table of longer prefixes; ours have none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from lazyimg_formats.erofs.layout import (
    EROFS_XATTR_LONG_PREFIX,
    XattrIndex,
    erofs_xattr_entry,
    erofs_xattr_ibody_header,
)
from lazyimg_formats.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Xattr = tuple[bytes, bytes]
"""Whole name, value."""

PREFIXES: Final[dict[int, bytes]] = {
    XattrIndex.USER: b"user.",
    XattrIndex.POSIX_ACL_ACCESS: b"system.posix_acl_access",
    XattrIndex.POSIX_ACL_DEFAULT: b"system.posix_acl_default",
    XattrIndex.TRUSTED: b"trusted.",
    XattrIndex.SECURITY: b"security.",
}

_WHOLE: Final = frozenset({XattrIndex.POSIX_ACL_ACCESS, XattrIndex.POSIX_ACL_DEFAULT})
"""Prefixes that are a whole name: nothing follows, and nothing else may."""

_HEADER_SIZE: Final = erofs_xattr_ibody_header.size
_ENTRY_SIZE: Final = erofs_xattr_entry.size
_MAX_BODY: Final = _HEADER_SIZE + 4 * (0xFFFF - 1)


class XattrBody(NamedTuple):
    """What is behind an inode.

    Attributes:
        shared: numbers of entries in the shared area: their offset in it, divided by 4.
        inline: the attributes that are stored here.
    """

    shared: tuple[int, ...]
    inline: tuple[Xattr, ...]


def split_name(name: bytes) -> tuple[int, bytes] | None:
    """Give a name's index and the rest that is stored; None if EROFS has no place for the name."""
    for index, prefix in PREFIXES.items():
        if name.startswith(prefix):
            rest = name[len(prefix) :]
            if len(rest) <= 0xFF and (not rest) == (index in _WHOLE):
                return index, rest
    return None


def serialize_entry(name: bytes, value: bytes) -> bytes:
    """Give one attribute's entry, padded to 4 bytes.

    Raises:
        FormatError: EROFS has no place for this name, or the value is over 65,535 bytes.
    """
    split = split_name(name)
    if split is None or b"\0" in name:
        raise FormatError("erofs_xattr_entry", f"no place for an attribute named {name[:300]!r}")
    if len(value) > 0xFFFF:
        raise FormatError("erofs_xattr_entry", f"{name!r} has a value of {len(value)} bytes")
    index, rest = split
    entry = erofs_xattr_entry.pack(len(rest), index, len(value)) + rest + value
    return entry + bytes(-len(entry) % 4)


def serialize_body(inline: Iterable[Xattr], shared: Sequence[int] = ()) -> bytes:
    """Give what stands behind an inode with these attributes; nothing if there are none.

    Raises:
        FormatError: see `serialize_entry`; or all together are too long for i_xattr_icount.
    """
    entries = b"".join(serialize_entry(name, value) for name, value in inline)
    if not entries and not shared:
        return b""
    header = erofs_xattr_ibody_header.encode(h_name_filter=0, h_shared_count=len(shared))
    ids = b"".join(number.to_bytes(4, "little") for number in shared)
    body = header + ids + entries
    if len(body) > _MAX_BODY:
        raise FormatError("erofs_xattr_ibody_header", f"attributes of {len(body)} bytes")
    return body


def body_size(icount: int) -> int:
    """Give the bytes of attributes behind an inode with this i_xattr_icount."""
    return _HEADER_SIZE + 4 * (icount - 1) if icount else 0


def body_count(size: int) -> int:
    """Give i_xattr_icount for a body of `size` bytes."""
    return (size - _HEADER_SIZE) // 4 + 1 if size else 0


def parse_body(data: bytes, prefixes: Sequence[bytes] = ()) -> XattrBody:
    """Give the attributes in a whole body.

    Args:
        data: `body_size` bytes.
        prefixes: the image's own long prefixes, whole.

    Raises:
        FormatError: truncated, or see `parse_entry`.
    """
    if not data:
        return XattrBody((), ())
    count = erofs_xattr_ibody_header.decode(data[:_HEADER_SIZE]).h_shared_count
    position = _HEADER_SIZE + 4 * count
    if position > len(data):
        raise FormatError("erofs_xattr_ibody_header", f"{count} shared attributes do not fit")
    shared = tuple(
        int.from_bytes(data[start : start + 4], "little")
        for start in range(_HEADER_SIZE, position, 4)
    )
    inline = []
    while position < len(data):
        xattr, position = parse_entry(data, position, prefixes)
        inline.append(xattr)
    return XattrBody(shared, tuple(inline))


def parse_entry(data: bytes, position: int, prefixes: Sequence[bytes] = ()) -> tuple[Xattr, int]:
    """Give the attribute at `position`, and where the next one begins.

    Raises:
        FormatError: truncated, a prefix nobody knows, or a name that cannot be.
    """
    start = position + _ENTRY_SIZE
    if start > len(data):
        raise FormatError("erofs_xattr_entry", "truncated")
    name_length, index, value_size = erofs_xattr_entry.unpack_from(data, position)
    middle = start + name_length
    end = middle + value_size
    if end > len(data):
        raise FormatError(
            "erofs_xattr_entry", f"{end - start} bytes of name and value, {len(data) - start} left"
        )
    name = _prefix(index, prefixes) + data[start:middle]
    if b"\0" in name or (index in _WHOLE) != (not name_length and index in PREFIXES):
        raise FormatError("erofs_xattr_entry", f"impossible name {name!r}")
    return (name, data[middle:end]), end + -end % 4


def _prefix(index: int, prefixes: Sequence[bytes]) -> bytes:
    if index & EROFS_XATTR_LONG_PREFIX:
        number = index & ~EROFS_XATTR_LONG_PREFIX
        if number < len(prefixes):
            return prefixes[number]
    elif index in PREFIXES:
        return PREFIXES[index]
    raise FormatError("erofs_xattr_entry", f"unknown prefix {index}")


def parse_long_prefix(record: bytes) -> bytes:
    """Give the whole prefix in a record of an image's own table (erofs_xattr_long_prefix).

    Raises:
        FormatError: empty, or it begins with a prefix nobody knows.
    """
    if not record:
        raise FormatError("erofs_xattr_long_prefix", "empty")
    return _prefix(record[0], ()) + record[1:]
