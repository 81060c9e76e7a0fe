"""What to do about each event of the kernel. Pure: events in, frozen actions out.

| phase    | event                     | step   | actions                                     |
|----------|---------------------------|--------|---------------------------------------------|
| SERVING  | a present range is read   | allow  | Allow                                       |
| SERVING  | an absent range is read   | fill   | Fill; the event is pending                  |
| FAILING  | a present range is read   | allow  | Allow                                       |
| FAILING  | an absent range is read   | fail   | Deny(EIO)                                   |
| any      | not ours to serve         | refuse | Deny(EIO)                                   |
| any      | events were lost          | lose   | Lose, every pending event denied; FAILING   |
| STOPPED  | any                       | -      | raises IllegalStepError, changes nothing    |

Rules on top of the table:
  1. An event is named by its fd, which stays open until it was answered. So no two that wait have
     the same one, and no answer can reach another.
  2. Only a range that is present is ever allowed. `finish` says so anew, after a fill.
  3. Not ours: a file that is not in the cache, what is not understood, and what this process itself
     reads through an fd that was opened after the mark. It would wait for itself.
  4. `finish` is for every Fill exactly once; it gives nothing for what was denied meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from errno import EIO
from typing import Final, NamedTuple


class IllegalStepError(RuntimeError):
    """A call that the state does not allow; nothing was changed."""


class PendingRead(NamedTuple):
    """A read of a device. Told from another by identity: fds are used again.

    Attributes:
        fd: of the event.
        name: of the device.
        offset: first byte, a multiple of the block size, as the next.
        length: bytes.
    """

    fd: int
    name: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Allow:
    """Let it read."""

    fd: int


@dataclass(frozen=True, slots=True)
class Deny:
    """Let it fail."""

    fd: int
    errno: int


@dataclass(frozen=True, slots=True)
class Fill:
    """Make the range present, then call `finish`."""

    read: PendingRead


@dataclass(frozen=True, slots=True)
class Lose:
    """Give up what is mounted: it may show wrong data."""

    problem: str


Action = Allow | Deny | Fill | Lose


class Phase(Enum):
    """Whether absent ranges are filled."""

    SERVING = auto()
    FAILING = auto()
    STOPPED = auto()


class _Step(Enum):
    ALLOW = auto()
    FILL = auto()
    FAIL = auto()
    REFUSE = auto()
    LOSE = auto()


class _Event(Enum):
    PRESENT = auto()
    ABSENT = auto()
    FOREIGN = auto()
    LOSS = auto()


_TABLE: Final = {
    (Phase.SERVING, _Event.PRESENT): _Step.ALLOW,
    (Phase.SERVING, _Event.ABSENT): _Step.FILL,
    (Phase.SERVING, _Event.FOREIGN): _Step.REFUSE,
    (Phase.SERVING, _Event.LOSS): _Step.LOSE,
    (Phase.FAILING, _Event.PRESENT): _Step.ALLOW,
    (Phase.FAILING, _Event.ABSENT): _Step.FAIL,
    (Phase.FAILING, _Event.FOREIGN): _Step.REFUSE,
    (Phase.FAILING, _Event.LOSS): _Step.LOSE,
}


class Protocol:
    """The state of one group. Not thread-safe: the caller locks."""

    def __init__(self) -> None:
        self.phase = Phase.SERVING
        self._pending: dict[int, PendingRead] = {}

    def receive_read(self, read: PendingRead, *, present: bool) -> list[Action]:
        """Take an event about a device; `present` says whether all of the range is.

        Raises:
            IllegalStepError: stopped.
        """
        step = self._step(_Event.PRESENT if present else _Event.ABSENT)
        if step is _Step.ALLOW:
            return [Allow(read.fd)]
        if step is _Step.FAIL:
            return [Deny(read.fd, EIO)]
        self._pending[read.fd] = read
        return [Fill(read)]

    def receive_foreign(self, fd: int) -> list[Action]:
        """Take an event that is not ours to serve: rule 3.

        Raises:
            IllegalStepError: stopped.
        """
        self._step(_Event.FOREIGN)
        return [Deny(fd, EIO)]

    def receive_loss(self, problem: str) -> list[Action]:
        """Take it that events were lost.

        Raises:
            IllegalStepError: stopped.
        """
        self._step(_Event.LOSS)
        self.phase = Phase.FAILING
        return [Lose(problem), *self._deny_pending()]

    def finish(self, read: PendingRead, *, present: bool) -> list[Action]:
        """Answer an event whose range was filled, or could not be: rules 2 and 4."""
        if self._pending.get(read.fd) is not read:
            return []
        del self._pending[read.fd]
        return [Allow(read.fd) if present else Deny(read.fd, EIO)]

    def begin_stop(self) -> list[Action]:
        """Fail all that is pending; from now on nothing is filled.

        Raises:
            IllegalStepError: stopped.
        """
        if self.phase is Phase.STOPPED:
            raise IllegalStepError("FAILING after STOPPED")
        self.phase = Phase.FAILING
        return self._deny_pending()

    def end_stop(self) -> None:
        """Take no more events.

        Raises:
            IllegalStepError: `begin_stop` was not called, or this was.
        """
        if self.phase is not Phase.FAILING:
            raise IllegalStepError(f"STOPPED must follow FAILING, not {self.phase.name}")
        self.phase = Phase.STOPPED

    def _deny_pending(self) -> list[Action]:
        actions: list[Action] = [Deny(fd, EIO) for fd in self._pending]
        self._pending.clear()
        return actions

    def _step(self, event: _Event) -> _Step:
        step = _TABLE.get((self.phase, event))
        if step is None:
            raise IllegalStepError(f"{event.name} while stopped")
        return step
