"""Reads that have no deadline: how they try again, and what the log says of it."""

from __future__ import annotations

import asyncio

import pytest

from lazyimg.errors import RegistryError
from lazyimg.fill import patience
from lazyimg.fill.patience import FIRST_PAUSE, MAX_PAUSE, insist
from lazyimg.logs import Repeats


class Failing:
    """Fails `times` times; `pauses` is how long was slept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        self.times = times
        self.pauses: list[float] = []
        monkeypatch.setattr(asyncio, "sleep", self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    async def __call__(self) -> None:
        if self.times:
            self.times -= 1
            raise RegistryError("reg.test", "away", retryable=True)


async def test_pauses_grow_up_to_a_limit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(patience, "_repeats", Repeats())
    failing = Failing(monkeypatch, 7)
    await insist("device x", failing, lambda: False)
    assert failing.pauses[:3] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    assert failing.pauses[-2:] == [MAX_PAUSE, MAX_PAUSE]
    (said,) = caplog.messages
    assert said == "device x: a read waits and tries again: reg.test: away"


async def test_nothing_is_tried_again_when_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Failing(monkeypatch, 0)
    await insist("device x", failing, lambda: False)
    assert failing.pauses == []


async def test_nobody_waits_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Failing(monkeypatch, 3)
    with pytest.raises(RegistryError, match=r"^reg\.test: away$"):
        await insist("device x", failing, lambda: failing.times == 1)
    assert len(failing.pauses) == 1
