"""Lines of secrets that outlive a process, in memory: on no disk, and gone with the machine.

They are in a file of memory (memfd_create(2)), which the service manager holds for the next process
(`service_manager`). Each line is valid from the moment it is whole; one that a process could not
finish writing is left out.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from lazyimg.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_SIZE: Final = 1 << 20
"""Bytes; then what is not valid any more is to be left out."""


class MemoryLines:
    """A file of lines.

    Args:
        name: what the kernel calls the file.
        fd: of the file that a process before this one has kept; owned from now on. None: a new one.

    Attributes:
        fd: of the file.

    Raises:
        StorageError: from every method, when there is no memory.
    """

    def __init__(self, name: str, fd: int | None = None) -> None:
        try:
            self.fd = os.memfd_create(name, os.MFD_CLOEXEC) if fd is None else fd
            self._end = os.fstat(self.fd).st_size
        except OSError as error:
            raise _failure(error) from error

    def read(self) -> Sequence[bytes]:
        """Give the lines that are whole; what is added from now on is behind them."""
        try:
            data = os.pread(self.fd, self._end, 0)
        except OSError as error:
            raise _failure(error) from error
        *lines, unfinished = data.split(b"\n")
        self._end = len(data) - len(unfinished)
        return lines

    def has_room(self, line: bytes) -> bool:
        """Tell whether a line can be added before `MAX_SIZE` is reached."""
        return self._end + len(line) < MAX_SIZE

    def add(self, line: bytes) -> None:
        """Add a line, which has no line break."""
        try:
            self._end += os.pwrite(self.fd, line + b"\n", self._end)
        except OSError as error:
            raise _failure(error) from error

    def replace(self, lines: Iterable[bytes]) -> None:
        """Have these lines only."""
        data = b"".join(line + b"\n" for line in lines)
        try:
            os.pwrite(self.fd, data, 0)
            os.ftruncate(self.fd, len(data))
        except OSError as error:
            raise _failure(error) from error
        self._end = len(data)

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


def _failure(error: OSError) -> StorageError:
    return StorageError("credentials", f"cannot be kept in memory: {error.strerror}")
