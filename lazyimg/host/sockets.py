"""Sockets for local callers that only root may be."""

from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING, Final

from lazyimg.errors import ConfigurationError, InUseError, StorageError

if TYPE_CHECKING:
    from pathlib import Path

OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
"""That others than the owner may write."""


def remove_stale_socket(path: Path) -> None:
    """Remove the socket of a process that died; whatever else is there stays.

    Raises:
        InUseError: somebody listens there.
        StorageError: it cannot be removed.
    """
    if not path.is_socket():
        return  # who binds it says what is wrong with it
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.connect(str(path))
    except ConnectionRefusedError:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(str(path), f"cannot be removed: {error.strerror}") from error
    except OSError as error:
        raise StorageError(str(path), f"cannot listen: {error}", "check the address") from error
    else:
        raise InUseError(str(path), "a daemon listens there", "stop it, or use another address")


def make_socket_directory(path: Path) -> None:
    """Make the directory of a socket, if there is none.

    Raises:
        StorageError: it cannot be made.
        ConfigurationError: others than root could put a socket of their own in its place.
    """
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(str(path.parent), f"cannot be made: {error.strerror}") from error
    for directory in path.absolute().parents:
        status = directory.stat()
        shared = status.st_mode & OTHERS and (
            directory == path.absolute().parent or not status.st_mode & stat.S_ISVTX
        )
        if shared or status.st_uid not in {0, os.geteuid()}:
            raise ConfigurationError(
                str(path),
                f"others than root may change {directory}, and so replace the socket",
                "choose another address, or make the directory root's",
            )
