"""What was taken from the kernel and is not answered yet, where the next process finds it.

Kernels before Linux 6.9 ask nothing again of a process that follows one that died
(FUSE_NOTIFY_RESEND): what that one had taken waits for an answer, which needs no more than its
number. So what is taken lies in shared memory, whose fd the service manager keeps:

    a buffer for each thread, into which the kernel writes what the thread takes; it stays until
    the thread takes the next one
    READs that wait for a fill: (number, node, offset, bytes), each word in one store, the number
    last; 0: free

The thread notes a READ before it takes another request, and it is forgotten after it was answered.
So whenever a process is killed, each request that it took is there, some of them answered: to
answer these again changes nothing, the kernel has no such number any more, and will have none.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Final

from lazyimg.errors import KernelError
from lazyimg.transports.fuse.device import READ_SIZE
from lazyimg_formats.errors import FormatError
from lazyimg_formats.fuse.messages import ReadRequest, parse_request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lazyimg_formats.fuse.messages import Request

NAME: Final = "fuse-taken"
"""What the fd is called that is kept."""

THREADS: Final = 4
"""Requests that are taken at a time."""

WAITING: Final = 1 << 14
"""READs that may wait; EROFS and loop devices have 512 at a time (`MAX_BACKGROUND`)."""

_WORDS: Final = 4  # of a READ: number, node, offset, bytes
_WORD: Final = 8  # bytes
_BUFFERS: Final = THREADS * READ_SIZE  # bytes
_SIZE: Final = _BUFFERS + WAITING * _WORDS * _WORD


class Taken:
    """The memory, mapped until this object is gone.

    All methods may be called from any thread.

    Args:
        fd: of a process that died, owned from now on; None: begin with nothing.

    Attributes:
        fd: to be kept.
        buffers: one for each thread.

    Raises:
        KernelError: what that process left is not of this version; or there is no memory.
    """

    def __init__(self, fd: int | None = None) -> None:
        try:
            self.fd = _make() if fd is None else fd
        except OSError as error:
            raise KernelError("memfd_create(2)", f"failed: {error.strerror}") from error
        os.set_inheritable(self.fd, False)  # noqa: FBT003 - positional only
        if os.fstat(self.fd).st_size != _SIZE:
            os.close(self.fd)
            raise KernelError(NAME, "another version of lazyimg has left it")
        memory = memoryview(mmap.mmap(self.fd, _SIZE))
        self.buffers = [
            memory[start : start + READ_SIZE] for start in range(0, _BUFFERS, READ_SIZE)
        ]
        self._words = memory[_BUFFERS:].cast("Q")
        self._places: dict[int, int] = {}  # of noted READs, by their numbers
        self._free: list[int] = []
        for place in range(0, WAITING * _WORDS, _WORDS):
            if unique := self._words[place]:
                self._places[unique] = place
            else:
                self._free.append(place)
        self._free.reverse()  # so that few pages are touched

    def note(self, unique: int, node: int, offset: int, size: int) -> bool:
        """Keep a READ, once it was taken; False if there is no room."""
        if unique in self._places:
            return True
        try:
            place = self._free.pop()
        except IndexError:
            return False
        words = self._words
        words[place + 1], words[place + 2], words[place + 3] = node, offset, size
        words[place] = unique
        self._places[unique] = place
        return True

    def forget(self, unique: int) -> None:
        """Take note that a READ was answered, if it was noted."""
        place = self._places.pop(unique, None)
        if place is not None:
            self._words[place] = 0
            self._free.append(place)

    def left(self) -> tuple[Sequence[Request], Sequence[ReadRequest]]:
        """Give what a process that died had taken: in hand, and the READs, which are noted now.

        To be called before anything is taken. What is in hand is there until then.
        """
        in_hand = []
        for buffer in self.buffers:
            request = _parse(buffer)
            if isinstance(request, ReadRequest):
                self.note(request.unique, request.node, request.offset, request.size)
            elif request is not None:
                in_hand.append(request)
        words = self._words
        reads = [
            ReadRequest(unique, words[place + 1], 0, words[place + 2], words[place + 3])
            for unique, place in sorted(self._places.items())
        ]
        return in_hand, reads

    def close(self) -> None:
        """Close the fd; what was kept of it stays."""
        os.close(self.fd)


def _make() -> int:
    fd = os.memfd_create("lazyimg-fuse-taken", os.MFD_CLOEXEC)
    os.ftruncate(fd, _SIZE)
    return fd


def _parse(buffer: memoryview) -> Request | None:
    """Give what was written to a buffer, if anything was."""
    length = int.from_bytes(buffer[:4], "little")
    try:
        return parse_request(memoryview(bytes(buffer[:length])))
    except FormatError:
        return None
