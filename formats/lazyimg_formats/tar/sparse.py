"""Maps of sparse files: which regions of the file the payload holds.

Source: the GNU tar manual, "Storing Sparse Files".
"""

from __future__ import annotations

from typing import Final

from lazyimg_formats.errors import FormatError
from lazyimg_formats.tar.header import BLOCK, parse_number
from lazyimg_formats.tar.pax import SPARSE_MAP, parse_integer

Region = tuple[int, int]
"""(offset in the file, length), bytes."""

MAX_REGIONS: Final = 1 << 18
"""Regions of one file."""

MAX_MAP_SIZE: Final = 44 * MAX_REGIONS
"""Bytes of a map that stands before the payload."""

_ENTRY: Final = 24
_IN_HEADER: Final = (386, 4, 482)  # where the map begins, its entries, the flag that it goes on
_IN_BLOCK: Final = (0, 21, 504)


def parse_old_entries(block: bytes, *, is_header: bool) -> tuple[list[Region], bool]:
    """Give the regions in a block of the old GNU format, and whether another block follows.

    Raises:
        FormatError: a field is not a number.
    """
    start, count, flag = _IN_HEADER if is_header else _IN_BLOCK
    regions = []
    for at in range(start, start + count * _ENTRY, _ENTRY):
        if not block[at]:
            break
        regions.append((parse_number(block[at : at + 12]), parse_number(block[at + 12 : at + 24])))
    return regions, block[flag] != 0


def parse_listed(records: dict[bytes, bytes]) -> list[Region]:
    """Give the regions of PAX sparse formats 0.0 and 0.1.

    Raises:
        FormatError: the list has not the length that the records promise.
    """
    count = parse_integer(records.get(b"GNU.sparse.numblocks", b""))
    text = records.get(SPARSE_MAP, b"")
    numbers = text.split(b",") if text else []
    return _pair(count, numbers)


def parse_leading(text: bytes) -> list[Region]:
    """Give the regions of PAX sparse format 1.0, whose map stands before the payload.

    Args:
        text: whole blocks, with all lines of the map.

    Raises:
        FormatError: a line is not a number.
    """
    count, _, rest = text.partition(b"\n")
    number = parse_integer(count)
    wanted = 2 * number if 0 <= number <= MAX_REGIONS else 0
    return _pair(number, rest.split(b"\n", wanted)[:wanted])


def _pair(count: int, numbers: list[bytes]) -> list[Region]:
    if not 0 <= count <= MAX_REGIONS or len(numbers) != 2 * count:
        raise FormatError("sparse file", f"{count} regions promised, {len(numbers)} numbers there")
    values = [parse_integer(number) for number in numbers]
    return list(zip(values[::2], values[1::2], strict=True))


def count_lines(text: bytes | bytearray) -> int:
    """Give how many lines a map before the payload has; 0 while its first is not complete.

    Raises:
        FormatError: the first line is not a number that a map can have.
    """
    first, newline, _ = text.partition(b"\n")
    if not newline:
        if len(first) >= BLOCK:
            raise FormatError("sparse file", "its map does not begin with a number")
        return 0
    count = parse_integer(bytes(first))
    if not 0 <= count <= MAX_REGIONS:
        raise FormatError("sparse file", f"impossible number of regions {count}")
    return 1 + 2 * count


def check_regions(regions: list[Region], size: int, data_size: int) -> tuple[Region, ...]:
    """Give the regions that are not empty.

    Raises:
        FormatError: they overlap, are out of order, reach past `size`, or are not what the
            payload of `data_size` bytes holds.
    """
    end = total = 0
    for offset, length in regions:
        if length < 0 or offset < end or offset + length > size:
            raise FormatError("sparse file", f"impossible region {offset}+{length} of {size} bytes")
        end = offset + length
        total += length
    if size < 0 or total != data_size:
        raise FormatError("sparse file", f"its regions have {total} bytes, its data {data_size}")
    return tuple(region for region in regions if region[1])
