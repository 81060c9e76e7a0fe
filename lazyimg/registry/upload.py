"""Sending a blob to a registry, or having it taken over from another repository.

A blob that fits into one chunk goes in one piece (POST, PUT). A larger one goes in chunks (POST,
PATCH for each, PUT): the digest need not be known before the last byte, and a chunk whose sending
broke off is sent again from where the registry says it is. A failure ends the upload there.

Source: distribution-spec, "Push", "Mounting a blob from another repository".
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Final

from lazyimg.errors import LazyimgError, NotFoundError, RegistryError
from lazyimg.registry.redact import redact_url
from lazyimg.registry.transport import join_location

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Mapping

    from aiohttp import ClientResponse
    from yarl import URL

    from lazyimg.registry.connection import Connection
    from lazyimg_formats.oci.digest import Digest

DEFAULT_CHUNK: Final = 8 << 20
"""Bytes of a chunk, held in memory until the registry has it."""

MAX_CHUNK: Final = 64 << 20
"""Bytes of a chunk that a registry may ask for at least."""

CANCEL_TIMEOUT: Final = 5.0
"""Seconds for ending an upload that failed."""

_RANGE: Final = re.compile(r"(?:bytes=)?0-([0-9]{1,18})", re.ASCII)

logger = logging.getLogger(__name__)


class Uploader:
    """Uploads of one repository."""

    def __init__(
        self, connection: Connection, scopes: tuple[str, ...], chunk_size: int = DEFAULT_CHUNK
    ) -> None:
        self._connection = connection
        self._scopes = scopes
        self._chunk_size = chunk_size
        self._what = connection.reference.name

    async def mount(self, digest: Digest, repository: str) -> bool:
        """Take a blob over from another repository; tells whether the registry did so."""

        async def ask() -> URL | None:
            url = await self._connection.url("blobs/uploads/")
            async with self._connection.open(
                "POST",
                url.extend_query({"mount": str(digest), "from": repository}),
                what=self._what,
                expect={201, 202},
                scopes=self._scopes,
            ) as response:
                return None if response.status == 201 else _location(response)

        location = await self._connection.retry(ask)
        if location is None:
            return True
        await self._cancel(location)  # the registry has begun an ordinary upload instead
        return False

    async def push(self, chunks: AsyncIterable[bytes], digest: Callable[[], Digest]) -> int:
        """Send a blob; see ImageTarget.push_blob."""
        buffer = bytearray()
        location: URL | None = None
        size, chunk_size = 0, self._chunk_size
        try:
            async for piece in chunks:
                size += len(piece)
                buffer += piece
                while len(buffer) > chunk_size:
                    if location is None:
                        location, chunk_size = await self._begin()
                        continue
                    chunk = bytes(memoryview(buffer)[:chunk_size])
                    location = await self._patch(location, size - len(buffer), chunk)
                    del buffer[:chunk_size]
            if location is None:
                await self._put_whole(bytes(buffer), digest())
                return size
            location = await self._patch(location, size - len(buffer), bytes(buffer))
            last, named = location, digest()
            await self._connection.retry(lambda: self._put(last, named, b""))
        except BaseException:
            if location is not None:
                await self._cancel(location)
            raise
        return size

    async def _begin(self) -> tuple[URL, int]:
        """Start an upload; gives its URL and the size of chunks."""

        async def post() -> tuple[URL, str]:
            async with self._connection.open(
                "POST",
                await self._connection.url("blobs/uploads/"),
                what=self._what,
                expect={202},
                scopes=self._scopes,
            ) as response:
                return _location(response), response.headers.get("OCI-Chunk-Min-Length", "0")

        location, least = await self._connection.retry(post)
        if not least.isdecimal() or len(least) > 18 or int(least) > MAX_CHUNK:
            raise RegistryError(
                self._what, f"asks for chunks of at least {least[:40]} bytes, over {MAX_CHUNK}"
            )
        return location, max(self._chunk_size, int(least))

    async def _put_whole(self, data: bytes, digest: Digest) -> None:
        async def put() -> None:  # begun anew each time: what a broken one left is not known
            location, _ = await self._begin()
            try:
                await self._put(location, digest, data)
            except BaseException:
                await self._cancel(location)
                raise

        await self._connection.retry(put)

    async def _put(self, location: URL, digest: Digest, data: bytes) -> None:
        try:
            async with self._connection.open(
                "PUT",
                location.extend_query({"digest": str(digest)}),
                what=f"{self._what}@{digest}",
                expect={201, 204},
                scopes=self._scopes,
                headers=_octets(data),
                data=data,
            ):
                return
        except NotFoundError:
            if not await self._exists(digest):
                raise
            # an earlier try had its effect, only its answer was lost

    async def _exists(self, digest: Digest) -> bool:
        async with self._connection.open(
            "HEAD",
            await self._connection.url(f"blobs/{digest}"),
            what=f"{self._what}@{digest}",
            expect={200, 307, 404},
            scopes=self._scopes,
        ) as response:
            return response.status != 404

    async def _patch(self, location: URL, start: int, data: bytes) -> URL:
        """Send a chunk; gives where the next one goes."""
        sent, attempt = 0, 1
        while sent < len(data):
            try:
                return await self._patch_once(location, start + sent, data[sent:])
            except RegistryError as error:
                await self._connection.wait(attempt, error)
                attempt += 1
            location, received = await self._ask_progress(location)
            sent = received - start
            if not 0 <= sent <= len(data):
                raise RegistryError(
                    self._what, f"lost an upload: it has {received} bytes, sent were {start}"
                )
        return location

    async def _patch_once(self, location: URL, start: int, data: bytes) -> URL:
        end = start + len(data)
        async with self._connection.open(
            "PATCH",
            location,
            what=self._what,
            expect={202, 204},
            scopes=self._scopes,
            headers=_octets(data) | {"Content-Range": f"{start}-{end - 1}"},
            data=data,
        ) as response:
            received = parse_progress(response.headers)
            if received not in {None, end}:
                raise RegistryError(
                    self._what, f"has {received} bytes of an upload, sent were {end}"
                )
            return _location(response)

    async def _ask_progress(self, location: URL) -> tuple[URL, int]:
        async def ask() -> tuple[URL, int]:
            async with self._connection.open(
                "GET", location, what=self._what, expect={204}, scopes=self._scopes
            ) as response:
                received = parse_progress(response.headers)
                return _location(response, location), 0 if received in {None, 1} else received or 0

        return await self._connection.retry(ask)

    async def _cancel(self, location: URL) -> None:
        """End an upload; that it cannot be ended is not worth another failure."""
        try:
            async with (
                asyncio.timeout(CANCEL_TIMEOUT),
                self._connection.open(
                    "DELETE",
                    location,
                    what=self._what,
                    expect={200, 202, 204, 404, 405},
                    scopes=self._scopes,
                ),
            ):
                return
        except (LazyimgError, TimeoutError) as error:
            logger.debug("an upload to %s stays behind: %s", self._what, error)


def _octets(data: bytes) -> dict[str, str]:
    return {"Content-Type": "application/octet-stream", "Content-Length": str(len(data))}


def _location(response: ClientResponse, default: URL | None = None) -> URL:
    """Give the URL that an answer names for what comes next."""
    text = response.headers.get("Location", "")
    if not text and default is not None:
        return default
    location = join_location(response.url, text)
    if location is None:
        raise RegistryError(
            redact_url(response.url),
            "does not say where an upload goes on",
            status=response.status,
        )
    return location


def parse_progress(headers: Mapping[str, str]) -> int | None:
    """Give the number of bytes in a Range header; None without one. ``0-0`` may be none, too."""
    match = _RANGE.fullmatch(headers.get("Range", ""))
    return int(match[1]) + 1 if match else None
