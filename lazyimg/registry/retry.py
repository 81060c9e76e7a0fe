"""Trying again: which failures, when, and how often.

`plan_retry` decides and is pure; `retry` loops. The whole is bounded by the policy's attempts and
by its caller, who cancels.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, TypeVar

from lazyimg.errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

RETRYABLE_STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""What may go away by itself."""


class RegistryBusyError(RegistryError):
    """The registry asks to come back later.

    Attributes:
        retry_after: seconds.
    """

    def __init__(
        self, what: str, problem: str, remedy: str = "", *, status: int, retry_after: float
    ) -> None:
        super().__init__(what, problem, remedy, status=status, retryable=True)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long.

    Attributes:
        attempts: tries in all.
        first_delay: seconds before the second try; doubles with each, half of it is random.
        max_delay: seconds that no own delay exceeds.
        max_retry_after: seconds; a registry that wants more is given up.
    """

    attempts: int = 5
    first_delay: float = 0.25
    max_delay: float = 10.0
    max_retry_after: float = 60.0


def plan_retry(
    policy: RetryPolicy, attempt: int, error: RegistryError, chance: float
) -> float | None:
    """Give the seconds to wait before the next try, or None to give up.

    Args:
        policy: the bounds.
        attempt: tries made so far, 1 or more.
        error: how the last one ended.
        chance: a random number in 0..1.
    """
    if not error.retryable or attempt >= policy.attempts:
        return None
    delay = min(policy.max_delay, policy.first_delay * 2.0 ** (attempt - 1)) * (1 + chance) / 2
    if isinstance(error, RegistryBusyError):
        if error.retry_after > policy.max_retry_after:
            return None
        return max(delay, error.retry_after)
    return delay


def parse_retry_after(value: str, now: float) -> float | None:
    """Give the seconds that a Retry-After header asks for; None when it makes no sense.

    Args:
        value: seconds or an HTTP date. Source: RFC 9110, 10.2.3.
        now: seconds since the epoch.
    """
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None


async def retry(
    operation: Callable[[], Awaitable[T]],
    policy: RetryPolicy,
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    chance: Callable[[], float] = random.random,
) -> T:
    """Give what `operation` gives, trying again as `policy` allows.

    Raises:
        RegistryError: the last one, when no more tries are left or it is not retryable.
    """
    attempt = 1
    while True:
        try:
            return await operation()
        except RegistryError as error:
            delay = plan_retry(policy, attempt, error, chance())
            if delay is None:
                raise
        await sleep(delay)
        attempt += 1
