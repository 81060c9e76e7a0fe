"""What the fill engine needs of others, from its own side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from lazyimg.errors import AccessDeniedError

if TYPE_CHECKING:
    from collections.abc import Sequence


class NotAskedError(AccessDeniedError):
    """A blob is not read for those who read now; this says nothing of the blob."""


class BlobReader(Protocol):
    """One blob of a registry (or a local file), for the fills of one image."""

    async def read(self, offset: int, length: int) -> bytes:
        """Give exactly `length` bytes at `offset` of the compressed blob.

        Duties: authenticate, retry what may be retried, and raise LazyimgError otherwise. The
        caller sets the deadline (by cancelling) and checks what it gets.
        """
        ...

    def peek(self, offset: int, length: int) -> bytes | memoryview | None:
        """Give the same bytes as `read` if they are in this machine's memory, else None.

        They stay valid until this thread peeks again, at any blob.

        Duties: wait for nothing, not even a disk; raise nothing. Any thread may call.
        """
        ...

    def release(self) -> None:
        """Give back what need not be kept while nobody reads; it may be read again later."""
        ...

    def distrust(self, offset: int, length: int) -> bool:
        """Take note that what `read` gave for this range is not what it should be.

        Returns:
            Whether reading again may give other bytes.
        """
        ...


class Sink(Protocol):
    """A device as a transport sees it: where filled bytes go."""

    async def write(self, offset: int, data: memoryview) -> None:
        """Make `data` present at `offset`: both a multiple of `BLOCK_SIZE` long.

        Duties: when it returns, a reader can see the bytes; raise StorageError when the disk
        is full or fails, KernelError when nobody can read it any more. `data` is not kept.
        """
        ...

    def write_now(self, offset: int, parts: Sequence[memoryview]) -> None:
        """Write as `write` does, in the calling thread, which waits for the disk.

        Called by the engine's workers, so that what they have decoded needs no other thread.

        Args:
            offset: see `write`.
            parts: what follows each other from there on; together whole blocks.
        """
        ...


class Memory(Protocol):
    """Memory for what is decoded. Called by the engine's workers; raises nothing."""

    def take(self) -> object:
        """Have some at hand: fills begin."""
        ...

    def give_back(self) -> object:
        """Keep none that nobody uses: there have been no fills for a while."""
        ...
