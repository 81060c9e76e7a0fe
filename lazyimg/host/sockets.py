"""Sockets for local callers that only root may be."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from lazyimg.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path


class Server(Protocol):
    """What is needed of a gRPC server."""

    def add_insecure_port(self, address: str) -> int:
        """Bind a socket; raises RuntimeError."""
        ...

    async def start(self) -> None:
        """Answer calls."""
        ...


async def start_for_root(server: Server, path: Path) -> None:
    """Start a gRPC server on a unix socket that only root can reach.

    Raises:
        StorageError: there can be no socket.
    """
    mask = os.umask(0o177)  # the socket is root's from its first moment
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise StorageError(str(path), f"cannot listen: {error}", "check the address") from error
    finally:
        os.umask(mask)  # before anybody else can make a file
    await server.start()


def make_socket_directory(path: Path) -> None:
    """Make the directory of a socket, if there is none.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(str(path.parent), f"cannot be made: {error.strerror}") from error
