"""How much of a long test is done: LAZYIMG_TEST_SCALE, 1 for the full figures."""

from __future__ import annotations

import os
from typing import Final

DEFAULT: Final = 0.05
"""So that `scripts/test` ends soon. `scripts/test --full` sets 1."""


def scaled(full: int, *, least: int = 1) -> int:
    """Give a count's share in this run, `least` at least."""
    return max(least, round(full * float(os.environ.get("LAZYIMG_TEST_SCALE", DEFAULT))))
