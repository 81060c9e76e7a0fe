"""Where the writer puts things: inodes inside the image, devices behind it."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Final

from lazyimg_formats.erofs.layout import BLOCK_SIZE, EROFS_NULL_ADDR, MAX_DEVICES, NID_SIZE
from lazyimg_formats.erofs.superblock import DeviceSlot, serialize_slots
from lazyimg_formats.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lazyimg_formats.erofs.tree import Device

_MAX_TAG: Final = 64


class Slots:
    """The devices that have blocks: their numbers, and their places in the unified space.

    Attributes:
        count: slots in the table.
        blocks: for each of all the devices, its size.
        numbers: for each of all the devices, its number in chunk indexes; 0: no slot.
    """

    def __init__(self, devices: Sequence[Device]) -> None:
        used = [device for device in devices if device.blocks]
        if len(used) > MAX_DEVICES:
            raise FormatError("devices", f"{len(used)}, at most {MAX_DEVICES}")
        for device in devices:
            name = device.name
            if not 0 <= device.blocks < EROFS_NULL_ADDR:
                raise FormatError("devices", f"{name[:80]!r} has {device.blocks} blocks")
            if not (0 < len(name) <= _MAX_TAG and name.isascii() and name.isprintable()):
                raise FormatError("devices", f"impossible name {name[:80]!r}")
        self.count = len(used)
        self.blocks = [device.blocks for device in devices]
        number = count(1)
        self.numbers = [next(number) if device.blocks else 0 for device in devices]
        self._used = used

    def check(self, device: int, block: int, size: int) -> None:
        """Refuse data that is not wholly on its device; `size` in bytes."""
        if (
            0 <= device < len(self.blocks)
            and block >= 0
            and block + -(-size // BLOCK_SIZE) <= self.blocks[device]
        ):
            return
        raise FormatError(
            "data of a file", f"{size} bytes from block {block} on are not on device {device}"
        )

    def starts(self, first: int) -> list[int]:
        """Give for each of all the devices where it starts, if the first one does at `first`."""
        found = []
        for blocks in self.blocks:
            found.append(first)
            first += blocks
        if first >= EROFS_NULL_ADDR:
            raise FormatError("devices", f"{first} blocks, at most {EROFS_NULL_ADDR - 1}")
        return found

    def serialize(self, first: int) -> bytes:
        """Give the table, if the first device starts at block `first`."""
        slots = []
        for device in self._used:
            slots.append(DeviceSlot(device.name.encode("ascii"), device.blocks, first))
            first += device.blocks
        return serialize_slots(slots)


class Area:
    """Places of inodes, in bytes. `end` is behind the last one."""

    def __init__(self, start: int) -> None:
        self.end = -(-start // NID_SIZE) * NID_SIZE
        self._gap = self._gap_end = 0

    def place(self, size: int) -> int:
        """Find a place for what may lie across blocks."""
        size = -(-size // NID_SIZE) * NID_SIZE
        if self._gap_end - self._gap >= size:
            self._gap += size
            return self._gap - size
        self.end += size
        return self.end - size

    def place_whole(self, size: int) -> int:
        """Find a place inside one block."""
        size = -(-size // NID_SIZE) * NID_SIZE
        left = -self.end % BLOCK_SIZE
        if 0 < left < size and self._gap_end - self._gap < size:
            if left > self._gap_end - self._gap:
                self._gap, self._gap_end = self.end, self.end + left
            self.end += left
        return self.place(size)
