"""What a process holds: to be compared before and after much of the same."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final, NamedTuple

SETTLING: Final = 30.0
"""Seconds for connections and threads to end."""


class Held(NamedTuple):
    """What a process holds."""

    fds: list[str]
    mounts: int
    entries: int
    threads: int
    resident: int

    @property
    def lasting(self) -> tuple[list[str], int, int]:
        """What must be the same again; threads come and stay, up to the size of their pools."""
        return self.fds, self.mounts, self.entries


def look_at(pid: int, *directories: Path) -> Held:
    """Return what a process holds now, and how much is in its directories."""
    process = Path("/proc", str(pid))
    fds = sorted(filter(None, map(read_link, process.joinpath("fd").iterdir())))
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
    return Held(
        # Connections to the registry are kept for the next request, and end by themselves.
        [name for name in fds if not name.startswith("socket:")],
        len(Path("/proc/self/mountinfo").read_text().splitlines()),
        sum(len(list(directory.iterdir())) for directory in directories),
        int(status["Threads"]),
        int(status["VmRSS"].split()[0]) << 10,
    )


def read_link(path: Path) -> str:
    """Return what a descriptor is; "" when it is gone."""
    try:
        return str(path.readlink())
    except FileNotFoundError:
        return ""


def settled(pid: int, before: Held, *directories: Path) -> Held:
    """Return what is held when nothing more ends, or `before` is reached."""
    end = time.monotonic() + SETTLING
    while True:
        now = look_at(pid, *directories)
        if now.lasting == before.lasting or time.monotonic() > end:
            return now
        time.sleep(0.5)
