"""Ranged reads of blobs of one repository: host after host, each in its turn, or from the spool."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

from lazyimg.errors import CorruptError, RegistryError
from lazyimg.registry.endpoints import PassedOverError
from lazyimg.registry.ranges import ByteRange
from lazyimg.registry.spool import AHEAD, Incoming, Spool, Spooled

if TYPE_CHECKING:
    from lazyimg.registry.blob_answers import Answer, BlobAnswers
    from lazyimg.registry.connection import Connection
    from lazyimg.registry.endpoints import Endpoints
    from lazyimg_formats.oci.digest import Digest
    from lazyimg_formats.oci.documents import Descriptor

    _Key = tuple[object, str, Digest]

MAX_ANSWERS_KNOWN: Final = 1024
"""Ranges whose mirror is remembered, in case that they turn out to be wrong."""

MIN_RATE: Final = 128 << 10
"""Bytes in a second, after the time that it may be silent, below which a mirror has failed."""


class BlobReads:
    """Reads ranges of blobs.

    Args:
        name: what messages call the repository.
        endpoints: the hosts that serve it.
        answers: asks one of them.
        spool: receives blobs of hosts that send whole ones.
    """

    def __init__(self, name: str, endpoints: Endpoints, answers: BlobAnswers, spool: Spool) -> None:
        self.name = name
        self._endpoints = endpoints
        self._answers = answers
        self._spool = spool
        self._answered: OrderedDict[tuple[Digest, int, int], Connection] = OrderedDict()

    async def read(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        """Give a part of a blob; see ImageSource."""
        end = offset + length
        if not 0 <= offset <= end <= descriptor.size:
            raise ValueError(f"{offset}+{length} is not inside a blob of {descriptor.size} bytes")
        if not length:
            return b""
        wanted = ByteRange(offset, end, descriptor.size)

        async def ask(connection: Connection) -> bytes:
            data = await self._read_range(connection, descriptor.digest, wanted)
            self._note_answered(connection, descriptor.digest, offset, length)
            return data

        return await self._endpoints.ask("pull", f"{self.name}@{descriptor.digest}", ask)

    async def _read_range(self, connection: Connection, digest: Digest, wanted: ByteRange) -> bytes:
        """Read from the spool, or by a request; an answer with the whole blob is spooled."""
        key = (self, connection.endpoint.host, digest)
        async with AsyncExitStack() as held:
            blob = await self._find_or_take_turn(connection, held, wanted, key)
            before, patience = 0 if blob is None else blob.received, _patience(connection, wanted)
            try:
                async with asyncio.timeout(patience):
                    return await self._receive(connection, held, wanted, key, blob)
            except TimeoutError as error:
                least = math.ceil(MIN_RATE * (patience or 0))
                raise self._too_late(key, before + least) from error

    def _too_late(self, key: _Key, least: int) -> RegistryError:
        """Give the error for a read that has waited; `least`: bytes that must be in the spool."""
        what, host = f"{self.name}@{key[2]}", key[1]
        blob = self._spool.find(key)
        if blob is not None and blob.received >= least:
            return PassedOverError(what, "is on its way, but not as far", retryable=True)
        return RegistryError(
            what, f"{host} sends fewer than {MIN_RATE} bytes in a second", retryable=True
        )

    async def _receive(
        self,
        connection: Connection,
        held: AsyncExitStack,
        wanted: ByteRange,
        key: _Key,
        blob: Spooled | None,
    ) -> bytes:
        what, host = f"{self.name}@{key[2]}", connection.endpoint.host
        if blob is None:
            with self._spool.probe(host, key):
                answer = await held.enter_async_context(
                    self._answers.open(connection, key[2], wanted)
                )
                if answer.response.status == 206:
                    self._spool.note_part(host, key)
                elif not wanted.is_whole:
                    blob = await self._spool_answer(connection, key, held, answer)
        if blob is None:
            data = await answer.read(what)
            connection.traffic.received += len(data)
            return data
        if not connection.endpoint.final and _is_far(blob, wanted):
            raise PassedOverError(what, "is on its way, but not as far", retryable=True)
        return await blob.read(wanted.start, wanted.end - wanted.start)

    async def _find_or_take_turn(
        self, connection: Connection, held: AsyncExitStack, wanted: ByteRange, key: _Key
    ) -> Spooled | None:
        """Give the blob if it is in the spool; else come back with a turn at the host."""
        blob = self._spool.find(key)
        if blob is not None:
            if _is_far(blob, wanted) and connection.endpoint.final and self._spool.is_due(key):
                await self._take_turn(connection, held, wanted, key)
                return None  # by now, it may be sent in parts
            return blob
        await self._take_turn(connection, held, wanted, key)
        if self._spool.is_probed(key):
            await held.aclose()  # no turn is needed to wait for another's answer
            await self._spool.wait_for_probe(key)
            if self._spool.find(key) is None:
                await self._take_turn(connection, held, wanted, key, waited=True)
        blob = self._spool.find(key)
        if blob is not None:  # it has come meanwhile
            await held.aclose()
        return blob

    async def _take_turn(
        self,
        connection: Connection,
        held: AsyncExitStack,
        wanted: ByteRange,
        key: _Key,
        *,
        waited: bool = False,
    ) -> None:
        """Wait until the host has room for a request; raises if it fails meanwhile."""
        what, endpoint = f"{self.name}@{key[2]}", connection.endpoint
        turn = connection.turns.turn(wanted.end - wanted.start, self.name)
        waited = await held.enter_async_context(turn) or waited
        if waited and not endpoint.final and self._endpoints.health.cools(endpoint.host, what):
            raise PassedOverError(what, f"{endpoint.host} has failed meanwhile", retryable=True)

    async def _spool_answer(
        self, connection: Connection, key: _Key, held: AsyncExitStack, answer: Answer
    ) -> Spooled | None:
        """Hand an answer over to the spool, with what holds it open; None if it is not taken."""

        def count(size: int) -> None:
            connection.traffic.received += size

        taken = held.pop_all()
        what, size = self.name, answer.wanted.size
        incoming = Incoming(what, size, taken, answer.response.content.iter_any(), count)
        blob = await self._spool.start(connection.endpoint.host, key, incoming)
        if blob is None:
            await held.enter_async_context(taken)
        return blob

    def _note_answered(
        self, connection: Connection, digest: Digest, offset: int, length: int
    ) -> None:
        if connection.endpoint.final:
            return
        self._answered[digest, offset, length] = connection
        if len(self._answered) > MAX_ANSWERS_KNOWN:
            self._answered.popitem(last=False)

    def distrust(self, descriptor: Descriptor, offset: int, length: int) -> bool:
        """Ask another host for this blob from now on, if a mirror gave the range; see the port."""
        connection = self._answered.pop((descriptor.digest, offset, length), None)
        if connection is None:
            return False
        self._spool.drop((self, connection.endpoint.host, descriptor.digest))
        what = f"{self.name}@{descriptor.digest}"
        error = CorruptError(what, f"wrong bytes at {offset}")
        self._endpoints.note_failure(connection, what, error)
        return True


def _patience(connection: Connection, wanted: ByteRange) -> float | None:
    """Give the seconds that a host has for a range, if another one can be asked."""
    endpoint = connection.endpoint
    if endpoint.final:
        return None
    silence = endpoint.route.read_timeout or connection.transport.limits.read_timeout
    return silence + (wanted.end - wanted.start) / MIN_RATE


def _is_far(blob: Spooled, wanted: ByteRange) -> bool:
    """Tell whether a range is a long way behind what has come of a blob."""
    return wanted.end > blob.received + AHEAD
