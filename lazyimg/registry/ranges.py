"""A part of a blob out of an HTTP answer. Source: RFC 9110, 14 (Range Requests)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lazyimg.errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A part of a blob, in bytes: from `start` to before `end`, of `size` in all."""

    start: int
    end: int
    size: int

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole blob."""
        return self.end - self.start == self.size


def plan_range(what: str, status: int, headers: Mapping[str, str], wanted: ByteRange) -> int:
    """Give how many bytes of an answer come before the range that was asked for.

    Args:
        what: what messages call the blob.
        status: 206, or 200 from whoever ignores ranges and sends everything.
        headers: of the answer.
        wanted: what was asked for.

    Raises:
        RegistryError: the answer is another range, or of another blob; it can be tried again.
    """
    start, end, size = wanted.start, wanted.end, wanted.size
    skip, expected = (0, end - start) if status == 206 else (start, size)
    if status == 206:
        text = headers.get("Content-Range", "")
        match = _CONTENT_RANGE.fullmatch(text)
        if match is None or (int(match[1]), int(match[2])) != (start, end - 1):
            raise RegistryError(
                what,
                f"expected bytes {start}-{end - 1}, the answer's Content-Range is {text[:80]!r}",
                status=status,
                retryable=True,
            )
        if match[3] not in {"*", str(size)}:
            raise RegistryError(
                what, f"expected {size} bytes in all, the registry has {match[3]}", status=status
            )
    length = headers.get("Content-Length", str(expected))
    if length != str(expected):
        raise RegistryError(
            what,
            f"expected an answer of {expected} bytes, got one of {length[:40]}",
            status=status,
            retryable=True,
        )
    return skip


async def take_range(
    what: str, pieces: AsyncIterator[bytes], skip: int, length: int, *, last: bool
) -> AsyncGenerator[bytes]:
    """Give exactly `length` bytes of a body, behind its first `skip` ones.

    Args:
        what: what messages call the blob.
        pieces: the body.
        skip: bytes to pass over; nothing of them is kept.
        length: bytes wanted.
        last: whether the body must end there; otherwise the rest is left unread.

    Raises:
        RegistryError: the body ends too early or goes on too long; it can be tried again.
    """
    left = length
    async for raw in pieces:
        piece = raw
        if skip:
            dropped = min(skip, len(piece))
            skip -= dropped
            piece = piece[dropped:]
        if len(piece) > left and last:
            raise RegistryError(
                what, f"the answer has over {length} bytes", status=200, retryable=True
            )
        if piece and left:
            yield piece[:left]
            left -= min(left, len(piece))
        if not left and not last:
            return
    if left:
        raise RegistryError(what, f"the answer ends {left} bytes early", status=200, retryable=True)
