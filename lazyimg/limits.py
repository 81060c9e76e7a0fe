"""Every limit of the daemon, named and with its unit. The configuration file overrides them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class BuildLimits:
    """What the process may take that turns the indexes of an image's layers into its bootstrap.

    Attributes:
        memory: bytes of data (RLIMIT_DATA); its code comes on top. 100,000 entries take a third.
        processor_time: seconds (RLIMIT_CPU).
    """

    memory: int = 448 * MIB
    processor_time: int = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class FillLimits:
    """What fills may take, and how they shape requests to a registry.

    Attributes:
        read_deadline: seconds that a kernel read waits before it fails; None waits until killed.
        memory: bytes of blobs and devices that all fills together hold in memory. One fill that
            needs more than this goes alone.
        background_memory: bytes of `memory` that prefetching may hold; the rest is for readers.
        fetches: requests to registries at a time.
        background_fetches: requests of `fetches` that prefetching may use.
        merge_gap: bytes of a blob between two wanted ranges that are fetched to save a request.
        min_fetch: bytes of a blob that a reader's request is widened to, with the spans beside it.
        max_fetch: bytes of a blob that one request asks for (one span may be larger).
        max_decode: bytes that the spans of one request decode to (one span may be larger).
        ahead: bytes of a device that are fetched ahead of a reader that reads in order; 0: none.
        ahead_after: requests in order after which that begins.
        decode_workers: threads that decompress and compute digests.
        recent: bytes of decoded spans that are kept for the next fill.
        first: bytes of an image's devices that are fetched when it is mounted, before anybody asks,
            of what whoever made the image says is wanted first; 0: none.
        prefetch_piece: bytes of a device that a prefetch fills at a time.
        prefetch_pieces: pieces of one prefetch that are filled side by side.
    """

    read_deadline: float | None = 60.0
    memory: int = 96 * MIB
    background_memory: int = 48 * MIB
    fetches: int = 32
    background_fetches: int = 4
    merge_gap: int = 64 * KIB
    min_fetch: int = 128 * KIB
    max_fetch: int = 4 * MIB
    max_decode: int = 4 * MIB
    ahead: int = 8 * MIB
    ahead_after: int = 3
    decode_workers: int = 4
    recent: int = 8 * MIB
    first: int = 64 * MIB
    prefetch_piece: int = 4 * MIB
    prefetch_pieces: int = 4

    def __post_init__(self) -> None:
        """Refuse values with which no fill could ever end."""
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0")
        for name in _NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")
        if self.read_deadline is not None and not self.read_deadline > 0:
            raise ValueError(f"read_deadline is {self.read_deadline}, expected more than 0 seconds")


_NOT_NEGATIVE: Final = ("merge_gap", "min_fetch", "ahead", "ahead_after", "recent", "first")
_POSITIVE: Final = (
    "memory",
    "background_memory",
    "fetches",
    "background_fetches",
    "max_fetch",
    "max_decode",
    "decode_workers",
    "prefetch_piece",
    "prefetch_pieces",
)
