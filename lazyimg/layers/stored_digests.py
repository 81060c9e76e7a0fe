"""Digests of a blob's bytes between the points at which it can be entered, as SOCI cuts it.

A range begins with the byte in which a span does, and ends with the one in which the next one does:
what lies between two gzip members belongs to the first.
"""

from __future__ import annotations

import hashlib


class StoredDigests:
    """Takes a blob as it arrives; keeps of it what the current span and the one before it have."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._base = 0  # where what is held begins in the blob
        self._begun = False
        self._digests: list[bytes] = []

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        self._held += data

    def begin(self, offset: int, bit: int) -> None:
        """Say that a span begins in a byte that was taken, behind `bit` bits of it."""
        if self._begun:
            self._add(offset + bool(bit) - self._base)
        self._begun = True
        del self._held[: offset - self._base]
        self._base = offset

    def _add(self, length: int) -> None:
        with memoryview(self._held) as held:
            self._digests.append(hashlib.sha256(held[:length]).digest())

    def finish(self) -> list[bytes]:
        """Say that there are no more bytes; give the digest of each range."""
        if self._begun:
            self._add(len(self._held))
        return self._digests
