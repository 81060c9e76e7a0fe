"""A system behind the supervisor's port whose time and events a test makes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lazyimg.supervisor.ports import Datagram, Happened

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass
class FakeProcesses:
    """Implements `supervisor.ports.Processes`.

    Attributes:
        script: what happens at each wait; a function is called first, with this.
        time: seconds; a wait that has a timeout and no event takes all of it.
        started: (fds, restarts) of each worker.
        running: the worker's process, or None.
        signals: (process, number) of each.
        told: what the service manager heard.
        closed: fds.
        refuse: how many starts fail.
        waits: the timeout of each wait.
        listeners: of the latest wait.
        greeted: callers, with the name that they called and what they were sent.
    """

    script: deque[Happened | Callable[[FakeProcesses], Happened]] = field(default_factory=deque)
    time: float = 1000.0
    started: list[tuple[list[tuple[str, int]], int]] = field(default_factory=list)
    running: int | None = None
    signals: list[tuple[int, int]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    closed: list[int] = field(default_factory=list)
    refuse: int = 0
    waits: list[float | None] = field(default_factory=list)
    listeners: list[int] = field(default_factory=list)
    greeted: list[tuple[int, str, bytes]] = field(default_factory=list)
    _next: int = 100

    def now(self) -> float:
        return self.time

    def start(self, fds: Sequence[tuple[str, int]], restarts: int) -> int:
        self.started.append((list(fds), restarts))
        if self.refuse:
            self.refuse -= 1
            raise OSError(11, "Resource temporarily unavailable")
        self._next += 1
        self.running = self._next
        return self._next

    def signal(self, process: int, number: int) -> None:
        assert process == self.running
        self.signals.append((process, number))

    def wait(self, timeout: float | None, listeners: Sequence[int] = ()) -> Happened:
        self.waits.append(timeout)
        self.listeners = list(listeners)
        if timeout is not None and not self.script:
            raise AssertionError("nothing more is to happen")
        event = self.script.popleft()
        happened = event(self) if callable(event) else event
        if happened == Happened() and timeout is not None:
            self.time += timeout
        for process, _ in happened.ends:
            if process == self.running:
                self.running = None
        return happened

    def greet(self, caller: int, name: str, greeting: bytes) -> None:
        self.greeted.append((caller, name, greeting))

    def notify(self, text: str) -> None:
        self.told.append(text)

    def close_fd(self, fd: int) -> None:
        self.closed.append(fd)


def says(data: bytes, *fds: int, sender: int | None = None) -> Callable[[FakeProcesses], Happened]:
    """Let the worker, or another process, send a datagram."""

    def send(processes: FakeProcesses) -> Happened:
        process = sender if sender is not None else processes.running
        assert process is not None
        return Happened(datagrams=(Datagram(data, process, fds),))

    return send


def ends(code: int, *datagrams: bytes) -> Callable[[FakeProcesses], Happened]:
    """Let the worker end, after it sent datagrams."""

    def end(processes: FakeProcesses) -> Happened:
        process = processes.running
        assert process is not None
        sent = tuple(Datagram(data, process, ()) for data in datagrams)
        return Happened(ends=((process, code),), datagrams=sent)

    return end
