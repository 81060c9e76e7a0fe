"""Whether a file system that was detached has ended: nobody is in it any more.

The mount table does not list what is detached, and the kernel's names of EROFS's superblocks do not
say which is which. But a watch of inotify on a directory does not keep its file system, and tells
when that ends.

Source: inotify(7), fsnotify_sb_delete() in fs/notify/fsnotify.c.
"""

from __future__ import annotations

import ctypes
import os
import struct
import weakref
from typing import Final

IN_DELETE_SELF: Final = 0x400
IN_UNMOUNT: Final = 0x2000
IN_IGNORED: Final = 0x8000

_READ_SIZE: Final = 1 << 16
_EVENT: Final = struct.Struct("=iIII")  # inotify_event, but for the name


class Endings:
    """Watches directories for the end of their file systems. Not thread-safe.

    Raises:
        OSError: a user may have so many (fs.inotify.max_user_instances), or no more fds.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise _error()
        weakref.finalize(self, os.close, self._fd)

    def watch(self, directory: str) -> int:
        """Watch a directory; gives the watch's number. Reads nothing of it. Raises OSError."""
        path = os.fsencode(directory)
        number: int = self._libc.inotify_add_watch(self._fd, path, IN_DELETE_SELF)
        if number < 0:
            raise _error()
        return number

    def ended(self) -> set[int]:
        """Give the numbers of the watches that have ended since the last call. Raises OSError."""
        found: set[int] = set()
        while data := self._read():
            at = 0
            while at < len(data):
                number, mask, _, length = _EVENT.unpack_from(data, at)
                if mask & (IN_UNMOUNT | IN_IGNORED):
                    found.add(number)
                at += _EVENT.size + length
        return found

    def _read(self) -> bytes:
        try:
            return os.read(self._fd, _READ_SIZE)
        except BlockingIOError:
            return b""


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
