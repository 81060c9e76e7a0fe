"""What went to and came from each host, counted."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(slots=True)
class Traffic:
    """Requests to one host since the start.

    Attributes:
        requests: requests, with all that each took: redirects, a renewed authorization.
        failures: those of them that ended with an error; not those that were cancelled.
        received: bytes of blobs that came.
        active: requests that have not ended.
    """

    requests: int = 0
    failures: int = 0
    received: int = 0
    active: int = 0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request for as long as the block runs."""
        self.requests += 1
        self.active += 1
        try:
            yield
        except Exception:
            self.failures += 1
            raise
        finally:
            self.active -= 1
