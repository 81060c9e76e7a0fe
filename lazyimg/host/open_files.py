"""The files that this process has open: how many it may, and the three that it must.

Each object that is mounted takes one.
"""

from __future__ import annotations

import os
import resource
from typing import Final

_STANDARD: Final = (0, 1, 2)


def raise_open_files(most: int | None = None) -> int:
    """Raise the limit as far as is allowed without further rights, and give it.

    Args:
        most: where it must not be higher, though it may be now; None: anywhere.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if most is None else min(hard, most)
    if soft != wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def open_standard_files() -> None:
    """Let /dev/null stand for standard input, output and error where they are closed.

    Otherwise the next file opened would get the number, and what is said there.
    """
    for number in _STANDARD:
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
            os.set_inheritable(opened, True)  # noqa: FBT003 - positional only
