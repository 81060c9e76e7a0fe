"""One repository of a registry, as a source and as a target of images.

Source: the OCI distribution specification; media types of Docker's are understood as well.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Final

from lazyimg.errors import AccessDeniedError, CorruptError, NotFoundError, RegistryError
from lazyimg.registry.auth import pull_scope, push_scope
from lazyimg.registry.ranges import ByteRange, plan_range, take_range
from lazyimg.registry.redirects import RedirectCache
from lazyimg.registry.transport import read_body, same_origin
from lazyimg.registry.upload import DEFAULT_CHUNK, Uploader
from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_DOCUMENT,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    parse_document,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping

    from aiohttp import ClientResponse

    from lazyimg.registry.connection import Connection
    from lazyimg.registry.ports import ImageSource

PIECE: Final = 1 << 20
"""Bytes that a streamed blob is handed out in."""

logger = logging.getLogger(__name__)

_ACCEPT: Final = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))
_FOUND: Final = frozenset({200, 206})
_REDIRECTED: Final = frozenset({301, 302, 303, 307, 308})


class Repository:
    """An ImageSource and ImageTarget over HTTP."""

    def __init__(self, connection: Connection, chunk_size: int = DEFAULT_CHUNK) -> None:
        self._connection = connection
        self._repository = connection.reference.repository
        self._pull = (pull_scope(self._repository),)
        self._push = (push_scope(self._repository),)
        self._redirects = RedirectCache()
        self._chunk_size = chunk_size

    @property
    def name(self) -> str:
        """What messages call it."""
        return self._connection.reference.name

    async def fetch_manifest(self, reference: Digest | str) -> tuple[Descriptor, bytes]:
        """Give a manifest or index; see ImageSource."""
        separator = "@" if isinstance(reference, Digest) else ":"
        what = f"{self.name}{separator}{reference}"

        async def fetch() -> tuple[str, str, bytes]:
            async with self._connection.open(
                "GET",
                await self._connection.url(f"manifests/{reference}"),
                what=what,
                expect={200},
                scopes=self._pull,
                headers={"Accept": _ACCEPT},
                follow=True,
            ) as response:
                data = await read_body(response, MAX_DOCUMENT)
                return response.content_type, response.headers.get(_DIGEST, ""), data

        content_type, said, data = await self._connection.retry(fetch)
        if isinstance(reference, Digest):
            digest = reference
        else:
            digest = parse_digest(what, said) if said else Digest.of(data)
        check_digest(what, data, digest)
        return describe_document(what, data, content_type, digest), data

    async def read_blob(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        """Give a part of a blob; see ImageSource."""
        end = offset + length
        if not 0 <= offset <= end <= descriptor.size:
            raise ValueError(f"{offset}+{length} is not inside a blob of {descriptor.size} bytes")
        if not length:
            return b""

        async def read() -> bytes:
            async with self._open_range(
                descriptor.digest, ByteRange(offset, end, descriptor.size)
            ) as pieces:
                return b"".join([piece async for piece in pieces])

        return await self._connection.retry(read)

    async def stream_blob(self, descriptor: Descriptor) -> AsyncGenerator[bytes]:
        """Give a whole blob; see ImageSource. Close the generator when it is not used up."""
        what, size = f"{self.name}@{descriptor.digest}", descriptor.size
        hasher = descriptor.digest.hasher()
        attempt = 1
        while hasher.size < size or not size:
            try:
                rest = ByteRange(hasher.size, size, size)
                async with (
                    self._open_range(descriptor.digest, rest) as pieces,
                    aclosing(_gather(pieces)) as gathered,
                ):
                    async for piece in gathered:
                        await asyncio.to_thread(hasher.update, piece)
                        attempt = 1
                        yield piece
                break
            except RegistryError as error:
                await self._connection.wait(attempt, error)
                attempt += 1
        if not hasher.matches():
            raise CorruptError(what, f"its bytes have digest {hasher.digest()}")

    @asynccontextmanager
    async def _open_range(
        self, digest: Digest, wanted: ByteRange
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        what, start, end = f"{self.name}@{digest}", wanted.start, wanted.end
        headers = {} if wanted.is_whole else {"Range": f"bytes={start}-{end - 1}"}
        async with self._open_blob(digest, what, headers) as response:
            skip = plan_range(what, response.status, response.headers, wanted)
            last = response.status == 206 or end == wanted.size
            body = response.content.iter_any()
            async with aclosing(take_range(what, body, skip, end - start, last=last)) as pieces:
                yield pieces

    @asynccontextmanager
    async def _open_blob(
        self, digest: Digest, what: str, headers: Mapping[str, str]
    ) -> AsyncIterator[ClientResponse]:
        connection, key = self._connection, str(digest)
        url = self._redirects.find(key, time.time())
        if url is not None:
            try:
                async with connection.transport.send(
                    "GET", url, connection.access, headers=headers
                ) as response:
                    if response.status in _FOUND:
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
            expect=_FOUND,
            scopes=self._pull,
            headers=headers,
            follow=True,
        ) as response:
            if not same_origin(asked, response.url):
                self._redirects.keep(key, response.url, time.time())
            yield response

    async def has_blob(self, digest: Digest) -> bool:
        """Tell whether a blob is there; see ImageTarget."""

        async def ask() -> bool:
            async with self._connection.open(
                "HEAD",
                await self._connection.url(f"blobs/{digest}"),
                what=f"{self.name}@{digest}",
                expect={200, 404, *_REDIRECTED},  # a signed URL is never asked by HEAD
                scopes=self._pull,
            ) as response:
                return response.status != 404

        return await self._connection.retry(ask)

    async def mount_blob_from(self, source: ImageSource, descriptor: Descriptor) -> bool:
        """Take a blob over from another repository of this registry; see ImageTarget."""
        if not isinstance(source, Repository):
            return False
        theirs, ours = source._connection, self._connection  # noqa: SLF001 - of this class
        if theirs.reference.registry != ours.reference.registry:
            return False
        if theirs.reference.repository == ours.reference.repository:
            return await self.has_blob(descriptor.digest)
        scopes = (*self._push, pull_scope(theirs.reference.repository))
        try:
            return await Uploader(ours, scopes).mount(
                descriptor.digest, theirs.reference.repository
            )
        except (AccessDeniedError, NotFoundError) as error:  # the other one may be out of reach
            logger.debug("%s takes nothing over: %s", self.name, error)
            return False

    async def push_blob(self, chunks: AsyncIterable[bytes], digest: Callable[[], Digest]) -> int:
        """Take in a blob; see ImageTarget."""
        return await Uploader(self._connection, self._push, self._chunk_size).push(chunks, digest)

    async def push_manifest(
        self, data: bytes, media_type: str, tag: str | None = None
    ) -> Descriptor:
        """Take in a manifest or index; see ImageTarget."""
        digest = Digest.of(data)
        what = f"{self.name}:{tag}" if tag else f"{self.name}@{digest}"

        async def put() -> str:
            async with self._connection.open(
                "PUT",
                await self._connection.url(f"manifests/{tag or digest}"),
                what=what,
                expect={200, 201, 202},
                scopes=self._push,
                headers={"Content-Type": media_type},
                data=data,
            ) as response:
                return response.headers.get(_DIGEST, "")

        said = await self._connection.retry(put)
        if said:
            check_digest(what, data, parse_digest(what, said))
        return Descriptor(media_type=media_type, digest=digest, size=len(data))


_DIGEST: Final = "Docker-Content-Digest"


def parse_digest(what: str, text: str) -> Digest:
    """Give the digest that a registry wrote; raises RegistryError if it is none."""
    try:
        return Digest.parse(text)
    except FormatError as error:
        raise RegistryError(what, f"the registry names an impossible digest: {error}") from error


def check_digest(what: str, data: bytes, digest: Digest) -> None:
    """Raise CorruptError unless `data` has this digest."""
    actual = Digest.of(data, digest.algorithm)
    if actual != digest:
        raise CorruptError(what, f"expected digest {digest}, got {actual}")


def describe_document(what: str, data: bytes, media_type: str, digest: Digest) -> Descriptor:
    """Give the descriptor of a manifest or index, whose media type may be in the document only.

    Raises:
        CorruptError: it is neither.
    """
    known = (*MANIFEST_TYPES, *INDEX_TYPES)
    try:
        document = parse_document(data, media_type if media_type in known else "")
    except FormatError as error:
        raise CorruptError(what, str(error)) from error
    default = OCI_INDEX if isinstance(document, Index) else OCI_MANIFEST
    own = document.media_type or (media_type if media_type in known else default)
    return Descriptor(media_type=own, digest=digest, size=len(data))


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
