"""How many files this process may have open: each object that is mounted takes one."""

from __future__ import annotations

import resource


def raise_open_files() -> int:
    """Raise the limit as far as is allowed without further rights, and give it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
