"""Whole blobs of one repository in pieces, verified at their end, going on where one broke off."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from lazyimg.errors import CorruptError, LazyimgError
from lazyimg.registry.endpoints import worst
from lazyimg.registry.ranges import ByteRange
from lazyimg_formats.oci.digest import Digest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from lazyimg.registry.blob_answers import BlobAnswers
    from lazyimg.registry.connection import Connection
    from lazyimg.registry.endpoints import Endpoints
    from lazyimg_formats.oci.digest import Hasher
    from lazyimg_formats.oci.documents import Descriptor

PIECE: Final = 1 << 20
"""Bytes that a streamed blob is handed out in."""

SMALL: Final = 1 << 16
"""Bytes of a blob up to which it is handed out in one piece, when it has been verified."""


class BlobStreams:
    """Streams blobs.

    Args:
        name: what messages call the repository.
        endpoints: the hosts that serve it.
        answers: asks one of them.
    """

    def __init__(self, name: str, endpoints: Endpoints, answers: BlobAnswers) -> None:
        self.name = name
        self._endpoints = endpoints
        self._answers = answers

    def _subject(self, descriptor: Descriptor) -> str:
        return f"{self.name}@{descriptor.digest}"

    async def open(self, descriptor: Descriptor) -> AsyncGenerator[bytes]:
        """Give a whole blob; see ImageSource. Close the generator when it is not used up.

        A small one is handed out when it has been verified, so that another host can be asked for
        it before.
        """
        if descriptor.size <= SMALL:
            whole = await self._endpoints.ask(
                "pull",
                self._subject(descriptor),
                lambda connection: self._read_whole(connection, descriptor),
            )
            if whole:
                yield whole
            return
        what = self._subject(descriptor)
        hasher = descriptor.digest.hasher()
        connection, attempt = None, 1
        while hasher.size < descriptor.size:
            failure: LazyimgError | None = None
            for connection in await self._endpoints.candidates("pull", what):
                try:
                    async with aclosing(self._stream(connection, descriptor, hasher)) as pieces:
                        async for piece in pieces:
                            attempt, failure = 1, None
                            yield piece
                    break
                except LazyimgError as error:
                    failure = worst(failure, connection, error)
                    if not self._endpoints.note_failure(connection, what, error):
                        raise
            else:
                await self._endpoints.wait(attempt, failure)
                attempt += 1
        if not hasher.matches():
            raise self._wrong(connection, what, f"its bytes have digest {hasher.digest()}")

    def _wrong(self, connection: Connection | None, what: str, problem: str) -> CorruptError:
        error = CorruptError(what, problem)
        if connection is not None:
            self._endpoints.note_failure(connection, what, error)
        return error

    async def _stream(
        self, connection: Connection, descriptor: Descriptor, hasher: Hasher
    ) -> AsyncGenerator[bytes]:
        """Give what `hasher` has not seen of a blob."""
        rest = ByteRange(hasher.size, descriptor.size, descriptor.size)
        async with (
            self._answers.open(connection, descriptor.digest, rest) as answer,
            aclosing(answer.pieces(self._subject(descriptor))) as pieces,
            aclosing(_gather(pieces)) as gathered,
        ):
            async for piece in gathered:
                connection.traffic.received += len(piece)
                await asyncio.to_thread(hasher.update, piece)
                yield piece

    async def _read_whole(self, connection: Connection, descriptor: Descriptor) -> bytes:
        wanted = ByteRange(0, descriptor.size, descriptor.size)
        async with self._answers.open(connection, descriptor.digest, wanted) as answer:
            data = b"".join([piece async for piece in answer.pieces(self._subject(descriptor))])
        connection.traffic.received += len(data)
        digest = Digest.of(data, descriptor.digest.algorithm)
        if digest != descriptor.digest:
            raise CorruptError(self._subject(descriptor), f"its bytes have digest {digest}")
        return data


async def _gather(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """Give the same bytes in pieces of at least `PIECE`, the last one aside.

    What has come before a failure is given, too, so that every try gets further.
    """
    parts, size = [], 0
    try:
        async for piece in pieces:
            parts.append(piece)
            size += len(piece)
            if size >= PIECE:
                yield b"".join(parts)
                parts, size = [], 0
    except Exception:
        if size:
            yield b"".join(parts)
        raise
    if size:
        yield b"".join(parts)
