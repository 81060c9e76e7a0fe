"""The sockets of gRPC servers, which only root can reach, and which outlive their process.

gRPC binds its sockets itself, and takes none that is open already. So each process has a socket of
its own, and the service manager keeps that one too: when the process dies, callers can still
connect to it, and the next process greets them at once (`waiting`) and answers when it can.

    the first process    binds .NAME/<a word of its own> (in a directory that is root's), has it
                         kept, renames it to NAME
    the next one         accepts what comes to the socket that was kept; binds one of its own, has
                         it kept, renames it to NAME in the other's place, has that one forgotten;
                         passes on what came to it, and what may still come

So at any moment NAME is a socket that is kept, and nobody who connects to it is refused.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, Self

from lazyimg.errors import StorageError
from lazyimg.host.sockets import make_socket_directory, remove_stale_socket
from lazyimg.host.waiting import KEPT
from lazyimg_formats.http2 import GREETING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AsyncExitStack

    from lazyimg.host.service_manager import ServiceManager
    from lazyimg.host.waiting import Waiting

_log = logging.getLogger(__name__)

_OWN_FDS: Final = Path("/proc/self/fd")


class Server(Protocol):
    """What is needed of a gRPC server."""

    def add_insecure_port(self, address: str) -> int:
        """Bind a socket; raises RuntimeError."""
        ...

    async def start(self) -> None:
        """Answer calls."""
        ...


class LastingSockets:
    """The sockets of this process's gRPC servers.

    Args:
        manager: keeps them.
        waiting: callers of the sockets of a process before this one, by the names of these.
    """

    def __init__(self, manager: ServiceManager, waiting: Mapping[str, Waiting]) -> None:
        self._manager = manager
        self._waiting = dict(waiting)

    async def start(self, server: Server, path: Path, what: str, stack: AsyncExitStack) -> None:
        """Start a server on a socket of its own, until `stack` is left.

        The socket's directory is made; callers of the process before this one are answered.

        Args:
            server: does not listen yet.
            path: of the socket.
            what: it is for: a word for the name under which it is kept.
            stack: see above; stopping the server is for the caller.

        Raises:
            InUseError: another one listens there.
            StorageError: there can be no socket.
            ConfigurationError: others than root could put one of their own in its place.
        """
        make_socket_directory(path)
        prefix = f"{KEPT}{what}-"
        names = [name for name in self._waiting if name.startswith(prefix)]
        waiting = {name: self._waiting.pop(name) for name in names}
        for one in waiting.values():
            stack.callback(one.close)
        if not waiting:  # else somebody listens there: we do
            remove_stale_socket(path)
        word = os.urandom(4).hex()
        name = f"{prefix}{word}"
        with _Place(path, word) as place:
            place.bind(server)
            await server.start()
            bound = await asyncio.to_thread(_find_bound, place.path)
            if bound is None:
                _log.warning("%s: callers will be refused while no process serves", path)
            else:
                with bound:
                    self._manager.keep(name, bound.fileno(), GREETING)
                stack.callback(self._manager.forget, name)
            place.publish()
        stack.callback(path.unlink, missing_ok=True)
        for kept, one in waiting.items():
            self._manager.forget(kept)
            one.answer(str(path))

    def close_others(self) -> None:
        """Hang up on callers of sockets that this process does not have."""
        for name, one in self._waiting.items():
            self._manager.forget(name)
            one.close()
        self._waiting.clear()


class _Place:
    """A directory beside a socket, for as long as nobody is to reach it.

    Args:
        path: of the socket.
        word: no two processes' sockets may be bound to the same path: that is how they are found.
    """

    def __init__(self, path: Path, word: str) -> None:
        self._public = path
        self._directory = path.with_name(f".{path.name}")
        self.path = self._directory / word

    def __enter__(self) -> Self:
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            self._clear()  # a process before this one may have died here
        except OSError as error:
            raise self._cannot(error.strerror) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()
        self._directory.rmdir()

    def _clear(self) -> None:
        for left in self._directory.iterdir():
            left.unlink()

    def bind(self, server: Server) -> None:
        """Have a server bind its socket here; only root can write to it."""
        try:
            server.add_insecure_port(f"unix:{self.path}")
            self.path.chmod(0o600)
        except (RuntimeError, OSError) as error:
            raise self._cannot(error) from error

    def publish(self) -> None:
        """Let callers reach it; the socket that they could reach before goes."""
        try:
            if os.path.lexists(self._public) and not self._public.is_socket():
                raise FileExistsError(errno.EEXIST, "a file is there that is no socket")
            self.path.rename(self._public)
        except OSError as error:
            raise self._cannot(error.strerror) from error

    def _cannot(self, why: object) -> StorageError:
        return StorageError(str(self._public), f"cannot listen: {why}", "check the address")


def _find_bound(path: Path) -> socket.socket | None:
    """Give a copy of this process's socket that is bound to a path; None: there is none."""
    for entry in _OWN_FDS.iterdir():
        try:
            if not entry.readlink().name.startswith("socket:"):
                continue
            one = socket.fromfd(int(entry.name), socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError:
            continue  # it was closed meanwhile
        if one.getsockname() == str(path):
            return one
        one.close()
    return None
