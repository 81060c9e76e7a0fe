"""Whose turn it is at one host: requests and bytes in flight are limited, readers go first.

The order is by urgency, then first come; nobody overtakes, so a large request is never starved by
small ones. Only who has its share of the turns already (`fairness`) is passed over: an image for
which the host answers nothing does not keep others from being read there. How urgent a request is
may change while it waits: whoever reads sets `URGENCY` for its task to something that always knows.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from lazyimg.registry.fairness import may_take

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
    user: str
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
        self._users: dict[str, tuple[int, int]] = {}  # requests and bytes
        self._waiting: list[_Waiting] = []

    @asynccontextmanager
    async def turn(self, size: int, user: str = "") -> AsyncIterator[bool]:
        """Make a request for `size` bytes inside the block; gives whether it had to wait.

        Args:
            size: bytes of the answer.
            user: who has a share of the turns; "" has as many as there are.
        """
        waited = await self._enter(size, user)
        try:
            yield waited
        finally:
            self._leave(size, user)

    async def _enter(self, size: int, user: str) -> bool:
        if not self._waiting and self._fits(size) and self._may_take(size, user):
            self._take(size, user)
            return False
        self._order += 1
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(URGENCY.get(), self._order, size, user, turn))
        self._admit()  # those before it may all have their share
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._admit()  # it may have been in the way
            else:
                self._leave(size, user)
            raise
        return True

    def _fits(self, size: int) -> bool:
        small = not self._size or self._size + size <= self._size_limit
        return small and self._requests < self._requests_limit

    def _may_take(self, size: int, user: str) -> bool:
        if not user:
            return True
        requests, held = self._users.get(user, (0, 0))
        return may_take(1, self._requests_limit, requests, self._requests) and may_take(
            size, self._size_limit, held, self._size
        )

    def _take(self, size: int, user: str) -> None:
        self._count(1, size, user)

    def _leave(self, size: int, user: str) -> None:
        self._count(-1, -size, user)
        self._admit()

    def _count(self, requests: int, size: int, user: str) -> None:
        self._requests += requests
        self._size += size
        held_requests, held = self._users.get(user, (0, 0))
        self._users[user] = (held_requests + requests, held + size)
        if self._users[user][0] == 0:
            del self._users[user]

    def _admit(self) -> None:
        """Let in whoever may go on, in order; forget those that were cancelled."""
        self._waiting = [waiting for waiting in self._waiting if not waiting.turn.done()]
        self._waiting.sort(key=lambda waiting: waiting.key)
        sated: set[str] = set()
        for waiting in list(self._waiting):
            if waiting.user in sated:
                continue
            if not self._may_take(waiting.size, waiting.user):
                sated.add(waiting.user)
                continue
            if not self._fits(waiting.size):
                break
            self._waiting.remove(waiting)
            self._take(waiting.size, waiting.user)
            waiting.turn.set_result(None)
