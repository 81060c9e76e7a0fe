"""A fanotify group whose events are scripted, and a device in memory."""

from __future__ import annotations

import fcntl
import os
import struct
from queue import Empty, SimpleQueue
from threading import Condition
from typing import TYPE_CHECKING, Final

from lazyimg_formats.device_table import BLOCK_SIZE
from lazyimg_formats.fanotify.messages import allow, deny

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

WAIT: Final = 20.0
"""Seconds after which a test has failed."""

OVERFLOW: Final = struct.pack("=IBBHQii", 24, 3, 0, 24, 0x4000, -1, 0)


def access(fd: int, offset: int, count: int, *, pid: int = 77) -> bytes:
    """Give the bytes of an event."""
    head = struct.pack("=IBBHQii", 48, 3, 0, 24, 0x100000, fd, pid)
    return head + struct.pack("=BBHIQQ", 6, 0, 24, 0, offset, count)


def free_number() -> int:
    """Give the number of no fd, which nobody is about to get."""
    null = os.open(os.devnull, os.O_RDONLY)
    number = fcntl.fcntl(null, fcntl.F_DUPFD_CLOEXEC, null + 1000)
    for fd in (null, number):
        os.close(fd)
    return number


class ScriptedGroup:
    """Implements `KernelGroup`: gives the events it is told, and keeps the answers.

    Attributes:
        nodes: the inode numbers of events' fds.
        denied: (errno, spared fds) of each `deny_everything`.
        marks: fds that are marked.
        refuse: raised by `mark` and `unmark`.
        gone: fds of events whose readers are gone.
        broken: raised by `answer`.
    """

    def __init__(self) -> None:
        self.fd = 1000
        self.nodes: dict[int, int] = {}
        self.denied: list[tuple[int, set[int]]] = []
        self.marks: set[int] = set()
        self.refuse: OSError | None = None
        self.gone: set[int] = set()
        self.broken: OSError | None = None
        self.closed = False
        self._answers: SimpleQueue[tuple[int, bytes]] = SimpleQueue()
        self._events: list[bytes | OSError] = []
        self._woken = False
        self._changed = Condition()

    def raise_events(self, *events: bytes | OSError) -> None:
        """Let these be read, in one read each."""
        with self._changed:
            self._events += events
            self._changed.notify()

    def answered(self) -> tuple[int, str]:
        """Wait for the next answer; give its fd, and what it says."""
        fd, response = self._answers.get(timeout=WAIT)
        if response == allow(fd):
            return fd, "allow"
        (value,) = struct.unpack_from("=I", response, 4)
        assert response == deny(fd, value >> 24)
        return fd, f"deny {value >> 24}"

    def silent(self) -> bool:
        """Whether no answer waits."""
        try:
            self._answers.get_nowait()
        except Empty:
            return True
        return False

    def wait(self) -> bool:
        """Wait for events or `wake`."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._events or self._woken, WAIT)
            self._woken = False
            return bool(self._events)

    def wake(self) -> None:
        """Make `wait` return."""
        with self._changed:
            self._woken = True
            self._changed.notify()

    def read_events(self) -> bytes:
        """Give what was raised, or nothing."""
        with self._changed:
            event = self._events.pop(0) if self._events else b""
        if isinstance(event, OSError):
            raise event
        return event

    def node_of(self, fd: int) -> int:
        """Give the inode number of an event's file."""
        return self.nodes[fd]

    def answer(self, fd: int, response: bytes) -> bool:
        """Keep an answer."""
        self._answers.put((fd, response))
        if self.broken is not None:
            raise self.broken
        return fd not in self.gone

    def mark(self, fd: int) -> None:
        """Mark a file."""
        if self.refuse is not None:
            raise self.refuse
        self.marks.add(fd)

    def unmark(self, fd: int) -> None:
        """Take the mark away."""
        if self.refuse is not None:
            raise self.refuse
        self.marks.discard(fd)

    def deny_everything(self, errno: int, *, spare: AbstractSet[int] = frozenset()) -> int:
        """Take note of it."""
        self.denied.append((errno, set(spare)))
        return 0

    def close(self) -> None:
        """Take note of it."""
        assert not self.closed
        self.closed = True


class MemoryDevice:
    """Implements `CachedDevice` without any bytes: only which blocks are present."""

    def __init__(self, path: Path, node: int, *, size: int = 64 * BLOCK_SIZE, fd: int = -1) -> None:
        self.name = path.name
        self.path = path
        self.size = size
        self.node = node
        self.fd = fd
        self.complete = False
        self.blocks: set[int] = set()
        self.broken = False

    def absent(self, offset: int, length: int) -> list[range]:
        """Give each missing block by itself."""
        if self.broken:
            raise ValueError("broken")
        first, last = offset // BLOCK_SIZE, -(-(offset + length) // BLOCK_SIZE)
        missing = [block for block in range(first, last) if block not in self.blocks]
        return [range(block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE) for block in missing]

    def present(self) -> list[range]:
        """Give each block by itself."""
        return [range(one * BLOCK_SIZE, (one + 1) * BLOCK_SIZE) for one in sorted(self.blocks)]

    def on_complete(self, call: Callable[[], None]) -> None:
        """Do nothing."""

    async def write(self, offset: int, data: memoryview) -> None:
        """Make blocks present."""
        self.write_now(offset, [data])

    def write_now(self, offset: int, parts: Sequence[memoryview]) -> None:
        """Make blocks present."""
        length = sum(map(len, parts))
        self.blocks |= set(range(offset // BLOCK_SIZE, (offset + length) // BLOCK_SIZE))
