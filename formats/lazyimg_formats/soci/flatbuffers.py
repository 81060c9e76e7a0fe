"""Tables of FlatBuffers, read where they lie.

A table begins with how far before it its vtable lies; the vtable says for each field of the schema
where in the table it is, if it is there. Tables of the same fields share a vtable, so what it says
is worked out once, for all of them. Nothing that a buffer says is followed without a look whether
it lies inside.

Source: the FlatBuffers documentation, "Internals".
"""

from __future__ import annotations

import struct
from operator import add, itemgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from lazyimg_formats.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_LAYOUTS: Final = 1024
"""Different vtables of one kind of table: each field that may be missing doubles them, at most."""

OFFSET: Final = "O"
"""A field that says where something else is; others are as in `struct`: b, i, I, q."""

_U32: Final = struct.Struct("<I")
_I32: Final = struct.Struct("<i")
_VTABLE: Final = struct.Struct("<HH")
_NONE: Final = (0,)


class _Layout(NamedTuple):
    """Where the fields of a table are.

    Attributes:
        size: bytes of the table.
        unpack: gives its fields in their order in the buffer, from where the table begins.
        pick: gives those and a zero in the order of the schema; zeros for those that are missing.
        shifts: what is added to each: for an offset, where it stands in the table.
    """

    size: int
    unpack: Callable[[bytes, int], tuple[int, ...]]
    pick: Callable[[tuple[int, ...]], tuple[int, ...]]
    shifts: tuple[int, ...]


class Buffer:
    """One buffer.

    Every method raises FormatError when what it looks for does not lie in the buffer.

    Args:
        what: what it is called in errors.
        data: its bytes.
    """

    def __init__(self, what: str, data: bytes) -> None:
        self.what = what
        self.data = data

    def root(self) -> int:
        """Give where the root table begins."""
        return self.number(0)

    def number(self, at: int) -> int:
        """Give an unsigned number of 32 bits."""
        if at + 4 > len(self.data):
            raise self.outside(at)
        number: int = _U32.unpack_from(self.data, at)[0]
        return number

    def text(self, at: int) -> bytes:
        """Give a string, or a vector of bytes."""
        end = at + 4 + self.number(at)
        if end > len(self.data):
            raise self.outside(end)
        return self.data[at + 4 : end]

    def view(self, at: int) -> memoryview:
        """Give a vector of bytes without copying it."""
        end = at + 4 + self.number(at)
        if end > len(self.data):
            raise self.outside(end)
        return memoryview(self.data)[at + 4 : end]

    def targets(self, at: int) -> range:
        """Give where the elements of a vector of offsets stand; see `follow`."""
        end = at + 4 + 4 * self.number(at)
        if end > len(self.data):
            raise self.outside(end)
        return range(at + 4, end, 4)

    def follow(self, at: int) -> int:
        """Give what an offset that stands there leads to."""
        return at + self.number(at)

    def outside(self, at: int) -> FormatError:
        """Give the error for something that is not in the buffer."""
        return FormatError(self.what, f"byte {at} of {len(self.data)} is referred to")


class TableReader:
    """Reads tables of one kind.

    Args:
        buffer: where they lie.
        fields: their kinds, in the order of the schema: `OFFSET`, or a letter of `struct`.
    """

    def __init__(self, buffer: Buffer, fields: str) -> None:
        self._buffer = buffer
        self._data = buffer.data
        self._fields = fields
        self._layouts: dict[int, _Layout] = {}

    def read(self, at: int) -> tuple[int, ...]:
        """Give the fields of the table at `at`, 0 for those that are missing.

        Instead of an offset, how far behind `at` that which it leads to is.

        Raises:
            FormatError: the table does not lie in the buffer, or its fields not in the table.
        """
        data = self._data
        if at + 4 > len(data):
            raise self._buffer.outside(at)
        vtable = at - _I32.unpack_from(data, at)[0]
        layout = self._layouts.get(vtable)
        if layout is None:
            layout = self._layouts[vtable] = self._find_layout(vtable)
        if at + layout.size > len(data):
            raise self._buffer.outside(at + layout.size)
        return tuple(map(add, layout.pick(layout.unpack(data, at) + _NONE), layout.shifts))

    def _find_layout(self, vtable: int) -> _Layout:
        if len(self._layouts) >= MAX_LAYOUTS:
            raise FormatError(self._buffer.what, f"over {MAX_LAYOUTS} kinds of one table")
        if not 0 <= vtable <= len(self._data) - 4:
            raise self._buffer.outside(vtable)
        length, size = _VTABLE.unpack_from(self._data, vtable)
        if length < 4 or vtable + length > len(self._data) or size < 4:
            raise FormatError(self._buffer.what, f"a vtable of {length} bytes, for {size}")
        count = min((length - 4) // 2, len(self._fields))
        places = struct.unpack_from(f"<{count}H", self._data, vtable + 4)
        there = sorted((place, number) for number, place in enumerate(places) if place)
        pattern, end = "<", 0
        for place, number in there:
            kind = self._fields[number].replace(OFFSET, "I")
            if place < max(end, 4):
                raise FormatError(self._buffer.what, f"a field at byte {place} of its table")
            pattern += f"{place - end}x{kind}"
            end = place + struct.calcsize(f"<{kind}")
        if end > size:
            raise FormatError(self._buffer.what, f"a field behind its table of {size} bytes")
        order = {number: position for position, (_, number) in enumerate(there)}
        numbers = range(len(self._fields))
        shifts = tuple(
            places[number] if number in order and self._fields[number] == OFFSET else 0
            for number in numbers
        )
        chosen = [order.get(number, len(there)) for number in numbers]
        pick = itemgetter(*chosen, len(there))  # one more: of a single one it would make no tuple
        return _Layout(size, struct.Struct(pattern).unpack_from, pick, shifts)
