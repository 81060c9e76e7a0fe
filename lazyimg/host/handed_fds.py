"""Fds that a service manager hands to a process at its start, by number and name.

Source: sd_listen_fds(3), sd_listen_fds_with_names(3).
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FIRST_FD: Final = 3
"""The number of the first one: SD_LISTEN_FDS_START."""

NO_NAME: Final = "unknown"
"""The name of those that have none."""

SUPERVISOR_VARIABLE: Final = "LAZYIMG_SUPERVISOR_PID"
"""Has the process id of lazyimg's supervisor, for its worker."""

CALLERS: Final = "callers"
"""The name of the socket by which lazyimg's supervisor hands over callers that it has greeted.

Each is a message: the name of the socket that was called, with the connection.
"""

GREETING: Final = "X_GREETING="
"""Begins the line that says what such callers are sent, in hexadecimal digits."""

RESTARTS_VARIABLE: Final = "LAZYIMG_WORKER_RESTARTS"
"""Has how many workers the supervisor had started before."""


def line_up(fds: Sequence[int]) -> None:
    """Give copies of fds the numbers from `FIRST_FD` up, in order, to be inherited.

    Whatever had these numbers is closed. Raises OSError.
    """
    free = FIRST_FD + len(fds)
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, free) for fd in fds]
    for number, copy in enumerate(copies, FIRST_FD):
        os.dup2(copy, number, inheritable=True)


def take_handed(environment: Mapping[str, str]) -> list[tuple[str, int]]:
    """Give (name, fd) of what this process was handed at its start; they become close-on-exec.

    Source: sd_listen_fds_with_names(3).
    """
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return []
    text = environment.get("LISTEN_FDS", "")
    count = int(text) if text.isdecimal() else 0
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    handed = []
    for number in range(count):
        fd = FIRST_FD + number
        os.set_inheritable(fd, False)  # noqa: FBT003 - positional only
        handed.append((names[number] if number < len(names) else NO_NAME, fd))
    return handed
