"""Who may fetch next: memory and requests are handed out by priority, readers first.

A flight takes all that it needs in one go and holds nothing while it waits, so there is no
deadlock; one that needs more than there is goes when nobody else holds anything. Order is by
priority, then first come, and nobody overtakes: a large one is never starved by small ones. Only
those whose place (the registry that they ask) has its share already are passed over: a registry
that hangs does not keep others from being read.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

from lazyimg.registry.fairness import may_take

if TYPE_CHECKING:
    from lazyimg.limits import FillLimits


class Priority(IntEnum):
    """How urgent a fill is; a smaller number goes first."""

    ON_DEMAND = 0  # somebody waits
    AHEAD = 1  # somebody who reads in order will want this next
    TRACED = 2  # an earlier start read this
    BACKGROUND = 3


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
        place: what it is fetched from, which has a share of the budget; "" has all of it.
    """

    priority: Priority
    memory: int
    fetching: bool = True
    held: bool = False
    prefetch: bool = False
    order: int = 0
    place: str = ""


@dataclass(slots=True)
class _Share:
    """What is used of a share."""

    memory_limit: int
    fetches_limit: int
    memory: int = 0
    fetches: int = 0
    places: dict[str, tuple[int, int]] = field(default_factory=dict)

    def fits(self, ticket: Ticket) -> bool:
        memory = not self.memory or self.memory + ticket.memory <= self.memory_limit
        return memory and (not ticket.fetching or self.fetches < self.fetches_limit)

    def leaves_room(self, ticket: Ticket) -> bool:
        """Tell whether the ticket's place does not have its share."""
        if not ticket.place:
            return True
        memory, fetches = self.places.get(ticket.place, (0, 0))
        return may_take(ticket.memory, self.memory_limit, memory, self.memory) and (
            not ticket.fetching or may_take(1, self.fetches_limit, fetches, self.fetches)
        )

    def count(self, place: str, memory: int, fetches: int) -> None:
        self.memory += memory
        self.fetches += fetches
        if place:
            held_memory, held_fetches = self.places.get(place, (0, 0))
            self.places[place] = (held_memory + memory, held_fetches + fetches)
            if self.places[place] == (0, 0):
                del self.places[place]


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
        if not self._waiting and self._leaves_room(ticket) and self._fits(ticket):
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
            self._count(ticket, 0, -1)
            ticket.fetching = False
            self._admit_waiting()

    def release(self, ticket: Ticket) -> None:
        """`ticket` holds nothing any more. May be called again."""
        if ticket.held:
            self.fetched(ticket)
            ticket.held = False
            self._count(ticket, -ticket.memory, 0)
            self._admit_waiting()

    def _fits(self, ticket: Ticket) -> bool:
        if ticket.priority is not Priority.ON_DEMAND and not self._prefetch.fits(ticket):
            return False
        return self._all.fits(ticket)

    def _take(self, ticket: Ticket) -> None:
        ticket.held = True
        ticket.prefetch = ticket.priority is not Priority.ON_DEMAND
        self._count(ticket, ticket.memory, int(ticket.fetching))

    def _count(self, ticket: Ticket, memory: int, fetches: int) -> None:
        for share in (self._all, self._prefetch) if ticket.prefetch else (self._all,):
            share.count(ticket.place, memory, fetches)

    def _leaves_room(self, ticket: Ticket) -> bool:
        reader = ticket.priority is Priority.ON_DEMAND
        return self._all.leaves_room(ticket) and (reader or self._prefetch.leaves_room(ticket))

    def _admit_waiting(self) -> None:
        """Admit whoever may go on, in order, and drop those that were cancelled."""
        self._waiting = [waiting for waiting in self._waiting if not waiting[1].done()]
        self._waiting.sort(key=lambda waiting: (waiting[0].priority, waiting[0].order))
        sated: set[str] = set()
        for waiting in list(self._waiting):
            ticket, turn = waiting
            if ticket.place in sated:
                continue
            if not self._leaves_room(ticket):
                sated.add(ticket.place)
                continue
            if not self._fits(ticket):
                break
            self._waiting.remove(waiting)
            self._take(ticket)
            turn.set_result(None)
