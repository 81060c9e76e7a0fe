"""The service manager's side of this process: what it is told, and what it keeps for us.

It is lazyimg's own supervisor, or systemd: both speak the protocols of sd_notify(3) and of
sd_listen_fds(3). What is kept outlives this process, and is handed to the next one by name.
"""

from __future__ import annotations

import array
import logging
import os
import select
import socket
from typing import TYPE_CHECKING, Final

from lazyimg.errors import KernelError
from lazyimg.host.handed_fds import (
    GREETING,
    RESTARTS_VARIABLE,
    SUPERVISOR_VARIABLE,
    take_handed,
)

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

BARRIER_TIMEOUT: Final = 30.0
"""Seconds that the service manager may take to read what it was sent."""

_log = logging.getLogger(__name__)


class ServiceManager:
    """The service manager of this process; may be none, and then nothing is said or kept.

    Takes its variables out of the environment: they are not for this process's children.

    Args:
        environment: of this process.

    Attributes:
        supervisor: process id of lazyimg's supervisor, if that is what started this process; or 0.
        restarts: how many workers it had started before.
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        self._handed: dict[str, list[int]] = {}
        for name, fd in take_handed(environment):
            self._handed.setdefault(name, []).append(fd)
        self._address = environment.pop("NOTIFY_SOCKET", "")
        for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
            environment.pop(name, None)
        self.supervisor = int(environment.pop(SUPERVISOR_VARIABLE, "0"))
        self.restarts = int(environment.pop(RESTARTS_VARIABLE, "0"))

    def lose_supervisor(self) -> None:
        """Note, and say, that the supervisor has ended."""
        _log.error(
            "the supervisor, process %d, is gone: mounts work until this process ends too;"
            " start lazyimg anew when nothing needs them",
            self.supervisor,
        )
        self.supervisor = 0
        self._address = ""

    @property
    def names(self) -> list[str]:
        """What was kept and is not taken yet."""
        return list(self._handed)

    def take(self, name: str) -> int | None:
        """Give the fd that was kept by this name, or None; the caller owns it from now on.

        Of several the first; the others are closed.
        """
        first, *others = self._handed.pop(name, [None])
        for fd in others:
            if fd is not None:
                os.close(fd)
        return first

    def keep(self, name: str, fd: int, greeting: bytes = b"") -> None:
        """Have an fd kept; ours may be closed afterwards.

        Once this returns it is safe, even if this process ends at once.

        Args:
            name: for it.
            fd: what is kept.
            greeting: for a listening socket: what its callers are sent first while no process has
                it, by lazyimg's own supervisor. The next process gets these by `CALLERS`.
        """
        said = f"{GREETING}{greeting.hex()}\n" if greeting else ""
        self.notify(f"FDSTORE=1\nFDPOLL=0\n{said}FDNAME={name}", [fd])

    def forget(self, name: str) -> None:
        """Have what is kept by this name closed."""
        self.notify(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def notify(self, message: str, fds: Sequence[int] = ()) -> bool:
        """Tell it something; False if it could not be told, which is logged."""
        if not self._address:
            return False
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            try:
                channel.sendmsg([message.encode()], rights, 0, address)
            except OSError as error:
                said = message.replace("\n", " ")
                _log.warning("the service manager was not told %s: %s", said, error)
                return False
        return True

    def wait_told(self) -> None:
        """Wait until the service manager has acted upon all that it was told. Blocks.

        Source: sd_notify_barrier(3).

        Raises:
            KernelError: it does not read what it is sent.
        """
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            told = self.notify("BARRIER=1", [theirs])
            os.close(theirs)
            poll = select.poll()
            poll.register(ours, 0)  # POLLHUP is always reported
            if told and not poll.poll(BARRIER_TIMEOUT * 1000):
                raise KernelError(
                    "service manager", f"does not read its socket for {BARRIER_TIMEOUT:g} s"
                )
        finally:
            os.close(ours)
