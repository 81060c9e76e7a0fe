"""Callers of a gRPC server whose process died: they wait for the next one, instead of failing.

The listening socket of a process that died is kept by the service manager, so a caller can connect
to it. But clients expect the first frame of HTTP/2 soon (containerd within a second, whose calls
then fail), and the next process needs seconds until it can answer. So lazyimg's supervisor accepts
at once what comes there, sends that frame, and hands the callers over; so does the next process
itself, below another service manager. What the callers say is passed on to the new server's own
socket when there is one, for as long as these connections last. Connections that come later are the
server's.

Threads, not asyncio: callers are greeted while most of the process is not imported yet. There are
few of them: a containerd has one connection.
"""

from __future__ import annotations

import logging
import select
import socket
from contextlib import suppress
from threading import Event, Thread
from typing import TYPE_CHECKING, Final

from lazyimg.host.handed_fds import CALLERS
from lazyimg_formats.http2 import GREETING, GreetedClient

if TYPE_CHECKING:
    from collections.abc import Callable

    from lazyimg.host.service_manager import ServiceManager

_log = logging.getLogger(__name__)

KEPT: Final = "grpc-"
"""The beginning of the names under which the service manager keeps such sockets."""

MAX_NAME: Final = 255
"""Bytes of such a name."""

PIECE: Final = 1 << 16
"""Bytes that are passed on at once."""


class Waiting:
    """Greets callers of a listening socket from now on.

    Args:
        listener: the socket; owned from now on.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._known = Event()
        self._path: str | None = None
        self._end, self._ended = socket.socketpair()
        self._thread = Thread(target=self._accept, name="waiting", daemon=True)
        self._thread.start()

    def answer(self, path: str) -> None:
        """Pass all callers on to the server that listens at a path, from now on."""
        self._path = path
        self._known.set()

    def take(self, caller: socket.socket) -> None:
        """Do the same for a caller that somebody else has greeted; owned from now on."""
        self._begin(self._pass_on, caller)

    def close(self) -> None:
        """Accept nobody any more, and hang up on those whom nobody has answered."""
        self._end.close()
        self._thread.join()
        self._known.set()

    def _accept(self) -> None:
        with self._listener, self._ended:
            while self._has_caller():
                try:
                    caller, _ = self._listener.accept()
                except (BlockingIOError, ConnectionAbortedError):
                    continue  # it is gone again
                except OSError as error:
                    _log.error("callers that waited are refused: %s", error)
                    return
                self._begin(self._greet, caller)

    def _has_caller(self) -> bool:
        """Wait for a caller; False: or for the end."""
        poll = select.poll()
        for one in (self._listener, self._ended):
            poll.register(one, select.POLLIN)
        return self._ended.fileno() not in dict(poll.poll())

    def _begin(self, call: Callable[[socket.socket], None], caller: socket.socket) -> None:
        Thread(target=call, args=(caller,), name="waiting", daemon=True).start()

    def _greet(self, caller: socket.socket) -> None:
        with suppress(OSError):  # which comes again
            caller.sendall(GREETING)
        self._pass_on(caller)

    def _pass_on(self, caller: socket.socket) -> None:
        with caller, socket.socket(socket.AF_UNIX) as server:
            try:
                self._known.wait()
                if self._path is None:
                    return
                server.connect(self._path)
            except OSError as error:
                _log.warning("a caller that waited is not answered: %s", error)
                return
            answers = Thread(target=_copy, args=(server, caller), name="waiting", daemon=True)
            answers.start()
            _copy(caller, server, GreetedClient().feed)
            answers.join()


def greet_callers(manager: ServiceManager) -> dict[str, Waiting]:
    """Greet the callers of all sockets that were kept; gives them by the sockets' names."""
    waiting = {}
    for name in manager.names:
        if name.startswith(KEPT) and (fd := manager.take(name)) is not None:
            waiting[name] = Waiting(socket.socket(fileno=fd))
    channel = manager.take(CALLERS)
    if channel is not None:
        arguments = (socket.socket(fileno=channel), waiting)
        Thread(target=_take_callers, args=arguments, name="waiting", daemon=True).start()
    return waiting


def _take_callers(channel: socket.socket, waiting: dict[str, Waiting]) -> None:
    """Take the callers that the supervisor has greeted, until it ends."""
    with channel:
        while True:
            name, fds, _, _ = socket.recv_fds(channel, MAX_NAME, 1, socket.MSG_CMSG_CLOEXEC)
            if not name:
                return
            for fd in fds:  # every socket that was kept, and so can be called, is there
                waiting[name.decode()].take(socket.socket(fileno=fd))


def _copy(
    source: socket.socket, target: socket.socket, change: Callable[[bytes], bytes] = bytes
) -> None:
    """Pass on what one side sends, until it ends; if either side breaks, both end."""
    try:
        while data := source.recv(PIECE):
            target.sendall(change(data))
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for side in (source, target):
            with suppress(OSError):  # it is gone
                side.shutdown(socket.SHUT_RDWR)
