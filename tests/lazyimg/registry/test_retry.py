"""When to try again: the decision as a table, the loop with a clock of its own."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg.errors import NotFoundError, RegistryError
from lazyimg.registry.retry import (
    RegistryBusyError,
    RetryPolicy,
    parse_retry_after,
    plan_retry,
    retry,
)

POLICY = RetryPolicy(attempts=4, first_delay=1, max_delay=3, max_retry_after=60)
PASSING = RegistryError("here", "down", retryable=True)
FINAL = RegistryError("here", "no")


def busy(seconds: float) -> RegistryBusyError:
    return RegistryBusyError("here", "busy", status=429, retry_after=seconds)


@pytest.mark.parametrize(
    ("attempt", "error", "chance", "delay"),
    [
        (1, PASSING, 0.0, 0.5),
        (1, PASSING, 1.0, 1.0),
        (2, PASSING, 1.0, 2.0),
        (3, PASSING, 1.0, 3.0),  # not 4
        (4, PASSING, 1.0, None),
        (1, FINAL, 1.0, None),
        (1, busy(30), 1.0, 30),
        (1, busy(0), 1.0, 1.0),  # its own delay is longer
        (1, busy(61), 1.0, None),
        (4, busy(1), 1.0, None),
    ],
)
def test_plan(attempt: int, error: RegistryError, chance: float, delay: float | None) -> None:
    assert plan_retry(POLICY, attempt, error, chance) == delay


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        (" 120 ", 120),
        ("9" * 30, 999_999_999),
        (formatdate(1_000_030, usegmt=True), 30),
        (formatdate(999_000, usegmt=True), 0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("٣", None),
    ],
)
def test_retry_after(text: str, seconds: float | None) -> None:
    assert parse_retry_after(text, 1_000_000) == seconds


@given(st.text(max_size=40))
def test_any_retry_after(text: str) -> None:
    seconds = parse_retry_after(text, 1_000_000)
    assert seconds is None or seconds >= 0


class Failing:
    """Fails with each error in turn, then gives 7."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.slept: list[float] = []

    async def __call__(self) -> int:
        if self.errors:
            raise self.errors.pop(0)
        return 7

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    async def run(self) -> int:
        return await retry(self, POLICY, sleep=self.sleep, chance=lambda: 1.0)


async def test_loop_waits_longer_each_time() -> None:
    failing = Failing(PASSING, PASSING, busy(9))
    assert await failing.run() == 7
    assert failing.slept == [1, 2, 9]


async def test_loop_gives_up() -> None:
    failing = Failing(*[PASSING] * 9)
    with pytest.raises(RegistryError, match="here: down"):
        await failing.run()
    assert failing.slept == [1, 2, 3]


@pytest.mark.parametrize("error", [FINAL, NotFoundError("here", "gone"), ValueError("ours")])
async def test_loop_lets_the_rest_through(error: Exception) -> None:
    failing = Failing(error)
    with pytest.raises(type(error)):
        await failing.run()
    assert failing.slept == []
