"""The kernel's end of /dev/fuse, in memory, and a filler of one pattern.

A socket of datagrams does for the device: one message for each read(2) and write(2), in order. A
test plays those who read.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from typing import TYPE_CHECKING, Final

from lazyimg_formats.fuse.layout import Opcode

if TYPE_CHECKING:
    from lazyimg.errors import LazyimgError
    from lazyimg.fill.ports import Sink

WAIT: Final = 20.0
"""Seconds after which a test has failed."""

_INIT: Final = struct.pack("=IIIII44x", 7, 45, 131_072, (1 << 32) - 1, (1 << 32) - 1)


class FakeKernel:
    """Asks, and takes the answers.

    Attributes:
        fd: the daemon's end, which is the daemon's to close.
    """

    def __init__(self) -> None:
        self._socket, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(WAIT)
        self.fd = ours.detach()
        self._unique = 0

    def ask(self, opcode: int, node: int = 1, body: bytes = b"", *, unique: int = 0) -> int:
        """Send a request; gives its number."""
        self._unique += 2
        number = unique or self._unique
        header = struct.pack("=IIQQIIIHH", 40 + len(body), opcode, number, node, 0, 0, 0, 0, 0)
        self._socket.send(header + body)
        return number

    def send(self, message: bytes) -> None:
        """Send any bytes."""
        self._socket.send(message)

    def ask_init(self) -> int:
        """Send INIT."""
        return self.ask(Opcode.INIT, 0, _INIT)

    def ask_read(self, node: int, offset: int, size: int, *, unique: int = 0) -> int:
        """Send READ."""
        body = struct.pack("=QQIIQII", 0, offset, size, 0, 0, 0, 0)
        return self.ask(Opcode.READ, node, body, unique=unique)

    def receive(self) -> bytes:
        """Wait for the next message."""
        return self._socket.recv(1 << 21)

    def answer(self) -> tuple[int, int, bytes]:
        """Wait for the next answer; give its number, its errno, and what it says.

        The socket parts what is spliced into messages of 16 pages: such answers come one by one.
        """
        message = self.receive()
        length, error, unique = struct.unpack_from("=IiQ", message)
        while len(message) < length:
            message += self.receive()
        assert length == len(message)
        return unique, -error, message[16:]

    def answers(self, count: int) -> dict[int, tuple[int, bytes]]:
        """Wait for answers, in any order; by their numbers."""
        found = [self.answer() for _ in range(count)]
        assert len({unique for unique, _, _ in found}) == count
        return {unique: (error, data) for unique, error, data in found}

    def silent(self) -> bool:
        """Tell whether no answer waits."""
        self._socket.settimeout(0)
        try:
            self._socket.recv(1)
        except BlockingIOError:
            return True
        finally:
            self._socket.settimeout(WAIT)
        return False

    def end(self) -> None:
        """End the connection."""
        self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the kernel's end back."""
        self._socket.close()


class PatternFiller:
    """Fills with bytes that no offset has in common with another.

    Attributes:
        local: what `read_local` says.
        failure: what a fill raises.
        held: while it is not set, fills wait.
        fills: the ranges that were asked for.
        asked: is set when one was.
    """

    def __init__(self, size: int) -> None:
        self.content = random.Random(size).randbytes(size)  # noqa: S311 - any bytes
        self.local = False
        self.failure: LazyimgError | Exception | None = None
        self.held = asyncio.Event()
        self.held.set()
        self.fills: list[tuple[int, int]] = []
        self.asked = asyncio.Event()

    def size(self, cookie: str) -> int | None:
        return len(self.content)

    def read_local(self, cookie: str, offset: int, length: int, buffer: memoryview) -> int | None:
        if not self.local:
            return None
        data = self.content[offset : offset + len(buffer)]
        buffer[: len(data)] = data
        return len(data)

    async def fill(self, cookie: str, offset: int, length: int, sink: Sink) -> None:
        self.fills.append((offset, length))
        self.asked.set()
        await self.held.wait()
        if self.failure is not None:
            raise self.failure
        await sink.write(offset, memoryview(self.content)[offset : offset + length])
