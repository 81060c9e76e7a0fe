"""Checksums that the standard library does not have."""

from __future__ import annotations

from typing import Final

_CASTAGNOLI: Final = 0x82F63B78
"""The polynomial of crc32c, bit-reversed (RFC 3720, B.4)."""


def _table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (_CASTAGNOLI if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


_TABLE: Final = _table()


def crc32c(data: bytes | bytearray | memoryview, crc: int = 0xFFFF_FFFF) -> int:
    """Give the crc32c of `data` without the final inversion, as EROFS stores it.

    Args:
        data: bytes; some 0.1 us each, meant for one block.
        crc: what went before; all ones at the start.
    """
    table = _TABLE
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc
