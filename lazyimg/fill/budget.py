"""Who may fetch next: memory and requests are handed out by priority, readers first.

A flight takes all that it needs in one go and holds nothing while it waits, so there is no
deadlock; one that needs more than there is goes when nobody else holds anything. Order is by
priority, then first come, and nobody overtakes: a large one is never starved by small ones. Only
those whose place has its share already are passed over. A place is a registry, and there a
repository: one that hangs does not keep others from being read, at the same registry either.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

from lazyimg.registry.fairness import may_take, share_of

if TYPE_CHECKING:
    from lazyimg.limits import FillLimits


Place = tuple[str, ...]
"""From the widest part on."""


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
        place: what it is fetched from, such as (registry, repository): the first has a share of the
            budget, the next a share of that. () has all of it.
    """

    priority: Priority
    memory: int
    fetching: bool = True
    held: bool = False
    prefetch: bool = False
    order: int = 0
    place: Place = ()


@dataclass(slots=True)
class _Share:
    """What is used of a share."""

    memory_limit: int
    fetches_limit: int
    memory: int = 0
    fetches: int = 0
    places: dict[Place, tuple[int, int]] = field(default_factory=dict)

    def fits(self, ticket: Ticket) -> bool:
        memory = not self.memory or self.memory + ticket.memory <= self.memory_limit
        return memory and (not ticket.fetching or self.fetches < self.fetches_limit)

    def find_sated(self, ticket: Ticket) -> Place | None:
        """Give the widest part of the ticket's place that has its share; None if none has."""
        limits, held = (self.memory_limit, self.fetches_limit), (self.memory, self.fetches)
        for depth in range(1, len(ticket.place) + 1):
            part = ticket.place[:depth]
            own = self.places.get(part, (0, 0))
            if not may_take(ticket.memory, limits[0], own[0], held[0]) or (
                ticket.fetching and not may_take(1, limits[1], own[1], held[1])
            ):
                return part
            limits = (share_of(limits[0], held[0] - own[0]), share_of(limits[1], held[1] - own[1]))
            held = own
        return None

    def count(self, place: Place, memory: int, fetches: int) -> None:
        self.memory += memory
        self.fetches += fetches
        for depth in range(1, len(place) + 1):
            part = place[:depth]
            held_memory, held_fetches = self.places.get(part, (0, 0))
            self.places[part] = (held_memory + memory, held_fetches + fetches)
            if self.places[part] == (0, 0):
                del self.places[part]


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
        if not self._waiting and self._find_sated(ticket) is None and self._fits(ticket):
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

    def _find_sated(self, ticket: Ticket) -> Place | None:
        part = self._all.find_sated(ticket)
        if part is None and ticket.priority is not Priority.ON_DEMAND:
            part = self._prefetch.find_sated(ticket)
        return part

    def _admit_waiting(self) -> None:
        """Admit whoever may go on, in order, and drop those that were cancelled."""
        self._waiting = [waiting for waiting in self._waiting if not waiting[1].done()]
        self._waiting.sort(key=lambda waiting: (waiting[0].priority, waiting[0].order))
        sated: set[Place] = set()
        for waiting in list(self._waiting):
            ticket, turn = waiting
            if any(ticket.place[: len(part)] == part for part in sated):
                continue
            part = self._find_sated(ticket)
            if part is not None:
                sated.add(part)
                continue
            if not self._fits(ticket):
                break
            self._waiting.remove(waiting)
            self._take(ticket)
            turn.set_result(None)
