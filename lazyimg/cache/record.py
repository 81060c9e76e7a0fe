"""A record on disk of which blocks are present.

A header of 64 bytes (magic, the device's size, zeros), then one bit for each block as in
`BlockMap`. Numbers are little-endian.
"""

from __future__ import annotations

import os
import struct
import weakref
from typing import TYPE_CHECKING, Final

from lazyimg_formats.device_table import BLOCK_SIZE

if TYPE_CHECKING:
    from pathlib import Path

_MAGIC: Final = b"lazyblk1"
_HEADER: Final = struct.Struct("<8sQ48x")


class Record:
    """An open record. Its fd is closed by `close`, or with the last reference to it.

    Args:
        path: of the file.
        size: bytes of the device.
        make: make the file, with nothing present; it must not exist.

    Raises:
        OSError: the file cannot be opened; it does not exist, or does already.
    """

    def __init__(self, path: Path, size: int, *, make: bool = False) -> None:
        self._size = size
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(path, flags | (os.O_CREAT | os.O_EXCL if make else 0), 0o600)
        self._close = weakref.finalize(self, os.close, self._fd)
        if make:
            os.pwrite(self._fd, _HEADER.pack(_MAGIC, size), 0)
            os.truncate(self._fd, _HEADER.size + self._length)

    @property
    def _length(self) -> int:
        return -(-self._size // BLOCK_SIZE // 8)

    def read(self) -> bytes | None:
        """Give all bits; None if this is no record, or of a device of another size.

        Raises OSError.
        """
        if record_size(os.pread(self._fd, _HEADER.size, 0)) != self._size:
            return None
        bits = self.read_piece(0, self._length)
        return bits if len(bits) == self._length else None

    def read_piece(self, low: int, high: int) -> bytes:
        """Give bytes `low` to `high` - 1 of the bits. Raises OSError."""
        found = bytearray()
        while len(found) < high - low:
            start = low + len(found)
            more = os.pread(self._fd, high - start, _HEADER.size + start)
            if not more:
                break
            found += more
        return bytes(found)

    def write(self, low: int, bits: bytes) -> None:
        """Put bits in the place of those from byte `low` on. Raises OSError."""
        done = 0
        while done < len(bits):
            done += os.pwrite(self._fd, bits[done:], _HEADER.size + low + done)

    def sync(self) -> None:
        """Make what was written survive a power cut. Raises OSError."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close it; whatever else is called then raises OSError."""
        self._fd = -1
        self._close()


def record_size(header: bytes) -> int | None:
    """Give the size, in bytes, of the device that a record with this beginning is of, or None."""
    if len(header) < _HEADER.size:
        return None
    magic, size = _HEADER.unpack(header[: _HEADER.size])
    return int(size) if magic == _MAGIC else None


def read_record_size(path: Path) -> int | None:
    """Give the size, in bytes, of the device that a record is of; None if it is none.

    Raises OSError.
    """
    with path.open("rb", buffering=0) as file:
        return record_size(file.read(_HEADER.size))
