"""What a process holds: no more after much of the same than before.

before = look_at(pid, directory)
...
after = settled(pid, before, directory)
assert after.is_no_more_than(before), (before, after)
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

SETTLING: Final = 120.0
"""Seconds for what ends by itself, at most; the daemon gives memory back after 30."""

THREADS: Final = 40
"""Of all pools together; they come and stay."""

GROWTH: Final = 10 << 20
"""Bytes of resident memory."""


class Held(NamedTuple):
    """What a process holds.

    Attributes:
        fds: how many descriptors there are of each kind.
        mounts: of the machine.
        entries: of its directories.
        threads: of it.
        resident: bytes of memory.
    """

    fds: Counter[str]
    mounts: int
    entries: int
    threads: int
    resident: int

    def is_no_more_than(self, before: Held) -> bool:
        """Tell whether nothing has leaked; what there was for a moment may have gone."""
        return (
            self.fds <= before.fds
            and self.mounts <= before.mounts
            and self.entries <= before.entries
            and self.threads <= THREADS
            and self.resident - before.resident < GROWTH
        )


def look_at(pid: int, *directories: Path) -> Held:
    """Return what a process holds now, and how much is in its directories."""
    process = Path("/proc", str(pid))
    names = map(read_link, process.joinpath("fd").iterdir())
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
    return Held(
        # Each pipe has a number of its own, and the process that mounts may be another one now.
        # Connections to the registry are kept for the next request, and end by themselves.
        Counter(name.partition(":[")[0] for name in names if name and "socket:" not in name),
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
    """Return what is held when it is no more than `before`, or when nothing more will end."""
    end = time.monotonic() + SETTLING
    while True:
        now = look_at(pid, *directories)
        if now.is_no_more_than(before) or time.monotonic() > end:
            logging.getLogger(__name__).info("%s, then %s", before, now)
            return now
        time.sleep(0.5)
