"""The loop: what happens to the protocol, its actions to the system."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Final

from lazyimg.supervisor.messages import parse_notification
from lazyimg.supervisor.protocol import (
    Action,
    CloseFd,
    Greet,
    Notify,
    Protocol,
    Say,
    Signal,
    Start,
    State,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lazyimg.supervisor.ports import Datagram, Processes

CANNOT_START: Final = 71
"""Exit code when no process can be made: the system's fault (EX_OSERR)."""

_log = logging.getLogger(__name__)


class Supervisor:
    """Keeps a worker running.

    Args:
        processes: the system.
        jitter: gives a number from 0 to 1 at random.
    """

    def __init__(self, processes: Processes, jitter: Callable[[], float] = random.random) -> None:
        self._processes = processes
        self._jitter = jitter
        self._protocol = Protocol()
        self._worker: int | None = None
        self._code: int | None = None

    def run(self, fds: Sequence[tuple[str, int]] = ()) -> int:
        """Run until the worker ended for good; gives the exit code.

        Args:
            fds: (name, fd) that a service manager has kept.
        """
        self._perform(self._protocol.begin(fds))
        while self._code is None:
            self._turn()
        return self._code

    def _turn(self) -> None:
        deadline = self._protocol.deadline
        now = self._processes.now()
        timeout = None if deadline is None else max(0.0, deadline - now)
        happened = self._processes.wait(timeout, self._protocol.listeners)
        for listener, caller in happened.callers:
            self._perform(self._protocol.called(listener, caller))
        for datagram in happened.datagrams:
            self._receive(datagram)
        for process, code in happened.ends:
            if process == self._worker:
                self._worker = None
                self._end(code)
        for number in happened.stops:
            if self._protocol.state is not State.ENDED:
                self._perform(self._protocol.stop(number, self._processes.now()))
        if self._protocol.state is not State.ENDED:
            self._perform(self._protocol.tick(self._processes.now()))

    def _receive(self, datagram: Datagram) -> None:
        if datagram.sender != self._worker:
            _log.warning("process %d, which is not the worker, is not heard", datagram.sender)
            for fd in datagram.fds:
                self._processes.close_fd(fd)
            return
        notification = parse_notification(datagram.data)
        now = self._processes.now()
        self._perform(self._protocol.receive(notification, datagram.fds, now))

    def _end(self, code: int) -> None:
        self._perform(self._protocol.exited(code, self._processes.now(), self._jitter()))

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Start):
                self._start(action.restarts)
            elif isinstance(action, Signal):
                if self._worker is not None:
                    self._processes.signal(self._worker, action.number)
            elif isinstance(action, Notify):
                self._processes.notify(action.text)
            elif isinstance(action, CloseFd):
                self._processes.close_fd(action.fd)
            elif isinstance(action, Greet):
                self._processes.greet(*action)
            elif isinstance(action, Say):
                _log.log(logging.WARNING if action.serious else logging.INFO, "%s", action.text)
            else:
                self._code = action.code

    def _start(self, restarts: int) -> None:
        try:
            self._worker = self._processes.start(self._protocol.fds, restarts)
        except OSError as error:
            _log.error("no worker can be started: %s", error)
            self._end(CANNOT_START)
