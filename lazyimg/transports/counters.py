"""What every transport counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """What was done since the start.

    Attributes:
        opens: objects that the kernel opened.
        opens_refused: objects that it was not given.
        reads: requests of the kernel that were answered with data.
        reads_failed: requests that were answered without: EIO for the reader.
        reads_lost: requests whose reader was gone before its data came.
        failure: why a request failed last.
        culled: files removed because the disk was filling up.
    """

    opens: int = 0
    opens_refused: int = 0
    reads: int = 0
    reads_failed: int = 0
    reads_lost: int = 0
    failure: str = ""
    culled: int = 0
