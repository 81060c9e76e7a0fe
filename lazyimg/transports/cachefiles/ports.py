"""What the loop needs of the kernel: `device.Device`, or a scripted one in tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from lazyimg.transports.cachefiles.object_file import ObjectFile


@dataclass(frozen=True, slots=True)
class Ready:
    """Why `wait` returned: requests to read, culling wanted; neither: woken, or time is up."""

    requests: bool
    culling: bool


class KernelDevice(Protocol):
    """A bound control fd. `wait` and `read_message` belong to one thread, the rest to any."""

    def wait(self, *, culling: bool, timeout: float | None) -> Ready:
        """Wait for requests, for `wake`, for `timeout` seconds; if `culling`, also for culling."""
        ...

    def wake(self) -> None:
        """Make `wait` return, now or at its next call."""
        ...

    def read_message(self) -> bytes:
        """Give one request, or b"" if there is none. Raises OSError."""
        ...

    def write_command(self, command: bytes) -> None:
        """Give the kernel a command. Raises OSError."""
        ...

    def adopt(self, fd: int) -> ObjectFile:
        """Take an object's fd, which came in a request, into care."""
        ...

    def close(self) -> None:
        """Give the control fd back: the kernel fails all that is pending."""
        ...
