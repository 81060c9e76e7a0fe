"""Mutual exclusion that costs no system call while nobody waits.

CPython (3.11 to 3.13) reads the clock each time that a `threading.Lock` is taken, free or not.
Where the clock is not mapped into the process (user-mode Linux, guests with certain clock sources)
that is a system call, and a kernel read takes eight locks.
"""

from __future__ import annotations

from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType


class Mutex:
    """What a `with` statement holds, one thread at a time. Not reentrant."""

    __slots__ = ("_token",)

    def __init__(self) -> None:
        self._token: SimpleQueue[None] = SimpleQueue()
        self._token.put(None)

    def __enter__(self) -> None:
        """Wait for the token."""
        self._token.get()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give it back."""
        self._token.put(None)
