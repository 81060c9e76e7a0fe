"""How long a host is left alone, and for what."""

from __future__ import annotations

import pytest

from lazyimg.errors import (
    AccessDeniedError,
    CorruptError,
    LazyimgError,
    NotFoundError,
    RegistryError,
)
from lazyimg.registry.health import (
    FIRST_COOL_DOWN,
    MAX_COOL_DOWN,
    MAX_SUBJECTS,
    MISSING_COOL_DOWN,
    WRONG_COOL_DOWN,
    Health,
)
from lazyimg.registry.retry import RegistryBusyError

AWAY = RegistryError("mirror", "away", retryable=True)


class Setup:
    def __init__(self) -> None:
        self.now = 100.0
        self.health = Health(lambda: self.now)

    def fail(self, error: LazyimgError = AWAY, subject: str = "blob") -> None:
        self.health.note_failure("mirror", subject, error)


@pytest.fixture
def setup() -> Setup:
    return Setup()


def test_nobody_cools_at_first(setup: Setup) -> None:
    assert setup.health.cools("mirror") == 0


def test_host_that_is_away_cools_for_everything(setup: Setup) -> None:
    setup.fail()
    assert setup.health.cools("mirror", "other") == FIRST_COOL_DOWN
    assert setup.health.cools("another", "blob") == 0
    setup.now += FIRST_COOL_DOWN
    assert setup.health.cools("mirror", "other") == 0


def test_failing_again_doubles_the_time_up_to_a_limit(setup: Setup) -> None:
    times = []
    for _ in range(12):
        setup.fail()
        times.append(setup.health.cools("mirror"))
        setup.now += times[-1]
    assert times[:3] == [FIRST_COOL_DOWN, 2 * FIRST_COOL_DOWN, 4 * FIRST_COOL_DOWN]
    assert times[-1] == MAX_COOL_DOWN


def test_requests_that_fail_together_count_once(setup: Setup) -> None:
    for _ in range(5):
        setup.fail()
    assert setup.health.cools("mirror") == FIRST_COOL_DOWN


def test_an_answer_clears_it(setup: Setup) -> None:
    setup.fail()
    setup.health.note_success("mirror")
    assert setup.health.cools("mirror") == 0
    setup.fail()
    assert setup.health.cools("mirror") == FIRST_COOL_DOWN


def test_what_the_host_asks_for_within_the_limit(setup: Setup) -> None:
    setup.fail(RegistryBusyError("mirror", "busy", status=429, retry_after=77))
    assert setup.health.cools("mirror") == 77
    setup.fail(RegistryBusyError("mirror", "busy", status=429, retry_after=7777))
    assert setup.health.cools("mirror") == MAX_COOL_DOWN


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (NotFoundError("blob", "is not there"), MISSING_COOL_DOWN),
        (AccessDeniedError("blob", "refused"), MISSING_COOL_DOWN),
        (CorruptError("blob", "wrong"), WRONG_COOL_DOWN),
    ],
)
def test_what_concerns_one_thing_only(setup: Setup, error: LazyimgError, seconds: float) -> None:
    setup.fail(error)
    assert setup.health.cools("mirror", "blob") == seconds
    assert setup.health.cools("mirror", "other") == 0
    setup.health.note_success("mirror")
    assert setup.health.cools("mirror", "blob") == seconds


def test_memory_is_bounded(setup: Setup) -> None:
    for number in range(MAX_SUBJECTS + 1):
        setup.fail(NotFoundError("blob", "is not there"), str(number))
    assert setup.health.cools("mirror", "0") == 0
    assert setup.health.cools("mirror", "1") == MISSING_COOL_DOWN
