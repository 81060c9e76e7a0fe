"""What of a file is in the page cache: cachestat(2), Linux 6.5 or later.

It opens the file: of what a daemon serves, ask in another process (`SafetyNet.call`).
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NUMBER: Final = 451  # of the system call, on every architecture

_libc = ctypes.CDLL(None, use_errno=True)


def cached_bytes(paths: Sequence[Path]) -> int:
    """Give how many bytes of some files' contents are in memory.

    Raises:
        OSError: one of them cannot be opened, or the kernel is older.
    """
    return sum(map(_cached_bytes, paths))


def _cached_bytes(path: Path) -> int:
    everything = (ctypes.c_uint64 * 2)(0, 0)  # struct cachestat_range: to the end
    counts = (ctypes.c_uint64 * 5)()  # struct cachestat: the first is nr_cache
    fd = os.open(path, os.O_RDONLY)
    try:
        if _libc.syscall(NUMBER, fd, ctypes.byref(everything), ctypes.byref(counts), 0):
            raise OSError(ctypes.get_errno(), "cachestat", str(path))
    finally:
        os.close(fd)
    return int(counts[0]) * mmap.PAGESIZE


def cached_bytes_below(directory: Path) -> int:
    """Give the same of all regular files of a tree, each once."""
    found = {
        (status.st_dev, status.st_ino): path
        for path in directory.rglob("*")
        if not path.is_symlink() and path.is_file() and (status := path.stat()).st_size
    }
    return cached_bytes(list(found.values()))
