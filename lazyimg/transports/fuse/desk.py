"""What a thread answers READs with: a buffer, and a pipe.

The pipe takes data from a file of the cache to the kernel without a copy in this process: the pages
that the kernel has of the file go into the pipe, and from there into the answer. That is one copy
less, and two system calls more.

Source: splice(2), pipe(7), fuse_dev_splice_write() in fs/fuse/dev.c.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import weakref
from typing import Final

PIPE_SIZE: Final = 1 << 20
"""Bytes that a pipe shall take: what anybody may ask for."""


class Desk:
    """A buffer and a pipe, one thread's at a time.

    Args:
        size: bytes of the buffer.
        pipe: there shall be one.

    Attributes:
        buffer: page-aligned.
        pipe_room: bytes of data that the pipe takes beside a header, however they are cut into
            pages: half of what it takes. Who puts in more would wait forever. 0: there is no pipe.
        entry, exit: the pipe's ends, closed with the last reference to this object.
    """

    def __init__(self, size: int, *, pipe: bool = True) -> None:
        self.buffer = memoryview(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self.pipe_room = 0
        self.entry = self.exit = -1
        if pipe:
            self._open()

    def _open(self) -> None:
        try:
            self.exit, self.entry = os.pipe2(os.O_CLOEXEC)
        except OSError:  # no more fds: the buffer does
            return
        self._close = weakref.finalize(self, _close, self.exit, self.entry)
        try:
            size = fcntl.fcntl(self.entry, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        except OSError:  # pipes have a limit for each user
            size = fcntl.fcntl(self.entry, fcntl.F_GETPIPE_SZ)
        self.pipe_room = size // 2

    def room(self, length: int) -> memoryview:
        """Give `length` bytes to write to; kernels with larger limits than ours may want more."""
        if length <= len(self.buffer):
            return self.buffer[:length]
        return memoryview(bytearray(length))

    def empty_pipe(self) -> None:
        """Have an empty pipe, whatever is left in this one."""
        self.pipe_room = 0
        self._close()
        self._open()


def _close(*fds: int) -> None:
    for fd in fds:
        os.close(fd)
