"""Whose turn it is at one host: requests and bytes in flight are limited, readers go first.

The order is by urgency, then first come; nobody overtakes, so a large request is never starved by
small ones. How urgent a request is may change while it waits: whoever reads sets `URGENCY` for its
task to something that always knows.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Urgent(Protocol):
    """Somebody who waits."""

    @property
    def priority(self) -> int:
        """A smaller number goes first; 0 is for those whom somebody waits for."""
        ...


URGENCY: Final[ContextVar[Urgent | None]] = ContextVar("urgency", default=None)
"""How urgent the requests of this task are; None is as urgent as can be."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """One request that waits for its turn."""

    urgent: Urgent | None
    order: int
    size: int
    turn: asyncio.Future[None]

    @property
    def key(self) -> tuple[int, int]:
        return (0 if self.urgent is None else self.urgent.priority, self.order)


class Turns:
    """The turns at one host.

    Args:
        requests: at a time.
        size: bytes that may have been asked for and not come yet; a larger request goes alone.
    """

    def __init__(self, requests: int, size: int) -> None:
        self._requests_limit = requests
        self._size_limit = size
        self._requests = 0
        self._size = 0
        self._order = 0
        self._waiting: list[_Waiting] = []

    @asynccontextmanager
    async def turn(self, size: int) -> AsyncIterator[bool]:
        """Make a request for `size` bytes inside the block; gives whether it had to wait."""
        waited = await self._enter(size)
        try:
            yield waited
        finally:
            self._leave(size)

    async def _enter(self, size: int) -> bool:
        if not self._waiting and self._fits(size):
            self._take(size)
            return False
        self._order += 1
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(URGENCY.get(), self._order, size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._admit()  # it may have been in the way
            else:
                self._leave(size)
            raise
        return True

    def _fits(self, size: int) -> bool:
        small = not self._size or self._size + size <= self._size_limit
        return small and self._requests < self._requests_limit

    def _take(self, size: int) -> None:
        self._requests += 1
        self._size += size

    def _leave(self, size: int) -> None:
        self._requests -= 1
        self._size -= size
        self._admit()

    def _admit(self) -> None:
        """Let in whoever may go on, in order; forget those that were cancelled."""
        self._waiting = [waiting for waiting in self._waiting if not waiting.turn.done()]
        self._waiting.sort(key=lambda waiting: waiting.key)
        while self._waiting and self._fits(self._waiting[0].size):
            waiting = self._waiting.pop(0)
            self._take(waiting.size)
            waiting.turn.set_result(None)
