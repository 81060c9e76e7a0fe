"""Who may fetch next: memory and requests are handed out by priority, readers first.

A flight takes all that it needs in one go and holds nothing while it waits, so there is no
deadlock; one that needs more than there is goes when nobody else holds anything. Order is by
priority, then first come, and nobody overtakes: a large one is never starved by small ones.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lazyimg.limits import FillLimits


class Priority(IntEnum):
    """How urgent a fill is; a smaller number goes first."""

    ON_DEMAND = 0  # somebody waits
    TRACED = 1  # an earlier start read this
    BACKGROUND = 2


@dataclass(slots=True, eq=False)
class Ticket:
    """One flight's claim.

    Attributes:
        priority: see `Budget.hurry`.
        memory: bytes it will hold.
        fetching: it will make, or makes, a request.
        held: it was admitted.
        prefetch: it was admitted within the share of prefetching.
        order: when it came; assigned by the budget.
    """

    priority: Priority
    memory: int
    fetching: bool = True
    held: bool = False
    prefetch: bool = False
    order: int = 0


@dataclass(slots=True)
class _Share:
    """What is used of a share."""

    memory_limit: int
    fetches_limit: int
    memory: int = 0
    fetches: int = 0

    def fits(self, ticket: Ticket) -> bool:
        memory = not self.memory or self.memory + ticket.memory <= self.memory_limit
        return memory and (not ticket.fetching or self.fetches < self.fetches_limit)


class Budget:
    """Memory and requests of all fills together."""

    def __init__(self, limits: FillLimits) -> None:
        self._all = _Share(limits.memory, limits.fetches)
        self._prefetch = _Share(limits.background_memory, limits.background_fetches)
        self._waiting: list[tuple[Ticket, asyncio.Future[None]]] = []
        self._order = 0

    @property
    def memory(self) -> int:
        """Bytes that are held now."""
        return self._all.memory

    async def admit(self, ticket: Ticket) -> None:
        """Wait until `ticket` may go on; cancelling leaves nothing behind."""
        self._order += 1
        ticket.order = self._order
        if not self._waiting and self._fits(ticket):
            self._take(ticket)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((ticket, turn))
        self._admit_waiting()
        try:
            await turn
        except asyncio.CancelledError:
            self._admit_waiting()  # it may have been in the way
            self.release(ticket)
            raise

    def hurry(self, ticket: Ticket, priority: Priority) -> None:
        """Somebody more urgent waits for `ticket` too."""
        if priority < ticket.priority:
            ticket.priority = priority
            self._admit_waiting()

    def fetched(self, ticket: Ticket) -> None:
        """`ticket` makes no more requests."""
        if ticket.held and ticket.fetching:
            self._all.fetches -= 1
            self._prefetch.fetches -= ticket.prefetch
            ticket.fetching = False
            self._admit_waiting()

    def release(self, ticket: Ticket) -> None:
        """`ticket` holds nothing any more. May be called again."""
        if ticket.held:
            self.fetched(ticket)
            ticket.held = False
            self._all.memory -= ticket.memory
            self._prefetch.memory -= ticket.memory * ticket.prefetch
            self._admit_waiting()

    def _fits(self, ticket: Ticket) -> bool:
        if ticket.priority is not Priority.ON_DEMAND and not self._prefetch.fits(ticket):
            return False
        return self._all.fits(ticket)

    def _take(self, ticket: Ticket) -> None:
        ticket.held = True
        ticket.prefetch = ticket.priority is not Priority.ON_DEMAND
        for share in (self._all, self._prefetch) if ticket.prefetch else (self._all,):
            share.memory += ticket.memory
            share.fetches += ticket.fetching

    def _admit_waiting(self) -> None:
        """Admit whoever may go on, in order, and drop those that were cancelled."""
        self._waiting = [waiting for waiting in self._waiting if not waiting[1].done()]
        self._waiting.sort(key=lambda waiting: (waiting[0].priority, waiting[0].order))
        while self._waiting and self._fits(self._waiting[0][0]):
            ticket, turn = self._waiting.pop(0)
            self._take(ticket)
            turn.set_result(None)
