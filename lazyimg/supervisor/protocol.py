"""When the worker is started, stopped and given up; which fds are kept. Pure.

| state         | event | step     | actions                                  |
|---------------|-------|----------|------------------------------------------|
| NEW           | begin | launch   | Start; FIRST                             |
| FIRST         | ready | announce | Notify READY=1; SERVING                  |
| FIRST         | exit  | give up  | Exit with the worker's code              |
| STARTING      | ready | resume   | SERVING                                  |
| STARTING      | exit  | retry    | WAITING                                  |
| SERVING       | ready | ignore   | nothing                                  |
| SERVING       | exit  | retry    | WAITING                                  |
| WAITING       | due   | launch   | Start; STARTING                          |
| WAITING       | stop  | abandon  | Exit with 1: nobody is there to unmount  |
| with a worker | stop  | forward  | Signal, once Notify STOPPING=1; STOPPING |
| STOPPING      | ready | ignore   | nothing                                  |
| STOPPING      | due   | kill     | Signal SIGKILL                           |
| STOPPING      | exit  | end      | Exit with the worker's code              |
| all else      |       | -        | raises IllegalStepError, changes nothing |

FIRST is the start of the first worker, STARTING that of a later one. "due" is a `tick` at or after
`deadline`. A worker that a signal ended has the code 128 + its number, as shells have it.

Pauses before a start, in seconds: none after the first end, then `PAUSE` doubled each time, but at
most `MAX_PAUSE_SERVED` behind a worker that got ready (its readers wait) and at most `MAX_PAUSE`
behind one that did not (something lasting is wrong). Each is shortened by up to half at random, so
that the workers of many nodes do not hit one registry in step.
"""

from __future__ import annotations

import signal
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lazyimg.supervisor.messages import Notification

PAUSE: Final = 0.1
"""Seconds before the second start in a row."""

MAX_PAUSE_SERVED: Final = 1.0
"""Seconds: the longest pause behind a worker that had become ready."""

MAX_PAUSE: Final = 5.0
"""Seconds: the longest pause behind a worker that had not; a start costs a second of processor."""

STEADY: Final = 10.0
"""Seconds of service after which earlier ends are forgotten."""

STOP_TIMEOUT: Final = 300.0
"""Seconds for a worker that was told to stop; then it is killed. systemd's own comes first."""

MAX_FDS: Final = 4096
"""Fds that are kept. Transports with an fd for each mount are what needs many."""


class IllegalStepError(RuntimeError):
    """An event that the state does not allow; nothing was changed."""


class Start(NamedTuple):
    """Start a worker with all kept fds; it is number `restarts` after the first."""

    restarts: int


class Signal(NamedTuple):
    """Send the worker a signal."""

    number: int


class Notify(NamedTuple):
    """Tell the supervisor's own service manager."""

    text: str


class CloseFd(NamedTuple):
    """Close an fd that is not kept (any more)."""

    fd: int


class Greet(NamedTuple):
    """Send a caller of a kept socket, by its name, what it is to hear first; hand it over."""

    caller: int
    name: str
    greeting: bytes


class Say(NamedTuple):
    """Log a line; `serious` if somebody should look at it."""

    text: str
    serious: bool = True


class Exit(NamedTuple):
    """End the supervisor."""

    code: int


Action = Start | Signal | Notify | CloseFd | Greet | Say | Exit


class State(Enum):
    """Where the worker is in its life."""

    NEW = auto()
    FIRST = auto()
    STARTING = auto()
    SERVING = auto()
    WAITING = auto()
    STOPPING = auto()
    ENDED = auto()


class _Event(Enum):
    BEGIN = auto()
    READY = auto()
    EXIT = auto()
    STOP = auto()
    DUE = auto()


class _Step(Enum):
    LAUNCH = auto()
    ANNOUNCE = auto()
    RESUME = auto()
    IGNORE = auto()
    RETRY = auto()
    GIVE_UP = auto()
    FORWARD = auto()
    ABANDON = auto()
    KILL = auto()
    END = auto()


_TABLE: Final = {
    (State.NEW, _Event.BEGIN): _Step.LAUNCH,
    (State.FIRST, _Event.READY): _Step.ANNOUNCE,
    (State.FIRST, _Event.EXIT): _Step.GIVE_UP,
    (State.FIRST, _Event.STOP): _Step.FORWARD,
    (State.STARTING, _Event.READY): _Step.RESUME,
    (State.STARTING, _Event.EXIT): _Step.RETRY,
    (State.STARTING, _Event.STOP): _Step.FORWARD,
    (State.SERVING, _Event.READY): _Step.IGNORE,
    (State.SERVING, _Event.EXIT): _Step.RETRY,
    (State.SERVING, _Event.STOP): _Step.FORWARD,
    (State.WAITING, _Event.DUE): _Step.LAUNCH,
    (State.WAITING, _Event.STOP): _Step.ABANDON,
    (State.STOPPING, _Event.READY): _Step.IGNORE,
    (State.STOPPING, _Event.EXIT): _Step.END,
    (State.STOPPING, _Event.STOP): _Step.FORWARD,
    (State.STOPPING, _Event.DUE): _Step.KILL,
}


class Protocol:
    """The state of one supervisor. Times are seconds of a clock that never goes back."""

    def __init__(self) -> None:
        self.state = State.NEW
        self.deadline: float | None = None
        """When `tick` is due; None: never."""
        self.restarts = 0
        self._failures = 0  # ends in a row, none of them after a steady life
        self._ready_at: float | None = None
        self._fds: list[tuple[str, int]] = []
        self._greetings: dict[int, bytes] = {}  # by the fds of listening sockets
        self._left: list[int] = []  # of these, the ones whose worker has ended

    @property
    def fds(self) -> list[tuple[str, int]]:
        """What is kept, (name, fd), in the order in which it came."""
        return list(self._fds)

    @property
    def listeners(self) -> list[int]:
        """Kept sockets whose callers would hear nothing: the worker that had them has ended."""
        return list(self._left)

    def begin(self, fds: Sequence[tuple[str, int]] = ()) -> list[Action]:
        """Start the first worker, with what a service manager has kept for us.

        Raises:
            IllegalStepError: it was begun before.
        """
        self._step(_Event.BEGIN)
        self._fds += fds
        self.state = State.FIRST
        return [Start(0)]

    def receive(self, notification: Notification, fds: Sequence[int], now: float) -> list[Action]:
        """Take in what the worker says, and the fds that came with it.

        Raises:
            IllegalStepError: there has been no worker yet, or it was the last.
        """
        actions: list[Action] = []
        if notification.ready:
            actions += self._ready(now)
        if notification.remove:
            actions += self._remove(notification.name)
        if notification.store:
            actions += self._keep(notification, fds)
        else:
            actions += [CloseFd(fd) for fd in fds]
        return [*actions, *map(Notify, notification.rest)]

    def called(self, listener: int, caller: int) -> list[Action]:
        """Take in a caller of one of `listeners`."""
        (name,) = (name for name, fd in self._fds if fd == listener)
        return [Greet(caller, name, self._greetings[listener])]

    def exited(self, code: int, now: float, jitter: float) -> list[Action]:
        """Take in the worker's end.

        Args:
            code: its exit code; for a signal, the number below zero.
            now: the time.
            jitter: from 0 to 1, at random.

        Raises:
            IllegalStepError: there is no worker.
        """
        step = self._step(_Event.EXIT)
        if step is _Step.RETRY:
            return self._retry(code, now, jitter)
        self.state, self.deadline = State.ENDED, None
        end = Exit(code if code >= 0 else 128 - code)
        if step is _Step.GIVE_UP and code >= 0:
            return [end]  # it has said why itself
        if code == 0:
            return [end]
        return [Say(f"the worker ended with {_describe(code)}"), end]

    def stop(self, number: int, now: float) -> list[Action]:
        """Take in a signal that asks to end.

        Raises:
            IllegalStepError: no worker was started, or it has ended.
        """
        if self._step(_Event.STOP) is _Step.ABANDON:
            self.state, self.deadline = State.ENDED, None
            return [Say("stopped while no worker ran: its mounts stay, unserved"), Exit(1)]
        if self.state is State.STOPPING:
            return [Signal(number)]
        self.state, self.deadline = State.STOPPING, now + STOP_TIMEOUT
        return [Notify("STOPPING=1"), Signal(number)]

    def tick(self, now: float) -> list[Action]:
        """Do what is due.

        Raises:
            IllegalStepError: a deadline in a state that has none.
        """
        if self.deadline is None or now < self.deadline:
            return []
        step = self._step(_Event.DUE)
        self.deadline = None
        if step is _Step.KILL:
            text = f"the worker did not stop within {STOP_TIMEOUT:g} s; it is killed"
            return [Say(text), Signal(signal.SIGKILL)]
        self.state, self._ready_at = State.STARTING, None
        self.restarts += 1
        return [Start(self.restarts)]

    def _ready(self, now: float) -> list[Action]:
        step = self._step(_Event.READY)
        if step is _Step.IGNORE:
            return []
        self.state, self._ready_at = State.SERVING, now
        if step is _Step.ANNOUNCE:
            return [Notify("READY=1")]
        return [Say(f"worker {self.restarts} after the first is ready", serious=False)]

    def _retry(self, code: int, now: float, jitter: float) -> list[Action]:
        self._left = list(self._greetings)
        served = self._ready_at is not None
        if self._ready_at is not None and now - self._ready_at >= STEADY:
            self._failures = 0
        self._failures += 1
        pause = find_pause(self._failures, served=served) * (1 - jitter / 2)
        self.state, self.deadline = State.WAITING, now + pause
        again = f"in {pause:.1f} s" if pause else "now"
        return [Say(f"the worker ended with {_describe(code)}; it is started again {again}")]

    def _keep(self, notification: Notification, fds: Sequence[int]) -> list[Action]:
        name, room = notification.name, MAX_FDS - len(self._fds)
        self._fds += [(name, fd) for fd in fds[:room]]
        if notification.greeting:
            self._greetings |= dict.fromkeys(fds[:room], notification.greeting)
        lost = fds[room:]
        if not lost:
            return []
        text = f"{len(lost)} of the worker's fds '{name}' are not kept: {MAX_FDS} are"
        return [Say(text), *map(CloseFd, lost)]

    def _remove(self, name: str) -> list[Action]:
        gone = [fd for kept, fd in self._fds if kept == name]
        self._fds = [(kept, fd) for kept, fd in self._fds if kept != name]
        for fd in gone:
            self._greetings.pop(fd, None)
        self._left = [fd for fd in self._left if fd not in gone]
        return [CloseFd(fd) for fd in gone]

    def _step(self, event: _Event) -> _Step:
        step = _TABLE.get((self.state, event))
        if step is None:
            raise IllegalStepError(f"{event.name} while {self.state.name}")
        return step


def find_pause(failures: int, *, served: bool) -> float:
    """Give the seconds before the next start after so many ends in a row, from 1."""
    if failures == 1:
        return 0.0
    longest = MAX_PAUSE_SERVED if served else MAX_PAUSE
    return min(longest, PAUSE * 2.0 ** min(failures - 2, 32))


def _describe(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"code {code}"
