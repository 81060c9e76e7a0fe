"""One request for a part of a blob, and its answer: from a signed URL that is still good, or anew.

Only the first read of a blob costs a request at a registry that redirects to an object store.
"""

from __future__ import annotations

import time
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from lazyimg.errors import RegistryError
from lazyimg.registry.arrivals import receive
from lazyimg.registry.ranges import ByteRange, plan_range, take_range
from lazyimg.registry.redirects import RedirectCache
from lazyimg.registry.transport import same_origin

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from aiohttp import ClientResponse

    from lazyimg.registry.connection import Connection
    from lazyimg_formats.oci.digest import Digest

FOUND: Final = frozenset({200, 206})
"""Statuses of an answer with bytes of a blob."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a request for a range, and how many bytes of it come before the range."""

    response: ClientResponse
    wanted: ByteRange
    skip: int

    async def read(self, what: str) -> bytes:
        """Give the range that was asked for."""
        async with (
            aclosing(receive(self.response)) as body,
            aclosing(self._take(what, body)) as taken,
        ):
            return b"".join([piece async for piece in taken])

    async def pieces(self, what: str) -> AsyncGenerator[bytes]:
        """Give the range that was asked for, as it comes, to somebody who may be slow."""
        async with aclosing(self._take(what, self.response.content.iter_any())) as taken:
            async for piece in taken:
                yield piece

    def _take(self, what: str, body: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        wanted = self.wanted
        last = self.response.status == 206 or wanted.end == wanted.size
        return take_range(what, body, self.skip, wanted.end - wanted.start, last=last)


class BlobAnswers:
    """Asks hosts for blobs of one repository with one access.

    Args:
        name: what messages call the repository.
        pull: scopes to read it.
    """

    def __init__(self, name: str, pull: tuple[str, ...]) -> None:
        self.name = name
        self._pull = pull
        self._redirects = RedirectCache()

    @asynccontextmanager
    async def open(
        self, connection: Connection, digest: Digest, wanted: ByteRange
    ) -> AsyncIterator[Answer]:
        """Give the answer of one host to a request for a range; raises LazyimgError."""
        what = f"{self.name}@{digest}"
        headers = {} if wanted.is_whole else {"Range": f"bytes={wanted.start}-{wanted.end - 1}"}
        async with self._open(connection, digest, what, headers) as response:
            skip = plan_range(what, response.status, response.headers, wanted)
            yield Answer(response, wanted, skip)

    @asynccontextmanager
    async def _open(
        self, connection: Connection, digest: Digest, what: str, headers: Mapping[str, str]
    ) -> AsyncIterator[ClientResponse]:
        endpoint, key = connection.endpoint, f"{connection.endpoint.host} {digest}"
        url = self._redirects.find(key, time.time())
        if url is not None:
            route = replace(endpoint.route, client=(), headers=())
            try:
                with connection.traffic.request():
                    async with connection.transport.send(
                        "GET", url, route, headers=headers
                    ) as response:
                        if response.status in FOUND:
                            yield response
                            return
            except RegistryError:
                self._redirects.drop(key)
                raise
            self._redirects.drop(key)  # it has expired, or whatever: the registry knows
        asked = await connection.url(f"blobs/{digest}")
        async with connection.open(
            "GET",
            asked,
            what=what,
            expect=FOUND,
            scopes=self._pull,
            headers=headers,
            follow=True,
        ) as response:
            if not same_origin(asked, response.url):
                self._redirects.keep(key, response.url, time.time())
            yield response
