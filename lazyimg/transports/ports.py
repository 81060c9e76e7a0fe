"""What a transport needs of others, from its own side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from lazyimg.fill.ports import Sink


class Filler(Protocol):
    """Knows every object that may be mounted: the bootstraps and the devices."""

    def size(self, cookie: str) -> int | None:
        """Give an object's bytes, or None if there is no such object.

        Duties: answer at once, from memory, in any thread, and never raise: a process waits for
        the answer and cannot be killed meanwhile.
        """
        ...

    def read_local(self, cookie: str, offset: int, length: int, buffer: memoryview) -> int | None:
        """Put the bytes of a range into `buffer` if they need no fetching, and give their number.

        None means that they do; the buffer may hold anything then. The range may reach past the
        object's end: less than `length` bytes means zeros from there on. More than `length`, up
        to what the buffer takes, is welcome where it costs nothing.

        Duties: as `size`; the bytes that are given are verified.
        """
        ...

    async def fill(self, cookie: str, offset: int, length: int, sink: Sink) -> None:
        """Write the whole range to `sink`; called in the event loop.

        Offset and length (bytes) are multiples of `BLOCK_SIZE`; the range may reach past the
        object's end, or lie behind it: zeros.

        Duties: return when all of it is written, or raise LazyimgError, within the deadline of
        a read. Nothing unverified is written.
        """
        ...
