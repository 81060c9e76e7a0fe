"""What the C library does with memory that was freed.

By default it gives blocks of 128 KiB and more back to the kernel at once, and takes fresh pages for
the next span: each page is a fault and is zeroed, which can cost more than decoding into it.

Sources: mallopt(3), malloc_trim(3), malloc.h of glibc.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Final

KEPT: Final = 32 << 20
"""Bytes of freed memory that are kept for the next use, and the largest block for which that holds:
what glibc takes at most."""

RESERVED: Final = 20 << 20
"""Bytes that a reader in order makes the daemon use: spans and what they are decoded from."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_MADV_POPULATE_WRITE: Final = 23  # Linux 5.14, asm-generic/mman-common.h


def keep_freed_memory() -> bool:
    """Let freed memory be used again, by any thread; tells whether the C library can do that."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, KEPT), (_M_TRIM_THRESHOLD, KEPT))
    taken = [mallopt(name, value) == 1 for name, value in settings]  # each of them, in any case
    return all(taken)


def reserve_memory(size: int = RESERVED) -> bool:
    """Take `size` bytes and free them: with `keep_freed_memory` they wait for whoever needs some.

    The kernel gives all pages in one go, which costs a tenth of giving them one by one. Tells
    whether it did.
    """
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    block = libc.malloc(ctypes.c_size_t(size))
    if block is None:
        return False
    start = block + -block % mmap.PAGESIZE
    whole = (block + size - start) // mmap.PAGESIZE * mmap.PAGESIZE
    given = _take_pages(libc, ctypes.c_void_p(start), ctypes.c_size_t(whole))
    if given is not None:
        libc.free(ctypes.c_void_p(block))
    return bool(given)


def give_back_memory() -> bool:
    """Give freed memory back to the kernel; tells whether there was some."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and bool(trim(0))


class HeapMemory:
    """The C library's memory for the fill engine; implements `lazyimg.fill.ports.Memory`."""

    def take(self) -> None:
        """Have some at hand."""
        reserve_memory()

    def give_back(self) -> None:
        """Keep none that nobody uses."""
        give_back_memory()


def _take_pages(libc: ctypes.CDLL, start: ctypes.c_void_p, size: ctypes.c_size_t) -> bool | None:
    """Have pages that are ours given; None if they cannot be used any more."""
    if libc.madvise(start, size, _MADV_POPULATE_WRITE):
        return False
    # User-mode Linux has told its host of none of them yet, and would at each first use. It tells
    # of all when their protection changes; for other kernels that is next to nothing.
    libc.mprotect(start, size, mmap.PROT_READ)
    return None if libc.mprotect(start, size, mmap.PROT_READ | mmap.PROT_WRITE) else True
