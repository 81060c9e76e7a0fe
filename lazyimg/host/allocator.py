"""What the C library does with memory that was freed.

By default it gives blocks of 128 KiB and more back to the kernel at once, and takes fresh pages for
the next span: each page is a fault and is zeroed, which can cost more than decoding into it.

Source: mallopt(3), malloc.h of glibc.
"""

from __future__ import annotations

import ctypes
from typing import Final

KEPT: Final = 32 << 20
"""Bytes of freed memory that are kept for the next use, and the largest block for which that holds:
what glibc takes at most."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8


def keep_freed_memory() -> bool:
    """Let freed memory be used again, by any thread; tells whether the C library can do that."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, KEPT), (_M_TRIM_THRESHOLD, KEPT))
    taken = [mallopt(name, value) == 1 for name, value in settings]  # each of them, in any case
    return all(taken)
