"""The system calls: processes, signals, datagrams with fds.

Source: sd_notify(3), sd_listen_fds(3), sd_pid_notify_with_fds(3); unix(7) for SCM_RIGHTS and
SCM_CREDENTIALS.
"""

from __future__ import annotations

import array
import logging
import os
import selectors
import signal
import socket
import struct
import time
from typing import TYPE_CHECKING, Final

from lazyimg.host.handed_fds import CALLERS, RESTARTS_VARIABLE, SUPERVISOR_VARIABLE, line_up
from lazyimg.supervisor.messages import MAX_DATAGRAM
from lazyimg.supervisor.ports import Datagram, Happened

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import FrameType

MAX_MESSAGE_FDS: Final = 253
"""Fds of one datagram: SCM_MAX_FD in include/net/scm.h."""

CANNOT_EXEC: Final = 127
"""Exit code of a worker whose program cannot be run, as shells have it."""

_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_STOPS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_OURS: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET")

_log = logging.getLogger(__name__)


class ProcessDevice:
    """Implements `ports.Processes`. One for each process: it takes over the signals.

    Args:
        command: the worker's, with the program's path first.
        environment: of this process; the worker's is made from it.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command = list(command)
        self._manager = environment.get("NOTIFY_SOCKET", "")
        self._environment = {k: v for k, v in environment.items() if k not in _OURS}
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._channel.bind("")  # the kernel chooses an abstract name
        self._channel.setblocking(False)  # noqa: FBT003 - positional only
        self._wakeup, self._signalled = socket.socketpair()
        for end in (self._wakeup, self._signalled):
            end.setblocking(False)  # noqa: FBT003 - positional only
        self._listeners: dict[int, bool] = {}  # that are waited for; whether they can be used
        self._callers, self._for_workers = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self._callers.setblocking(False)  # noqa: FBT003 - positional only
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._channel, selectors.EVENT_READ)
        self._selector.register(self._signalled, selectors.EVENT_READ)
        self._set_handlers()

    def _set_handlers(self) -> None:
        for number in (signal.SIGCHLD, *_STOPS):
            signal.signal(number, _ignore)  # a function: what is only ignored wakes nobody
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)

    def close(self) -> None:
        """Give the signals and the channel back."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, *_STOPS):
            signal.signal(number, signal.SIG_DFL)
        self._selector.close()
        for end in (
            *(self._channel, self._wakeup, self._signalled),
            *(self._callers, self._for_workers),
        ):
            end.close()

    def now(self) -> float:
        """Give the time; see `Processes`."""
        return time.monotonic()

    def start(self, fds: Sequence[tuple[str, int]], restarts: int) -> int:
        """Start a worker; see `Processes`."""
        supervisor = os.getpid()
        if restarts:
            fds = [*fds, (CALLERS, self._for_workers.fileno())]
        process = os.fork()
        if process == 0:
            self._become_worker(fds, restarts, supervisor)
        return process

    def _become_worker(
        self, fds: Sequence[tuple[str, int]], restarts: int, supervisor: int
    ) -> None:
        """In the child: exec. Never returns."""
        try:
            signal.set_wakeup_fd(-1)
            environment = self._environment | {
                "NOTIFY_SOCKET": "@" + self._channel.getsockname()[1:].decode(),
                SUPERVISOR_VARIABLE: str(supervisor),
                RESTARTS_VARIABLE: str(restarts),
            }
            if fds:
                environment |= {
                    "LISTEN_PID": str(os.getpid()),
                    "LISTEN_FDS": str(len(fds)),
                    "LISTEN_FDNAMES": ":".join(name for name, _ in fds),
                }
                line_up([fd for _, fd in fds])
            os.execve(self._command[0], self._command, environment)  # noqa: S606 - no shell wanted
        except BaseException as error:  # nothing may come back from here
            os.write(2, f"lazyimg: {self._command[0]}: cannot be run: {error}\n".encode())
        finally:
            os._exit(CANNOT_EXEC)

    def signal(self, process: int, number: int) -> None:
        """Send a signal; see `Processes`. A hang-up is passed on as SIGTERM."""
        os.kill(process, signal.SIGTERM if number == signal.SIGHUP else number)

    def wait(self, timeout: float | None, listeners: Sequence[int] = ()) -> Happened:
        """Wait; see `Processes`."""
        self._watch(listeners)
        ready = {key.fd for key, _ in self._selector.select(timeout)}
        try:
            signals = self._signalled.recv(4096)
        except BlockingIOError:
            signals = b""
        ends = tuple(_collect_ends())
        stops = tuple(number for number in signals if number in _STOPS)
        callers = tuple(self._accept(ready & self._listeners.keys()))
        return Happened(ends, tuple(self._read_datagrams()), stops, callers)

    def _watch(self, listeners: Sequence[int]) -> None:
        for fd in self._listeners.keys() - set(listeners):
            self._forget(fd)
        for fd in set(listeners) - self._listeners.keys():
            os.set_blocking(fd, False)
            self._selector.register(fd, selectors.EVENT_READ)
            self._listeners[fd] = True

    def _forget(self, listener: int) -> None:
        if self._listeners.pop(listener):
            self._selector.unregister(listener)

    def _accept(self, listeners: set[int]) -> list[tuple[int, int]]:
        found = []
        for fd in sorted(listeners):
            listener = socket.socket(fileno=fd)
            try:
                caller, _ = listener.accept()
                found.append((fd, caller.detach()))
            except (BlockingIOError, ConnectionAbortedError):
                pass  # it is gone again, or the worker was faster
            except OSError as error:
                _log.error("callers wait for the next worker: %s", error)
                self._selector.unregister(fd)  # or it would be ready for ever
                self._listeners[fd] = False
            finally:
                listener.detach()
        return found

    def greet(self, caller: int, name: str, greeting: bytes) -> None:
        """Greet a caller; see `Processes`."""
        with socket.socket(fileno=caller) as connection:
            try:
                connection.sendall(greeting)
                socket.send_fds(self._callers, [name.encode()], [caller])
            except OSError as error:
                _log.warning("a caller of %s is refused: %s", name, error)

    def _read_datagrams(self) -> list[Datagram]:
        found: list[Datagram] = []
        while True:
            try:
                data, ancillary, _, _ = self._channel.recvmsg(
                    MAX_DATAGRAM,
                    socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(4 * MAX_MESSAGE_FDS),
                    socket.MSG_CMSG_CLOEXEC,
                )
            except BlockingIOError:
                return found
            except OSError as error:  # no more fds: what came with it is lost
                _log.error("a datagram of the worker cannot be read: %s", error)
                return found
            sender, fds = _parse_ancillary(ancillary)
            found.append(Datagram(data, sender, fds))

    def notify(self, text: str) -> None:
        """Tell the service manager; see `Processes`."""
        if not self._manager:
            return
        address = "\0" + self._manager[1:] if self._manager.startswith("@") else self._manager
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            try:
                channel.sendto(text.encode(), address)
            except OSError as error:
                _log.warning("the service manager was not told %s: %s", text, error)

    def close_fd(self, fd: int) -> None:
        """Close an fd; see `Processes`."""
        if fd in self._listeners:
            self._forget(fd)
        os.close(fd)


def _ignore(_: int, __: FrameType | None) -> None:
    """Take a signal: the loop hears of it through the wake-up fd."""


def _collect_ends() -> list[tuple[int, int]]:
    ends: list[tuple[int, int]] = []
    while True:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ends
        if process == 0:
            return ends
        ends.append((process, os.waitstatus_to_exitcode(status)))


def _parse_ancillary(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, tuple[int, ...]]:
    sender, fds = 0, array.array("i")
    for level, kind, data in ancillary:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_CREDENTIALS:
            sender = _CREDENTIALS.unpack(data)[0]
        elif kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return sender, tuple(fds)
