"""Trying again for as long as somebody waits: for reads that have no deadline."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from lazyimg.errors import KernelError, LazyimgError
from lazyimg.logs import Repeats

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

FIRST_PAUSE: Final = 1.0
"""Seconds before the second try; doubles with each."""

MAX_PAUSE: Final = 15.0
"""Seconds at most between two tries."""

_log = logging.getLogger(__name__)
_repeats = Repeats()


async def insist(
    what: str, operation: Callable[[], Awaitable[None]], ended: Callable[[], bool]
) -> None:
    """Do what can fail until it does not; cancel it to give up.

    Args:
        what: what the log calls it.
        operation: raises LazyimgError when it fails.
        ended: tells whether trying again is of no use any more; then the failure is raised.

    Raises:
        KernelError: at once: the kernel has closed what was to be read, so nobody waits.
    """
    pause = FIRST_PAUSE
    while True:
        try:
            return await operation()
        except LazyimgError as error:
            if isinstance(error, KernelError) or ended():
                raise
            more = _repeats.due((what, error.kind))
            if more is not None:
                _log.warning("%s: a read waits and tries again: %s%s", what, error, more)
        await asyncio.sleep(pause)
        pause = min(2 * pause, MAX_PAUSE)
