"""What the transport needs of the kernel and of the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from lazyimg.fill.ports import Sink

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet
    from pathlib import Path


class KernelGroup(Protocol):
    """A fanotify group. `wait` and `read_events` belong to one thread, the rest to any."""

    fd: int

    def wait(self) -> bool:
        """Wait for events, or for `wake`; gives whether there are events."""
        ...

    def wake(self) -> None:
        """Make `wait` return, now or at its next call."""
        ...

    def read_events(self) -> bytes:
        """Give the bytes of some events, or b"" if there is none. Raises OSError."""
        ...

    def node_of(self, fd: int) -> int:
        """Give the inode number of an event's file. Raises OSError."""
        ...

    def answer(self, fd: int, response: bytes) -> bool:
        """Answer the event with this fd, then close the fd; gives whether the kernel took it."""
        ...

    def mark(self, fd: int) -> None:
        """Let reads of a file by whoever opens it from now on raise events. Raises OSError."""
        ...

    def unmark(self, fd: int) -> None:
        """Let reads of a file raise no events; it need not be marked. Raises OSError."""
        ...

    def deny_everything(self, errno: int, *, spare: AbstractSet[int] = frozenset()) -> int:
        """Deny every event that was read and not answered, but for those with the `spare` fds.

        Gives how many there were.
        """
        ...

    def close(self) -> None:
        """Close the group: if this was its last fd, all who wait read what is in the files."""
        ...


class CachedDevice(Sink, Protocol):
    """A device's file in the cache: `lazyimg.cache`'s DeviceFile."""

    name: str
    size: int
    path: Path
    fd: int
    node: int

    @property
    def complete(self) -> bool:
        """Whether it is wholly present and on the disk."""
        ...

    def absent(self, offset: int, length: int) -> list[range]:
        """Give the ranges that are missing; in any thread, from memory."""
        ...

    def present(self) -> list[range]:
        """Give the ranges that are there, in bytes."""
        ...

    def on_complete(self, call: Callable[[], None]) -> None:
        """Have this called once, in any thread, when it is complete."""
        ...
