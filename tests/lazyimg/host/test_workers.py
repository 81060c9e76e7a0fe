"""Threads that work for an event loop, and what becomes of jobs that nobody waits for."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import TYPE_CHECKING

import pytest

from lazyimg.host.workers import Workers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NAME = "test-workers"


def threads() -> int:
    return sum(thread.name == NAME for thread in threading.enumerate())


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    workers = Workers(2, NAME)
    yield workers
    await asyncio.to_thread(workers.close)
    assert not threads()


async def test_results_and_errors_are_the_functions(workers: Workers) -> None:
    assert await workers.submit(divmod, 7, 2) == (3, 1)
    assert await workers.submit(int, "11", base=2) == 3
    with pytest.raises(ZeroDivisionError):
        await workers.submit(divmod, 1, 0)
    assert await workers.submit(threading.get_ident) != threading.get_ident()


async def test_threads_are_started_as_they_are_needed(workers: Workers) -> None:
    assert not threads()
    for _ in range(3):
        await workers.submit(int)
    assert threads() == 1
    gate = threading.Event()
    waiting = [workers.submit(gate.wait, 10) for _ in range(5)]
    assert threads() == 2
    gate.set()
    assert await asyncio.gather(*waiting) == [True] * 5
    assert threads() == 2


async def test_cancelled_job_is_not_begun_or_goes_on(workers: Workers) -> None:
    gate, begun, ended = threading.Event(), threading.Semaphore(0), list[int]()

    def work(number: int) -> None:
        begun.release()
        assert gate.wait(10)
        ended.append(number)

    jobs = [workers.submit(work, number) for number in range(4)]
    await asyncio.to_thread(begun.acquire)
    await asyncio.to_thread(begun.acquire)
    for number in (0, 2):
        jobs[number].cancel()
    gate.set()
    await asyncio.gather(jobs[1], jobs[3])
    await asyncio.to_thread(workers.close)
    assert sorted(ended) == [0, 1, 3]


async def test_close_waits_for_what_was_submitted() -> None:
    workers, ended = Workers(1, NAME), list[int]()
    for number in range(20):
        workers.submit(ended.append, number)
    await asyncio.to_thread(workers.close)
    assert ended == list(range(20))
    assert not threads()


async def test_nothing_is_taken_after_the_end() -> None:
    """Nobody would ever do it, and who submits it would wait for ever."""
    workers = Workers(1, NAME)
    await workers.submit(int)
    await asyncio.to_thread(workers.close)
    with pytest.raises(RuntimeError, match=f"^{NAME}: the threads have ended$"):
        workers.submit(int)


def test_job_that_ends_after_its_loop() -> None:
    workers, gate, ended = Workers(1, NAME), threading.Event(), list[int]()

    def work() -> None:
        assert gate.wait(10)
        ended.append(1)

    async def begin() -> None:
        workers.submit(work)
        workers.submit(ended.append, 2)

    asyncio.run(begin())
    gate.set()
    workers.close()
    assert ended == [1, 2]


async def test_idle_threads_hold_nothing(workers: Workers) -> None:
    class Thing:
        """Something that can be missed."""

    def fail(thing: Thing) -> Thing:
        raise ValueError(thing)

    thing = Thing()
    gone = weakref.ref(thing)
    assert await workers.submit(id, thing) == id(thing)
    with pytest.raises(ValueError, match="Thing"):
        await workers.submit(fail, thing)
    del thing
    await workers.submit(int)
    gc.collect()
    assert gone() is None


async def test_running_one_gives_what_the_function_does(workers: Workers) -> None:
    assert await workers.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await workers.run(divmod, 1, 0)


async def test_cancelled_run_ends_when_the_function_has(workers: Workers) -> None:
    gate, begun, ended = threading.Event(), asyncio.Event(), list[str]()
    loop = asyncio.get_running_loop()

    def work() -> None:
        loop.call_soon_threadsafe(begun.set)
        assert gate.wait(10)
        ended.append("work")
        raise ZeroDivisionError

    task = asyncio.create_task(workers.run(work))
    await begun.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["work"]
