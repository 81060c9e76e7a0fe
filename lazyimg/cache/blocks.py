"""Which blocks of a device are present: one bit each."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_STEP: Final = 4096
"""Blocks looked at together: whole numbers of this many bits are fast."""

_SMALL: Final = 1 << 20
"""Bytes. More is memory that is taken only where a bit is set: a device may be large and empty."""


class BlockMap:
    """A bit for each of `count` blocks; the first block is the lowest bit of the first byte.

    Looking up needs no lock; whoever changes it must be alone in that.

    Args:
        count: blocks.
        bits: as `piece` gives them; none is present if empty.

    Attributes:
        missing: how many blocks are absent.
    """

    __slots__ = ("_bits", "count", "missing")

    def __init__(self, count: int, bits: bytes = b"") -> None:
        self.count = count
        self.missing = count
        length = -(-count // 8)
        self._bits = bytearray(length) if length <= _SMALL else mmap.mmap(-1, length)
        if bits.count(0) < len(bits):
            self.replace(0, bits)

    def __len__(self) -> int:
        """Bytes that the bits take."""
        return len(self._bits)

    def add(self, first: int, last: int) -> None:
        """Mark blocks `first` to `last` - 1, at least one, present."""
        low, high = first >> 3, (last + 7) >> 3
        before = int.from_bytes(self._bits[low:high], "little")
        after = before | ((1 << (last - first)) - 1) << (first & 7)
        self._bits[low:high] = after.to_bytes(high - low, "little")
        self.missing -= after.bit_count() - before.bit_count()

    def discard(self, first: int, last: int) -> None:
        """Mark blocks `first` to `last` - 1, at least one, absent."""
        low, high = first >> 3, (last + 7) >> 3
        before = int.from_bytes(self._bits[low:high], "little")
        after = before & ~(((1 << (last - first)) - 1) << (first & 7))
        self._bits[low:high] = after.to_bytes(high - low, "little")
        self.missing += before.bit_count() - after.bit_count()

    def replace(self, low: int, bits: bytes) -> None:
        """Put other bits in the place of those from byte `low` on; bits past the end are ignored.

        Raises:
            ValueError: that is more than there are.
        """
        high = low + len(bits)
        if high > len(self._bits):
            raise ValueError(f"bits up to byte {high}, there are {len(self._bits)}")
        before = int.from_bytes(self._bits[low:high], "little")
        after = int.from_bytes(bits, "little") & ((1 << max(0, self.count - low * 8)) - 1)
        self._bits[low:high] = after.to_bytes(high - low, "little")
        self.missing -= after.bit_count() - before.bit_count()

    def piece(self, low: int, high: int) -> bytes:
        """Give bytes `low` to `high` - 1 of the bits."""
        return bytes(self._bits[low:high])

    def absent(self, first: int, last: int) -> list[range]:
        """Give the runs of absent blocks within `first` to `last` - 1."""
        if last - first <= _STEP:
            # as `_mask` and `_value` say; for a range of a few blocks, calling them takes longer
            bits = int.from_bytes(self._bits[first >> 3 : (last + 7) >> 3], "little")
            missing = ((1 << (last - first)) - 1) << (first & 7) & ~bits
            return list(_runs(missing, first & ~7)) if missing else []
        return self._gather(first, last, absent=True)

    def present(self, first: int, last: int) -> list[range]:
        """Give the runs of present blocks within `first` to `last` - 1."""
        return self._gather(first, last, absent=False)

    def _gather(self, first: int, last: int, *, absent: bool) -> list[range]:
        found: list[range] = []
        for start in range(first, last, _STEP):
            stop = min(start + _STEP, last)
            value = self._value(start, stop)
            value = self._mask(start, stop) & (~value if absent else value)
            for run in _runs(value, start & ~7):
                if found and found[-1].stop == run.start:
                    found[-1] = range(found[-1].start, run.stop)
                else:
                    found.append(run)
        return found

    def _value(self, first: int, last: int) -> int:
        """Give the bits of blocks, from that of the first one's byte on."""
        return int.from_bytes(self._bits[first >> 3 : (last + 7) >> 3], "little")

    @staticmethod
    def _mask(first: int, last: int) -> int:
        return ((1 << (last - first)) - 1) << (first & 7)


def _runs(value: int, start: int) -> Iterator[range]:
    """Give the runs of ones in a number whose lowest bit has the number `start`."""
    while value:
        zeros = (value & -value).bit_length() - 1
        value >>= zeros
        start += zeros
        ones = (~value & (value + 1)).bit_length() - 1
        yield range(start, start + ones)
        value >>= ones
        start += ones
