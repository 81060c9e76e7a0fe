"""What a transport needs of others, and what others see of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from lazyimg.errors import StorageError
    from lazyimg.fill.ports import Sink
    from lazyimg.transports.counters import Counters


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


class Transport(Protocol):
    """A transport that runs, as the rest of the daemon sees it. Devices are named by cookies."""

    @property
    def name(self) -> str:
        """One word: cachefiles, ..."""
        ...

    @property
    def control_fd(self) -> int:
        """What another process needs to take over."""
        ...

    @property
    def counters(self) -> Counters:
        """What was done since the start."""
        ...

    async def stop(self) -> None:
        """Fail what is pending, and give the kernel everything back."""
        ...

    async def opened(self, cookie: str) -> Sink:
        """Give where a device of a mounted image is written to.

        Waits for the kernel, where that has to open it first. Raises LazyimgError.
        """
        ...

    def present(self, cookie: str) -> list[range] | None:
        """Give the ranges, in bytes, that an open device has; None if it is not open. Blocks.

        Raises LazyimgError.
        """
        ...

    def present_on_disk(self, cookie: str) -> list[range] | None:
        """Give the ranges, in bytes, that a device has which is not open; None if it has none.

        Blocks. Raises OSError.
        """
        ...

    def shortage(self) -> StorageError | None:
        """Say why nothing can be stored now; None if there is room. Blocks; raises OSError."""
        ...

    def is_tight(self) -> bool:
        """Tell whether only what is read should be stored now. Blocks; raises OSError."""
        ...


class Keeper(Protocol):
    """Keeps fds for the process that takes over: `lazyimg.host.service_manager`."""

    def keep(self, name: str, fd: int) -> None:
        """Have an fd kept; when this returns it is safe."""
        ...

    def forget(self, name: str) -> None:
        """Have what is kept by this name closed."""
        ...
