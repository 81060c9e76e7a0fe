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

    def local(
        self, cookie: str, offset: int, length: int, ahead: int = 0
    ) -> bytes | memoryview | None:
        """Give the bytes of a range that need no fetching, or None if they do.

        The range may reach past the object's end: less than `length` bytes means zeros from
        there on. Up to `ahead` bytes may be given instead of `length`.

        Duties: as `size`; the bytes are verified and stay valid until the object is removed.
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
