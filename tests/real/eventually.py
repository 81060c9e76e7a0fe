"""Waiting for what nobody announces."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE: Final = 60.0
"""Seconds."""

_PAUSE: Final = 0.05


def eventually(condition: Callable[[], Any]) -> None:
    """Wait until a condition holds; fails if it does not within `PATIENCE`."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, condition
        time.sleep(_PAUSE)
