"""Which events wait for a fill: for the process that takes over from a killed one.

The kernel gives an event to a reader of the group once; whoever comes next only knows that fds were
numbered. Each event that waits for a fill has its place here, by the number of its fd, in a mapped
file: what was put there stays when the process is killed, without a system call.

A place is taken after its event was read, and is free again before it is answered. So a place that
is taken belongs to an event that is not answered; an event without a place must be denied.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

_TAKEN: Final = struct.Struct("=Q")
_PLACE: Final = struct.Struct("=QQQ")
_SIZE: Final = _TAKEN.size + _PLACE.size


class Place(NamedTuple):
    """An event that waits: its fd's number, its file's inode number, and the range in bytes."""

    fd: int
    node: int
    offset: int
    length: int


class Journal:
    """The places, in a file that is made if need be.

    Args:
        path: the file.
        places: fds below this number have one.

    Raises:
        OSError: the file cannot be made or mapped.
    """

    def __init__(self, path: Path, places: int) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, places * _SIZE)
            self._map = mmap.mmap(fd, places * _SIZE)
        finally:
            os.close(fd)
        self._places = places

    def put(self, place: Place) -> None:
        """Take a place; one that there is none for is left out."""
        if place.fd < self._places:
            at = place.fd * _SIZE
            _PLACE.pack_into(self._map, at + _TAKEN.size, place.node, place.offset, place.length)
            _TAKEN.pack_into(self._map, at, 1)  # last: the process may end in between

    def clear(self, fd: int) -> None:
        """Free the place of an event that is about to be answered."""
        if fd < self._places:
            _TAKEN.pack_into(self._map, fd * _SIZE, 0)

    def taken(self) -> list[Place]:
        """Give the events that wait."""
        found = []
        for fd in range(self._places):
            at = fd * _SIZE
            if self._map[at]:
                found.append(Place(fd, *_PLACE.unpack_from(self._map, at + _TAKEN.size)))
        return found

    def close(self) -> None:
        """Unmap the file."""
        self._map.close()
