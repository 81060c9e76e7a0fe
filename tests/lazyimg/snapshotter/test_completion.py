"""The loop of completion, over real records and a completer that does as it is told."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import RegistryError, StorageError
from lazyimg.images.completion import Counters, Lie
from lazyimg.snapshotter.completion import FIRST_REST, LONGEST_REST, Completion
from lazyimg.snapshotter.records import Records
from tests.lazyimg.snapshotter.test_queue import layers, queued, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path


class Scripted:
    """A completer: for each image, what becomes of it, one after the other.

    Attributes:
        outcomes: by the image's name: a lie, a failure, None; "wait" is until it is cancelled.
        begun: what was asked for.
        ended: an item for each call that has ended.
        most: how many calls there were at a time.
    """

    def __init__(self) -> None:
        self.counters = Counters()
        self.tight = False
        self.outcomes: dict[str, list[Lie | Exception | str | None]] = {}
        self.begun: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
        self.ended: asyncio.Queue[str] = asyncio.Queue()
        self.most = 0
        self._calls = 0

    async def complete(self, reference: str, platform: str, depth: int) -> Lie | None:
        assert platform == "linux/amd64"
        name = reference.partition("@")[0]
        self.begun.put_nowait((name, depth))
        self._calls += 1
        self.most = max(self.most, self._calls)
        outcomes = self.outcomes.get(name, [])
        outcome = outcomes.pop(0) if outcomes else None
        try:
            if outcome == "wait":
                await asyncio.Event().wait()
            if isinstance(outcome, Exception):
                raise outcome
        finally:
            self._calls -= 1
            self.ended.put_nowait(name)
        assert not isinstance(outcome, str)
        return outcome


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    opened = Records(tmp_path / "records.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def completer() -> Scripted:
    return Scripted()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@asynccontextmanager
async def running(completion: Completion) -> AsyncIterator[Completion]:
    task = asyncio.create_task(completion.run())
    yield completion
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])


async def until(condition: Callable[[], object]) -> None:
    """Let others go on until something is so."""
    for _ in iter(lambda: bool(condition()), True):  # noqa: FBT003 - until it is
        await asyncio.sleep(0)


async def until_idle(completion: Completion) -> None:
    """Wait until nothing is worked on, and the queue was looked at since."""
    changed = completion._changed
    await until(lambda: completion.current is None and bool(changed._waiters))


def container(records: Records, image: str, depth: int = 1) -> None:
    run(records, f"container {image}", layers(records, image, depth))


async def test_one_image_after_the_other_in_the_order_of_their_containers(
    records: Records, completer: Scripted, clock: Clock
) -> None:
    for image in ("b", "a"):
        container(records, image, 2)
    async with running(Completion(records, completer, clock)) as completion:
        assert [await completer.begun.get() for _ in "ab"] == [("b", 2), ("a", 2)]
        await until_idle(completion)
        assert queued(records) == []
        container(records, "c")
        completion.look()
        assert await completer.begun.get() == ("c", 1)
        await until_idle(completion)
    assert (completer.most, queued(records)) == (1, [])


async def test_work_goes_on_in_another_process(records: Records, completer: Scripted) -> None:
    container(records, "a")
    container(records, "b")
    completer.outcomes = {"b": ["wait"]}
    async with running(Completion(records, completer)) as completion:
        assert [await completer.begun.get() for _ in "ab"] == [("a", 1), ("b", 1)]
        assert completion.current is not None
        assert await completion.waiting() == 1
    again = Scripted()
    async with running(Completion(records, again)) as completion:
        assert await again.begun.get() == ("b", 1)
        await until_idle(completion)


async def test_lie_is_quarantined_and_said(
    records: Records, completer: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    container(records, "liar", 3)
    container(records, "honest")
    completer.outcomes = {"liar": [Lie(2, "layer 2 of 3: is another")]}
    async with running(Completion(records, completer)) as completion:
        assert [await completer.begun.get() for _ in "lh"] == [("liar", 3), ("honest", 1)]
        await until_idle(completion)
    assert [(one.layer.chain, one.problem) for one in records.quarantined()] == [
        ("liar-2", "layer 2 of 3: is another"),
        ("liar-3", "layer 2 of 3: is another"),
    ]
    (said,) = [one for one in caplog.records if one.levelname == "ERROR"]
    assert said.message == (
        "liar@sha256:digest is not what it says: layer 2 of 3: is another; nothing new may stand on"
        " its chains liar-2, liar-3; containers that run go on; remove its snapshots, and pull"
        " again"
    )


async def test_what_fails_rests_and_others_go_on(
    records: Records, completer: Scripted, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    container(records, "a")
    container(records, "b")
    away = RegistryError("registry", "is away")
    completer.outcomes = {"a": [away, away, ValueError("a bug")]}
    async with running(Completion(records, completer, clock)) as completion:
        assert [await completer.begun.get() for _ in "ab"] == [("a", 1), ("b", 1)]
        await until_idle(completion)
        assert completion.failures == {"a@sha256:digest": "registry: is away"}
        for rest in (FIRST_REST, 2 * FIRST_REST, 4 * FIRST_REST):
            clock.now += rest - 1
            completion.look()
            await until_idle(completion)
            assert completer.begun.empty()
            clock.now += 1
            completion.look()
            assert await completer.begun.get() == ("a", 1)
            await until_idle(completion)
        assert completion.failures == {}
    assert "a@sha256:digest is not completed: registry: is away" in caplog.text
    assert "ValueError: a bug" in caplog.text


async def test_rest_has_an_end(records: Records, completer: Scripted, clock: Clock) -> None:
    container(records, "a")
    completer.outcomes = {"a": [RegistryError("registry", "is away")] * 20}
    async with running(Completion(records, completer, clock)) as completion:
        for _ in range(20):
            await completer.begun.get()
            await until_idle(completion)
            clock.now += LONGEST_REST
            completion.look()
        await completer.begun.get()


async def test_rest_ends_by_itself(
    records: Records, completer: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lazyimg.snapshotter.completion.FIRST_REST", 0.01)
    container(records, "a")
    completer.outcomes = {"a": [RegistryError("registry", "is away")]}
    async with running(Completion(records, completer)):
        assert [await completer.begun.get() for _ in "aa"] == [("a", 1), ("a", 1)]


async def test_image_that_is_removed_is_given_up(records: Records, completer: Scripted) -> None:
    container(records, "a")
    container(records, "b")
    completer.outcomes = {"a": ["wait"]}
    async with running(Completion(records, completer)) as completion:
        assert await completer.begun.get() == ("a", 1)
        completion.look()  # something else has changed
        records.remove("container a")
        completion.look()
        await until(lambda: not completion._changed.is_set())
        assert completer.ended.empty()
        records.remove("key a-1")
        completion.look()
        assert await completer.ended.get() == "a"
        assert await completer.begun.get() == ("b", 1)
        await until_idle(completion)


async def test_failure_of_what_was_removed_is_forgotten(
    records: Records, completer: Scripted
) -> None:
    container(records, "a")
    completer.outcomes = {"a": [RegistryError("registry", "is away")]}
    async with running(Completion(records, completer)) as completion:
        await completer.begun.get()
        await until_idle(completion)
        for key in ("container a", "key a-1"):
            records.remove(key)
        completion.look()
        await until(lambda: not completion.failures)


async def test_records_that_cannot_be_read(
    records: Records,
    completer: Scripted,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    container(records, "a")
    pending = records.pending
    failures = [StorageError("records", "disk I/O error")]

    def fail_once() -> object:
        if failures:
            raise failures.pop()
        return pending()

    monkeypatch.setattr(records, "pending", fail_once)
    completer.outcomes = {"a": ["wait"]}
    async with running(Completion(records, completer)) as completion:
        await until(lambda: len(caplog.records) == 1)
        completion.look()
        assert await completer.begun.get() == ("a", 1)
        failures.append(StorageError("records", "disk I/O error"))
        completion.look()
        await until(lambda: len(caplog.records) == 2)
        assert completer.ended.empty()
    assert "images are not completed: records: disk I/O error" in caplog.text
    assert "a@sha256:digest: records: disk I/O error" in caplog.text
