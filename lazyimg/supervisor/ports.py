"""What the loop needs of the system: `device.ProcessDevice`, or a scripted one in tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class Datagram(NamedTuple):
    """A datagram, the process that sent it, and the fds that came with it: the receiver's now."""

    data: bytes
    sender: int
    fds: tuple[int, ...]


class Happened(NamedTuple):
    """What happened while waiting.

    Attributes:
        ends: (process, exit code, or a signal's number below zero) of children that ended.
        datagrams: all that were sent before those ends, at least.
        stops: signals that ask to end.
        callers: (listening socket, connection): the receiver's now.
    """

    ends: tuple[tuple[int, int], ...] = ()
    datagrams: tuple[Datagram, ...] = ()
    stops: tuple[int, ...] = ()
    callers: tuple[tuple[int, int], ...] = ()


class Processes(Protocol):
    """The worker's process, the channel to it, and the one to the service manager."""

    def now(self) -> float:
        """Give the time in seconds, of a clock that never goes back."""
        ...

    def start(self, fds: Sequence[tuple[str, int]], restarts: int) -> int:
        """Start a worker that gets these fds by name; gives its id. Raises OSError."""
        ...

    def signal(self, process: int, number: int) -> None:
        """Send a signal to a child that was not reported as ended yet."""
        ...

    def wait(self, timeout: float | None, listeners: Sequence[int] = ()) -> Happened:
        """Wait until something happens, also to these sockets, or for `timeout` seconds."""
        ...

    def greet(self, caller: int, name: str, greeting: bytes) -> None:
        """Send a caller something; it, and the name, are for a worker after the first.

        Never raises; the fd is not the caller's of this any more.
        """
        ...

    def notify(self, text: str) -> None:
        """Tell the service manager, if there is one. Never raises."""
        ...

    def close_fd(self, fd: int) -> None:
        """Close an fd."""
        ...
