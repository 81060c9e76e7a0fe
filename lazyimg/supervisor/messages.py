"""What a worker says: the datagrams of sd_notify(3) as values.

Lines of NAME=value. Unknown ones are left out, as the specification wants it. Values here are
named tuples: the module behind dataclasses costs the supervisor more than all of its own code.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from lazyimg.host.handed_fds import GREETING

MAX_DATAGRAM: Final = 4096
"""Bytes of one datagram; systemd takes no more either."""

MAX_NAME: Final = 255
"""Characters of an fd's name."""

DEFAULT_NAME: Final = "stored"
"""The name of fds that were given none, or one that is not allowed."""

_PASSED_ON: Final = ("STATUS=", "EXTEND_TIMEOUT_USEC=")


class Notification(NamedTuple):
    """One datagram.

    Attributes:
        ready: the worker serves.
        store: the fds that came with it are to be kept.
        remove: the fds of this name are to be closed.
        name: of fds.
        greeting: of listening sockets that are to be kept: what their callers are sent first, as
            long as no worker takes them.
        rest: lines that are for the service manager of the supervisor.
    """

    ready: bool = False
    store: bool = False
    remove: bool = False
    name: str = DEFAULT_NAME
    greeting: bytes = b""
    rest: tuple[str, ...] = ()


def parse_notification(data: bytes) -> Notification:
    """Give what any datagram says."""
    lines = data.decode("utf-8", "replace").split("\n")
    names = [line[7:] for line in lines if line.startswith("FDNAME=")]
    return Notification(
        ready="READY=1" in lines,
        store="FDSTORE=1" in lines,
        remove="FDSTOREREMOVE=1" in lines,
        greeting=_parse_greeting(lines),
        name=names[-1] if names and is_name(names[-1]) else DEFAULT_NAME,
        rest=tuple(line for line in lines if line.startswith(_PASSED_ON)),
    )


def _parse_greeting(lines: list[str]) -> bytes:
    for line in lines:
        if line.startswith(GREETING):
            try:
                return bytes.fromhex(line.removeprefix(GREETING))
            except ValueError:
                break
    return b""


def is_name(text: str) -> bool:
    """Whether an fd may be called so: sd_pid_notify_with_fds(3)."""
    return 0 < len(text) <= MAX_NAME and text.isascii() and text.isprintable() and ":" not in text
