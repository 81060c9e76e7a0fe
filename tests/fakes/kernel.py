"""A scripted kernel behind the device port: what fs/cachefiles does, in memory.

It speaks the real messages, checks each command and completion as the kernel does, and keeps the
objects in unlinked memory files. A test plays the readers.
"""

from __future__ import annotations

import os
import struct
import threading
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import EINVAL, ENOBUFS
from typing import TYPE_CHECKING

from lazyimg.transports.cachefiles.object_file import ObjectFile
from lazyimg.transports.cachefiles.ports import Ready
from lazyimg_formats.cachefiles.layout import Opcode

if TYPE_CHECKING:
    from collections.abc import Iterator

WAIT = 10.0
"""Seconds after which a test that waits for an answer has failed."""


def message(opcode: int, msg_id: int, object_id: int, body: bytes = b"") -> bytes:
    """Give the bytes of a request."""
    return struct.pack("=IIII", msg_id, opcode, 16 + len(body), object_id) + body


@dataclass
class KernelObject:
    """An object as the kernel has it: `content` is our fd of its file, `fd` the daemon's."""

    object_id: int
    msg_id: int
    fd: int
    content: int
    not_ready: int = 0  # how many writes still give ENOBUFS
    closed: bool = False

    def read(self, offset: int, length: int) -> bytes:
        """Give what was written."""
        return os.pread(self.content, length, offset)


class FakeObjectFile(ObjectFile):
    """The daemon's end of an object: its completions go to the fake kernel."""

    def __init__(self, fd: int, kernel: FakeKernel) -> None:
        super().__init__(fd)
        self._kernel = kernel

    def _write_buffer(self, offset: int, buffer: memoryview) -> None:
        opened = self._kernel.object_of(self.fd)
        if opened.not_ready:
            opened.not_ready -= 1
            raise OSError(ENOBUFS, "No buffer space available")
        super()._write_buffer(offset, buffer)

    def complete(self, msg_id: int) -> bool:
        return self._kernel.complete(self.fd, msg_id)

    def close(self) -> None:
        self._kernel.object_of(self.fd).closed = True
        super().close()


@dataclass
class FakeKernel:
    """Implements `ports.KernelDevice`.

    Attributes:
        replies: msg_id of an OPEN -> the number in its copen.
        completed: msg_id of each READ that was completed, in order.
        commands: every command written that is not a copen.
        refuse_commands: errno for the next commands, if not 0.
        read_errors: errnos that the next reads of a message give.
        culling: whether culling is wanted.
        closed: the control fd was closed.
    """

    replies: dict[int, int] = field(default_factory=dict)
    completed: list[int] = field(default_factory=list)
    commands: list[bytes] = field(default_factory=list)
    refuse_commands: int = 0
    read_errors: deque[int] = field(default_factory=deque)
    culling: bool = False
    closed: bool = False
    _queue: deque[bytes] = field(default_factory=deque)
    _objects: dict[int, KernelObject] = field(default_factory=dict)  # by the daemon's fd
    _opening: set[int] = field(default_factory=set)
    _pending: dict[int, KernelObject] = field(default_factory=dict)
    _next_id: int = 0
    _opens: int = 0
    _woken: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)

    # The daemon's side.

    def wait(self, *, culling: bool, timeout: float | None) -> Ready:
        with self._changed:
            self._changed.wait_for(
                lambda: self._queue or self._woken or (culling and self.culling), timeout
            )
            self._woken = False
            return Ready(bool(self._queue), culling and self.culling)

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def read_message(self) -> bytes:
        with self._changed:
            if self.read_errors:
                number = self.read_errors.popleft()
                self._queue.popleft()
                raise OSError(number, os.strerror(number))
            return self._queue.popleft() if self._queue else b""

    def write_command(self, command: bytes) -> None:
        with self._changed:
            if self.refuse_commands:
                raise OSError(self.refuse_commands, os.strerror(self.refuse_commands))
            if command.startswith(b"copen "):
                msg_id, number = map(int, command[6:].split(b","))
                if msg_id not in self._opening:
                    raise OSError(EINVAL, "Invalid argument")
                self._opening.remove(msg_id)
                self.replies[msg_id] = number
            else:
                self.commands.append(command)
            self._changed.notify_all()

    def adopt(self, fd: int) -> FakeObjectFile:
        return FakeObjectFile(fd, self)

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def complete(self, fd: int, msg_id: int) -> bool:
        with self._changed:
            if self._pending.get(msg_id) is not self._objects[fd]:
                return False
            del self._pending[msg_id]
            self.completed.append(msg_id)
            self._changed.notify_all()
            return True

    def object_of(self, fd: int) -> KernelObject:
        return self._objects[fd]

    # The test's side.

    def open(
        self, cookie: bytes, volume: bytes = b"erofs,domain", *, with_nul: bool = True
    ) -> KernelObject:
        """Send an OPEN; its volume key ends in NUL, unless told otherwise."""
        fd = os.memfd_create("object", os.MFD_ALLOW_SEALING)
        with self._changed:
            self._opens += 1
            opened = KernelObject(self._opens, self._take_id(), fd, os.dup(fd))
            self._objects[fd] = opened
            self._opening.add(opened.msg_id)
        volume += b"\0" * with_nul
        body = struct.pack("=IIII", len(volume), len(cookie), fd, 0) + volume + cookie
        self.send(message(Opcode.OPEN, opened.msg_id, opened.object_id, body))
        return opened

    def read(
        self, opened: KernelObject, offset: int, length: int, msg_id: int | None = None
    ) -> int:
        """Send a READ, as a reader that misses a range would make it, and give its msg_id."""
        with self._changed:
            msg_id = self._take_id() if msg_id is None else msg_id
            self._pending[msg_id] = opened
        body = struct.pack("=QQ", offset, length)
        self.send(message(Opcode.READ, msg_id, opened.object_id, body))
        return msg_id

    def kill_reader(self, msg_id: int) -> None:
        """Let a READ vanish."""
        with self._changed:
            del self._pending[msg_id]

    def close_object(self, opened: KernelObject) -> None:
        """Send a CLOSE."""
        self.send(message(Opcode.CLOSE, self._take_id(), opened.object_id))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let the daemon see the requests that are sent meanwhile only when all are there."""
        with self._changed:
            yield

    def send(self, raw: bytes) -> None:
        """Send any bytes."""
        with self._changed:
            self._queue.append(raw)
            self._changed.notify_all()

    def want_culling(self) -> None:
        """Ask for culling until told otherwise."""
        with self._changed:
            self.culling = True
            self._changed.notify_all()

    def wait_reply(self, opened: KernelObject) -> int:
        """Wait for the copen of an object and give its number. Blocks."""
        with self._changed:
            assert self._changed.wait_for(lambda: opened.msg_id in self.replies, WAIT)
            return self.replies[opened.msg_id]

    def wait_completed(self, msg_id: int) -> None:
        """Wait for a READ's completion. Blocks."""
        with self._changed:
            assert self._changed.wait_for(lambda: msg_id in self.completed, WAIT)

    def wait_idle(self) -> None:
        """Wait until every message was taken. Blocks."""
        while self._queue:
            self.wake()

    @property
    def pending(self) -> set[int]:
        """READs that wait."""
        return set(self._pending)

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1
