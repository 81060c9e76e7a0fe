"""A digest: the name of bytes by their hash. Source: image-spec, descriptor.md, "Digests"."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from lazyimg_formats.errors import FormatError

ALGORITHMS: Final = {"sha256": 64, "sha512": 128}
"""The registered algorithms and the number of hex characters of each."""

_HEX: Final = re.compile(r"[0-9a-f]+", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """Names bytes by their hash; the text form is ``sha256:<64 hex characters>``.

    Attributes:
        algorithm: ``sha256`` or ``sha512``.
        hex: lower case, as long as `ALGORITHMS` says.

    Raises:
        FormatError: by the constructor, for anything else.
    """

    algorithm: str
    hex: str

    def __post_init__(self) -> None:
        length = ALGORITHMS.get(self.algorithm)
        if length is None:
            raise FormatError("digest", f"unknown algorithm {self.algorithm[:40]!r}")
        if len(self.hex) != length or _HEX.fullmatch(self.hex) is None:
            raise FormatError(
                "digest",
                f"{self.algorithm} has {length} lower-case hex characters, got {self.hex[:140]!r}",
            )

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Give the digest in ``algorithm:hex``.

        Raises:
            FormatError: not that form, an unknown algorithm, a wrong length.
        """
        algorithm, colon, value = text.partition(":")
        if not colon:
            raise FormatError("digest", f"expected algorithm:hex, got {text[:140]!r}")
        return cls(algorithm, value)

    @classmethod
    def of(cls, data: bytes | memoryview, algorithm: str = "sha256") -> Digest:
        """Give the digest of `data`."""
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())

    def hasher(self) -> Hasher:
        """Give what checks, piece by piece, that bytes have this digest."""
        return Hasher(self)


class Hasher:
    """Takes bytes in pieces and tells whether, together, they are what a digest names.

    Attributes:
        size: bytes taken so far.
    """

    def __init__(self, expected: Digest) -> None:
        self._expected = expected
        self._hash = hashlib.new(expected.algorithm)
        self.size = 0

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        self._hash.update(data)
        self.size += len(data)

    def matches(self) -> bool:
        """Tell whether everything taken so far is what the digest names."""
        return self._hash.hexdigest() == self._expected.hex

    def digest(self) -> Digest:
        """Give the digest of everything taken so far."""
        return Digest(self._expected.algorithm, self._hash.hexdigest())
