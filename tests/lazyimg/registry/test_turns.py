"""Whose turn it is at a host: limits, urgency that changes, and leaving the queue."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from lazyimg.registry.turns import URGENCY, Turns


@dataclass
class Ticket:
    priority: int


class Setup:
    """Requests that run until they are told to end."""

    def __init__(self, requests: int = 2, size: int = 100) -> None:
        self.turns = Turns(requests, size)
        self.running: list[str] = []
        self.waited: dict[str, bool] = {}
        self.ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def begin(
        self, name: str, size: int = 1, urgent: Ticket | None = None, user: str = ""
    ) -> None:
        """Start a request; it has its turn afterwards, or waits."""
        self.ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._run(name, size, urgent, user))
        await asyncio.sleep(0)

    async def _run(self, name: str, size: int, urgent: Ticket | None, user: str) -> None:
        URGENCY.set(urgent)
        async with self.turns.turn(size, user) as waited:
            self.waited[name] = waited
            self.running.append(name)
            await self.ends[name].wait()
        self.running.remove(name)

    async def end(self, name: str) -> None:
        self.ends[name].set()
        await self.tasks[name]
        await asyncio.sleep(0)

    async def cancel(self, name: str) -> None:
        self.tasks[name].cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.tasks[name]
        await asyncio.sleep(0)


async def test_as_many_requests_as_allowed() -> None:
    setup = Setup(requests=2)
    for name in "abc":
        await setup.begin(name)
    assert setup.running == ["a", "b"]
    await setup.end("a")
    assert setup.running == ["b", "c"]
    assert setup.waited == {"a": False, "b": False, "c": True}
    for name in "bc":
        await setup.end(name)


async def test_as_many_bytes_as_allowed_but_a_large_one_goes_alone() -> None:
    setup = Setup(requests=9)
    await setup.begin("a", 60)
    await setup.begin("b", 60)
    await setup.begin("c", 1)  # nobody overtakes
    assert setup.running == ["a"]
    await setup.end("a")
    assert setup.running == ["b", "c"]
    await setup.begin("huge", 1000)
    await setup.end("b")
    assert setup.running == ["c"]
    await setup.end("c")
    assert setup.running == ["huge"]
    await setup.end("huge")


async def test_readers_go_before_the_background() -> None:
    setup = Setup(requests=1)
    await setup.begin("a")
    await setup.begin("background", urgent=Ticket(2))
    await setup.begin("traced", urgent=Ticket(1))
    await setup.begin("reader", urgent=Ticket(0))
    await setup.begin("manifest")
    for name in ("a", "reader", "manifest", "traced", "background"):
        assert setup.running == [name]
        await setup.end(name)


async def test_urgency_may_change_while_it_waits() -> None:
    setup = Setup(requests=1)
    await setup.begin("a")
    ticket = Ticket(2)
    await setup.begin("first", urgent=Ticket(1))
    await setup.begin("hurried", urgent=ticket)
    ticket.priority = 0
    await setup.end("a")
    assert setup.running == ["hurried"]
    await setup.end("hurried")
    await setup.end("first")


async def test_cancelled_while_it_waits_and_in_the_way() -> None:
    setup = Setup(requests=9)
    await setup.begin("a", 60)
    await setup.begin("b", 60)
    await setup.begin("c", 1)
    await setup.cancel("b")
    assert setup.running == ["a", "c"]
    for name in "ac":
        await setup.end(name)


async def test_cancelled_when_its_turn_has_just_come() -> None:
    setup = Setup(requests=1)
    async with setup.turns.turn(1):
        await setup.begin("b")
        await setup.begin("c")
    await setup.cancel("b")
    assert setup.running == ["c"]
    await setup.end("c")


async def test_all_are_cancelled_at_once() -> None:
    setup = Setup(requests=2)
    for name in "abcdef":
        await setup.begin(name)
    for task in setup.tasks.values():
        task.cancel()
    await asyncio.wait(setup.tasks.values())
    assert all(task.cancelled() for task in setup.tasks.values())
    async with setup.turns.turn(1) as waited:
        assert not waited


async def test_cancelled_while_it_runs() -> None:
    setup = Setup(requests=1)
    await setup.begin("a")
    await setup.begin("b")
    await setup.cancel("a")
    assert "b" in setup.running


async def test_user_has_a_share_of_the_requests() -> None:
    setup = Setup(requests=8, size=1000)
    for number in range(10):
        await setup.begin(f"bad {number}", user="bad")
    assert len(setup.running) == 6
    await setup.begin("good", user="good")
    await setup.begin("another")
    assert setup.running[6:] == ["good", "another"]
    assert setup.waited["good"]  # behind those that have their share
    await setup.end("another")
    await setup.begin("good too", user="good")
    assert setup.running[7:] == ["good too"]
    await setup.cancel("bad 7")
    await setup.end("bad 0")
    await setup.end("good")
    await setup.end("good too")
    assert "bad 6" in setup.running
    for name in [*setup.running, "bad 8", "bad 9"]:
        await setup.end(name)
    assert not setup.turns._users
    assert not setup.turns._waiting


async def test_user_has_a_share_of_the_bytes_but_a_large_request_goes() -> None:
    setup = Setup(requests=8, size=100)
    await setup.begin("a", 70, user="bad")
    await setup.begin("b", 10, user="bad")
    await setup.begin("c", 30, user="good")
    assert setup.running == ["a", "c"]
    await setup.end("a")
    await setup.end("c")
    await setup.end("b")
    await setup.begin("large", 300, user="bad")
    assert setup.running == ["large"]
    await setup.end("large")
