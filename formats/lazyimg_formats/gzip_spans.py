"""Stretches of a deflate stream: how one is entered that begins inside a byte.

A deflate stream is a row of blocks, which begin at any bit; what one decodes to may refer to the
32 KiB before it, its window. So a decoder enters at a block when it has the window and the block's
bits in their places. Decoders of whole streams cannot be told to begin at a bit, and the bits
cannot be moved to the start of a byte: stored blocks are aligned to the bytes of the stream. But
blocks that decode to nothing may come before any other: `serialize_entry` gives as many of them as
end at the bit where the stretch begins. They have 10 bits (fixed codes) or 93 (codes of their own).

Where stretches begin and end, and their windows, is found by inflating the stream once (zlib's
Z_BLOCK); nothing in it says so.

Source: RFC 1951, "DEFLATE Compressed Data Format Specification", sections 3.2.3 to 3.2.7.
"""

from __future__ import annotations

import hashlib
from typing import Final

_CODE_LENGTHS: Final = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
_LONG_ZEROS: Final = 18  # the symbol for 11 to 138 lengths of zero


def _pack(fields: list[tuple[int, int]]) -> tuple[int, int]:
    """Give values of so many bits each as one, and how many bits it has."""
    packed = size = 0
    for value, bits in fields:
        packed |= value << size
        size += bits
    return packed, size


def _fixed_block() -> tuple[int, int]:
    """Give a block that is not the last one, of fixed codes: only the end of the block."""
    return _pack([(0, 1), (1, 2), (0, 7)])


def _dynamic_block() -> tuple[int, int]:
    """Give a block with codes of its own that decodes to nothing and has an odd number of bits."""
    fields = [(0, 1), (2, 2), (0, 5), (0, 5), (len(_CODE_LENGTHS) - 4, 4)]
    fields += [(int(symbol in {1, _LONG_ZEROS}), 3) for symbol in _CODE_LENGTHS]
    fields += [(1, 1), (138 - 11, 7), (1, 1), (118 - 11, 7)]  # 256 bytes have no code
    fields += [(0, 1), (0, 1)]  # the end of the block, and one distance, have codes of one bit
    return _pack([*fields, (0, 1)])


def _entries() -> tuple[tuple[int, int], ...]:
    """Give, for each bit of a byte, blocks of nothing that end there, and their bits."""
    entries = [(0, 0)] * 8
    for odd in (False, True):
        for count in range(4):
            blocks = [_dynamic_block()] * odd + [_fixed_block()] * count
            packed, size = _pack(blocks)
            entries[size % 8] = packed, size
    return tuple(entries)


_ENTRIES: Final = _entries()


def serialize_entry(first: int, skip: int) -> bytes:
    """Give bytes that a decoder takes in place of a stretch's first one.

    Args:
        first: the first byte.
        skip: how many of its bits, the lower ones, belong to what comes before: 0 to 7.
    """
    packed, size = _ENTRIES[skip]
    return (packed | first >> skip << size).to_bytes((size + 8 - skip) // 8, "little")


def digest_input(stored: bytes, window: bytes) -> bytes:
    """Give a digest that commits to what a stretch is decoded from.

    It is no digest of what it decodes to: for that, the bit where it begins and how many bytes are
    wanted count, too.

    Args:
        stored: sha256 of its bytes in the blob.
        window: sha256 of its window, decoded.
    """
    return hashlib.sha256(stored + window).digest()
