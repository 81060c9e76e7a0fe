"""Who goes first, and that nobody waits for ever."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyimg.fill.budget import Budget, Priority, Ticket
from lazyimg.limits import FillLimits

LIMITS = FillLimits(memory=100, background_memory=50, fetches=3, background_fetches=2)
READER, TRACED, BACKGROUND = Priority.ON_DEMAND, Priority.TRACED, Priority.BACKGROUND


def claim(budget: Budget, ticket: Ticket) -> asyncio.Task[None]:
    return asyncio.create_task(budget.admit(ticket))


async def turn() -> None:
    """Let every task that can go on do so: admission takes a fixed number of loop turns."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_memory_is_bounded_and_order_kept() -> None:
    budget = Budget(LIMITS)
    tickets = [Ticket(READER, 60), Ticket(READER, 60), Ticket(READER, 10)]
    tasks = [claim(budget, ticket) for ticket in tickets]
    await turn()
    assert [ticket.held for ticket in tickets] == [True, False, False]  # the small one waits too
    budget.release(tickets[0])
    await turn()
    assert [ticket.held for ticket in tickets] == [False, True, True]
    assert budget.memory == 70
    await asyncio.gather(*tasks)


async def test_larger_than_everything_goes_alone() -> None:
    budget = Budget(LIMITS)
    small, large = Ticket(READER, 1), Ticket(READER, 1000)
    await budget.admit(small)
    task = claim(budget, large)
    await turn()
    assert not large.held
    budget.release(small)
    await task
    assert budget.memory == 1000
    budget.release(large)
    budget.release(large)
    assert budget.memory == 0


async def test_prefetching_leaves_memory_and_requests_to_readers() -> None:
    budget = Budget(LIMITS)
    prefetches = [Ticket(BACKGROUND, 20) for _ in range(3)]
    tasks = [claim(budget, ticket) for ticket in prefetches]
    await turn()
    assert [ticket.held for ticket in prefetches] == [True, True, False]
    reader = Ticket(READER, 60)
    await budget.admit(reader)
    budget.fetched(prefetches[0])
    await turn()
    assert not prefetches[2].held  # a request is free, memory is not
    budget.release(prefetches[0])
    await turn()
    assert prefetches[2].held
    await asyncio.gather(*tasks)


async def test_traced_goes_before_background() -> None:
    budget = Budget(LIMITS)
    first = Ticket(BACKGROUND, 50)
    await budget.admit(first)
    background, traced = Ticket(BACKGROUND, 50), Ticket(TRACED, 50)
    tasks = [claim(budget, background), claim(budget, traced)]
    await turn()
    budget.release(first)
    await turn()
    assert (background.held, traced.held) == (False, True)
    budget.release(traced)
    await asyncio.gather(*tasks)


async def test_reader_that_joins_makes_a_prefetch_urgent() -> None:
    budget = Budget(LIMITS)
    first, second = Ticket(BACKGROUND, 50), Ticket(BACKGROUND, 50)
    await budget.admit(first)
    task = claim(budget, second)
    await turn()
    assert not second.held
    budget.hurry(second, TRACED)
    await turn()
    assert not second.held
    budget.hurry(second, READER)
    await task
    assert second.held
    budget.hurry(second, BACKGROUND)
    assert second.priority is READER


async def test_request_slots() -> None:
    budget = Budget(LIMITS)
    tickets = [Ticket(READER, 1) for _ in range(4)]
    tasks = [claim(budget, ticket) for ticket in tickets]
    local = Ticket(READER, 1, fetching=False)
    await turn()
    assert [ticket.held for ticket in tickets] == [True, True, True, False]
    budget.fetched(tickets[1])
    budget.fetched(tickets[1])
    await turn()
    assert tickets[3].held
    await budget.admit(local)  # needs no request
    await asyncio.gather(*tasks)


async def test_cancelled_waiter_lets_the_next_one_go() -> None:
    budget = Budget(LIMITS)
    held, large, small = Ticket(READER, 60), Ticket(READER, 60), Ticket(READER, 10)
    await budget.admit(held)
    tasks = [claim(budget, large), claim(budget, small)]
    await turn()
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    await tasks[1]
    assert small.held
    assert not large.held
    assert budget.memory == 70


async def test_cancelled_in_the_moment_of_admission() -> None:
    budget = Budget(LIMITS)
    held, waiting, next_ = Ticket(READER, 100), Ticket(READER, 100), Ticket(READER, 100)
    await budget.admit(held)
    tasks = [claim(budget, waiting), claim(budget, next_)]
    await turn()
    budget.release(held)
    assert waiting.held
    tasks[0].cancel()
    await tasks[1]
    assert not waiting.held
    assert budget.memory == 100


async def test_released_while_a_cancelled_waiter_has_not_run_yet() -> None:
    budget = Budget(LIMITS)
    held, waiting, next_ = Ticket(READER, 100), Ticket(READER, 100), Ticket(READER, 100)
    await budget.admit(held)
    tasks = [claim(budget, waiting), claim(budget, next_)]
    await turn()
    tasks[0].cancel()
    budget.release(held)
    assert next_.held
    await asyncio.wait(tasks)
    assert not waiting.held
    assert budget.memory == 100


@given(
    st.lists(
        st.tuples(st.sampled_from(Priority), st.integers(1, 150), st.booleans(), st.booleans()),
        max_size=20,
    )
)
@settings(max_examples=60)
def test_everybody_gets_a_turn_and_all_comes_back(
    claims: list[tuple[Priority, int, bool, bool]],
) -> None:
    async def use(budget: Budget, ticket: Ticket) -> None:
        try:
            await budget.admit(ticket)
            assert budget.memory <= max(LIMITS.memory, ticket.memory)
            await asyncio.sleep(0)
            budget.fetched(ticket)
            await asyncio.sleep(0)
        finally:
            budget.release(ticket)

    async def run() -> None:
        budget = Budget(LIMITS)
        tasks = []
        for priority, memory, fetching, cancelled in claims:
            ticket = Ticket(priority, memory, fetching)
            task = asyncio.create_task(use(budget, ticket))
            if cancelled:
                asyncio.get_running_loop().call_soon(task.cancel)
            else:
                tasks.append(task)
        if tasks:
            await asyncio.wait_for(asyncio.gather(*tasks), 5)
        await turn()
        assert budget.memory == 0
        await budget.admit(Ticket(BACKGROUND, 1000))

    asyncio.run(run())


async def test_place_has_a_share() -> None:
    limits = FillLimits(memory=1000, background_memory=400, fetches=8, background_fetches=4)
    budget = Budget(limits)
    bad = [Ticket(READER, 10, place=("bad",)) for _ in range(10)]
    tasks = [claim(budget, ticket) for ticket in bad]
    await turn()
    assert [ticket.held for ticket in bad] == [True] * 6 + [False] * 4
    good, nowhere = Ticket(READER, 10, place=("good",)), Ticket(BACKGROUND, 10)
    tasks += [claim(budget, good), claim(budget, nowhere)]
    await turn()
    assert good.held
    assert nowhere.held
    for ticket in [*bad[:6], good, nowhere]:
        budget.release(ticket)
    await asyncio.gather(*tasks)
    for ticket in bad:
        budget.release(ticket)
    assert budget.memory == 0
    assert not budget._all.places


async def test_place_has_a_share_of_what_prefetching_may_use() -> None:
    limits = FillLimits(memory=1000, background_memory=400, fetches=8, background_fetches=4)
    budget = Budget(limits)
    bad = [Ticket(BACKGROUND, 10, place=("bad",)) for _ in range(4)]
    tasks = [claim(budget, ticket) for ticket in bad]
    await turn()
    assert [ticket.held for ticket in bad] == [True] * 3 + [False]
    good, reader = Ticket(TRACED, 10, place=("good",)), Ticket(READER, 10, place=("bad",))
    tasks += [claim(budget, good), claim(budget, reader)]
    await turn()
    assert good.held
    assert reader.held
    for ticket in [*bad[:3], good, reader]:
        budget.release(ticket)
    await asyncio.gather(*tasks)
    budget.release(bad[3])
    assert not budget._prefetch.places


async def test_place_has_a_share_of_the_memory() -> None:
    budget = Budget(FillLimits(memory=100, background_memory=50, fetches=8, background_fetches=4))
    large, small = Ticket(READER, 70, place=("bad",)), Ticket(READER, 10, place=("bad",))
    await budget.admit(large)
    task = claim(budget, small)
    await budget.admit(Ticket(READER, 30, place=("good",)))
    assert not small.held
    budget.release(large)
    await task


async def test_place_within_a_place_has_a_share_of_its_share() -> None:
    """A repository for which the registry hangs leaves room to the others there, and elsewhere."""
    limits = FillLimits(memory=1000, background_memory=400, fetches=32, background_fetches=4)
    budget = Budget(limits)
    bad = [Ticket(READER, 10, place=("here", "bad")) for _ in range(40)]
    good = [Ticket(READER, 10, place=("here", "good")) for _ in range(10)]
    other = [Ticket(READER, 10, place=("there", "other")) for _ in range(10)]
    tasks = [claim(budget, ticket) for ticket in (*bad, *good, *other)]
    await turn()
    assert [sum(ticket.held for ticket in some) for some in (bad, good, other)] == [18, 5, 6]
    for task in tasks:
        task.cancel()
    for ticket in (*bad, *good, *other):
        budget.release(ticket)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert budget.memory == 0
    assert not budget._all.places


async def test_large_one_is_not_overtaken_within_its_place() -> None:
    budget = Budget(FillLimits(memory=100, background_memory=50, fetches=8, background_fetches=4))
    first = [Ticket(READER, 10, place=("here", "bad")) for _ in range(5)]
    for ticket in first:
        await budget.admit(ticket)
    large = Ticket(READER, 40, place=("here", "good"))
    small = Ticket(READER, 10, place=("here", "third"))
    elsewhere = Ticket(READER, 10, place=("there", "other"))
    tasks = [claim(budget, ticket) for ticket in (large, small, elsewhere)]
    await turn()
    assert (large.held, small.held, elsewhere.held) == (False, False, True)
    for ticket in (elsewhere, *first):
        budget.release(ticket)
    await asyncio.gather(*tasks)
    assert large.held
    assert small.held
