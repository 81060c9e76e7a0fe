"""What of a file is in the page cache: cachestat(2), or mincore(2) before Linux 6.5.

It opens the file: of what a daemon serves, ask in another process (`SafetyNet.call`).
"""

from __future__ import annotations

import ctypes
import mmap
import os
from errno import ENOSYS
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NUMBER: Final = 451  # of the system call, on every architecture

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


def cached_bytes(paths: Sequence[Path]) -> int:
    """Give how many bytes of some files' or block devices' contents are in memory.

    Raises:
        OSError: one of them cannot be opened.
    """
    return sum(map(_cached_bytes, paths))


def _cached_bytes(path: Path) -> int:
    everything = (ctypes.c_uint64 * 2)(0, 0)  # struct cachestat_range: to the end
    counts = (ctypes.c_uint64 * 5)()  # struct cachestat: the first is nr_cache
    fd = os.open(path, os.O_RDONLY)
    try:
        if _libc.syscall(NUMBER, fd, ctypes.byref(everything), ctypes.byref(counts), 0):
            if ctypes.get_errno() == ENOSYS:
                return _mapped_bytes(fd, path)
            raise OSError(ctypes.get_errno(), "cachestat", str(path))
    finally:
        os.close(fd)
    return int(counts[0]) * mmap.PAGESIZE


def _mapped_bytes(fd: int, path: Path) -> int:
    size = os.lseek(fd, 0, os.SEEK_END)
    pages = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
    address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_PRIVATE, fd, 0)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap", str(path))
    try:
        if _libc.mincore(address, size, pages):
            raise OSError(ctypes.get_errno(), "mincore", str(path))
    finally:
        _libc.munmap(address, size)
    return sum(page & 1 for page in pages.raw) * mmap.PAGESIZE


def cached_bytes_below(directory: Path) -> int:
    """Give the same of all regular files of a tree, each once."""
    found = {
        (status.st_dev, status.st_ino): path
        for path in directory.rglob("*")
        if not path.is_symlink() and path.is_file() and (status := path.stat()).st_size
    }
    return cached_bytes(list(found.values()))
