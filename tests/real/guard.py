"""A process that frees whoever waits for a file system that a test serves, come what may.

    python -I -S tests/real/guard.py DIRECTORY

Everything that the tests mount lies below DIRECTORY. Lines on standard input say what goes on:

    limit SECONDS     act unless another limit is said within that time; 0: there is none
    fuse NUMBER       until the next limit: a connection of fusectl that is served below DIRECTORY

It acts when a limit passes, and, where something is left, when its standard input ends, which it
does however the tests end: it aborts the FUSE connections, kills the daemons whose state lies below
DIRECTORY, and detaches what is mounted there, the innermost first. What it did is a line each on
standard output. A process in the middle of a FUSE request cannot be killed: only the abort frees
it, and the tests themselves may be such a process. So this one touches no mounted file.

`tests.real.safety` is the tests' side of it. Needs the standard library only.
"""

from __future__ import annotations

import ctypes
import os
import re
import select
import signal
import sys
import time

CONNECTIONS = "/sys/fs/fuse/connections"
MNT_DETACH = 2
DYING = 10.0
"""Seconds that killed processes may take."""

_libc = ctypes.CDLL(None, use_errno=True)


class Mount:
    """One line of the mount table.

    Attributes:
        point: where it is mounted.
        kind: of file system.
        device: the minor number of its device.
    """

    def __init__(self, line: str) -> None:
        before, _, after = line.partition(" - ")
        fields = before.split()
        self.point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[4])
        self.kind = after.split()[0]
        self.device = int(fields[2].partition(":")[2])


def mounts_at(directory: str) -> list[Mount]:
    """Give what is mounted on a directory and below, in the order of mounting."""
    with open("/proc/self/mountinfo", errors="surrogateescape") as table:  # noqa: PTH123
        mounts = [Mount(line) for line in table]
    inside = f"{directory}/"
    return [mount for mount in mounts if f"{mount.point}/".startswith(inside)]


def connections_at(directory: str) -> set[int]:
    """Give the connections of the FUSE file systems that are mounted below a directory."""
    return {mount.device for mount in mounts_at(directory) if mount.kind.startswith("fuse")}


def abort(connections: set[int]) -> list[int]:
    """Abort connections; give those that there were: every request of theirs fails, for good."""
    if not os.path.ismount(CONNECTIONS):
        _libc.mount(b"none", CONNECTIONS.encode(), b"fusectl", 0, None)
    aborted = []
    for number in sorted(connections):
        try:
            with open(f"{CONNECTIONS}/{number}/abort", "w") as file:  # noqa: PTH123
                file.write("1")
        except OSError:
            continue  # it has ended
        aborted.append(number)
    return aborted


def daemons_at(directory: str) -> list[int]:
    """Give the processes of daemons whose state lies below a directory."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
        try:
            with open(f"/proc/{name}/environ", "rb") as file:  # noqa: PTH123
                environment = file.read().split(b"\0")
        except OSError:
            continue  # it has ended
        if any(word.startswith(f"LAZYIMG_ROOT={directory}/".encode()) for word in environment):
            found.append(int(name))
    return found


def kill(processes: list[int]) -> None:
    """Kill processes, and wait until they have ended or are to be waited for."""
    for number in processes:
        try:
            os.kill(number, signal.SIGKILL)
        except ProcessLookupError:
            continue
    end = time.monotonic() + DYING
    while any(map(is_running, processes)) and time.monotonic() < end:
        time.sleep(0.05)


def is_running(number: int) -> bool:
    """Tell whether a process is there, and not only waiting to be collected."""
    return state_of(number) not in {"", "Z", "X"}


def state_of(number: int) -> str:
    """Give the letter of a process's state, see proc(5); "" when it is gone."""
    try:
        with open(f"/proc/{number}/stat", "rb") as file:  # noqa: PTH123
            return file.read().rpartition(b")")[2].split()[0].decode()
    except OSError:
        return ""


def detach(directory: str) -> list[str]:
    """Detach everything that is mounted on a directory and below; give where that was."""
    points = [mount.point for mount in reversed(mounts_at(directory))]
    for point in points:
        _libc.umount2(os.fsencode(point), MNT_DETACH)
    return points


def free(directory: str, connections: set[int]) -> list[str]:
    """End everything that is served below a directory; say what there was."""
    said = [f"aborted FUSE connection {n}" for n in abort(connections | connections_at(directory))]
    daemons = daemons_at(directory)
    kill(daemons)
    said += [f"killed daemon process {number}" for number in daemons]
    return said + [f"detached {point}" for point in detach(directory)]


def main() -> None:
    """Watch."""
    directory, connections = sys.argv[1], set[int]()
    limit: float | None = None
    rest = b""
    while True:
        left = None if limit is None else max(0.0, limit - time.monotonic())
        if not select.select([0], [], [], left)[0]:
            limit = None
            say("a limit has passed", *free(directory, connections))
            continue
        data = os.read(0, 65_536)
        if not data:
            break
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            word, _, value = line.decode().partition(" ")
            if word == "fuse":
                connections.add(int(value))
            else:
                connections.clear()  # numbers are used again, by others too
                limit = time.monotonic() + float(value) if float(value) else None
    say(*free(directory, set()))


def say(*lines: str) -> None:
    """Print lines, as long as somebody reads them."""
    try:
        os.write(1, "".join(f"{line}\n" for line in lines).encode())
    except BrokenPipeError:
        return


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    main()
