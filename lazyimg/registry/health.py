"""Which hosts are left alone for a while because they failed. Pure: its clock is given to it.

A failure concerns a host as a whole (it cannot be reached, is overloaded), or only what was asked
of it (it lacks one blob, refuses one repository, gave wrong bytes of it). Each further failure of
a host doubles the time; its first good answer clears it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from lazyimg.errors import AccessDeniedError, CorruptError, NotFoundError
from lazyimg.registry.retry import RegistryBusyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lazyimg.errors import LazyimgError

FIRST_COOL_DOWN: Final = 5.0
"""Seconds for a host after its first failure."""

MAX_COOL_DOWN: Final = 300.0
"""Seconds at most, whatever the host asks for."""

MISSING_COOL_DOWN: Final = 60.0
"""Seconds for one thing that a host lacks or refuses: a mirror may have it later."""

WRONG_COOL_DOWN: Final = 300.0
"""Seconds for one thing of which a host gave wrong bytes."""

MAX_SUBJECTS: Final = 4096
"""Things remembered at once; the oldest are forgotten first."""


class Health:
    """What is known of hosts.

    Args:
        clock: seconds that only ever grow.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._hosts: dict[str, tuple[float, int]] = {}  # end of cool-down, failures in a row
        self._subjects: OrderedDict[tuple[str, str], float] = OrderedDict()

    def cools(self, host: str, subject: str = "") -> float:
        """Give the seconds for which a host is not to be asked for something; 0: it may be."""
        end, _ = self._hosts.get(host, (0.0, 0))
        end = max(end, self._subjects.get((host, subject), 0.0))
        return max(0.0, end - self._clock())

    def note_failure(self, host: str, subject: str, error: LazyimgError) -> None:
        """Learn how a request for `subject` failed."""
        if isinstance(error, CorruptError):
            self._note_subject(host, subject, WRONG_COOL_DOWN)
        elif isinstance(error, NotFoundError | AccessDeniedError):
            self._note_subject(host, subject, MISSING_COOL_DOWN)
        else:
            now = self._clock()
            end, row = self._hosts.get(host, (0.0, 0))
            if now >= end:  # else: one of several requests that failed together
                end, row = now + FIRST_COOL_DOWN * 2.0 ** min(row, 10), row + 1
            if isinstance(error, RegistryBusyError):
                end = max(end, now + error.retry_after)
            self._hosts[host] = (min(end, now + MAX_COOL_DOWN), row)

    def note_success(self, host: str) -> None:
        """Learn that it answered."""
        self._hosts.pop(host, None)

    def _note_subject(self, host: str, subject: str, seconds: float) -> None:
        key = (host, subject)
        self._subjects[key] = self._clock() + seconds
        self._subjects.move_to_end(key)
        if len(self._subjects) > MAX_SUBJECTS:
            self._subjects.popitem(last=False)
