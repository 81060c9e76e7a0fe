"""One repository of a registry, as a source and as a target of images.

Source: the OCI distribution specification; media types of Docker's are understood as well.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from lazyimg.errors import (
    AccessDeniedError,
    CorruptError,
    LazyimgError,
    NotFoundError,
    RegistryError,
)
from lazyimg.registry.auth import pull_scope, push_scope
from lazyimg.registry.endpoints import PassedOverError, worst
from lazyimg.registry.ranges import ByteRange, plan_range, take_range
from lazyimg.registry.redirects import RedirectCache
from lazyimg.registry.spool import AHEAD, Incoming, Spool, Spooled
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
    from collections.abc import (
        AsyncGenerator,
        AsyncIterable,
        AsyncIterator,
        Callable,
        Hashable,
        Mapping,
    )

    from aiohttp import ClientResponse

    from lazyimg.registry.connection import Connection
    from lazyimg.registry.endpoints import Endpoints
    from lazyimg.registry.ports import ImageSource
    from lazyimg_formats.oci.digest import Hasher
    from lazyimg_formats.oci.reference import Reference

PIECE: Final = 1 << 20
"""Bytes that a streamed blob is handed out in."""

SMALL: Final = 1 << 16
"""Bytes of a blob up to which it is handed out in one piece, when it has been verified."""

MAX_ANSWERS_KNOWN: Final = 1024
"""Ranges whose mirror is remembered, in case that they turn out to be wrong."""

logger = logging.getLogger(__name__)

_ACCEPT: Final = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))
_FOUND: Final = frozenset({200, 206})
_REDIRECTED: Final = frozenset({301, 302, 303, 307, 308})


class Repository:
    """An ImageSource and ImageTarget over HTTP.

    Args:
        reference: names it.
        endpoints: the hosts that serve it.
        spool: receives blobs of hosts that send whole ones.
        chunk_size: bytes of one piece of an upload.
    """

    def __init__(
        self,
        reference: Reference,
        endpoints: Endpoints,
        spool: Spool,
        chunk_size: int = DEFAULT_CHUNK,
    ) -> None:
        self.reference = reference
        self._endpoints = endpoints
        self._spool = spool
        self._pull = (pull_scope(reference.repository),)
        self._push = (push_scope(reference.repository),)
        self._redirects = RedirectCache()
        self._answered: OrderedDict[tuple[Digest, int, int], Connection] = OrderedDict()
        self._chunk_size = chunk_size

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.reference.name

    async def fetch_manifest(self, reference: Digest | str) -> tuple[Descriptor, bytes]:
        """Give a manifest or index; see ImageSource.

        A tag is asked of hosts that may resolve it; a digest, and what is under it, of any.
        """
        by_digest = isinstance(reference, Digest)
        what = f"{self.name}{'@' if by_digest else ':'}{reference}"

        async def fetch(connection: Connection) -> tuple[Descriptor, bytes]:
            async with connection.open(
                "GET",
                await connection.url(f"manifests/{reference}"),
                what=what,
                expect={200},
                scopes=self._pull,
                headers={"Accept": _ACCEPT},
                follow=True,
            ) as response:
                data = await read_body(response, MAX_DOCUMENT)
                content_type = response.content_type
                said = response.headers.get(_DIGEST, "")
            if isinstance(reference, Digest):
                digest = reference
            else:
                digest = parse_digest(what, said) if said else Digest.of(data)
            check_digest(what, data, digest)
            return describe_document(what, data, content_type, digest), data

        return await self._endpoints.ask("pull" if by_digest else "resolve", what, fetch)

    async def read_blob(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        """Give a part of a blob; see ImageSource."""
        end = offset + length
        if not 0 <= offset <= end <= descriptor.size:
            raise ValueError(f"{offset}+{length} is not inside a blob of {descriptor.size} bytes")
        if not length:
            return b""
        wanted = ByteRange(offset, end, descriptor.size)

        async def read(connection: Connection) -> bytes:
            data = await self._read_range(connection, descriptor.digest, wanted)
            self._note_answered(connection, descriptor.digest, offset, length)
            return data

        return await self._endpoints.ask("pull", self._subject(descriptor), read)

    async def _read_range(self, connection: Connection, digest: Digest, wanted: ByteRange) -> bytes:
        """Read from the spool, or by a request; an answer with the whole blob is spooled."""
        what, host = f"{self.name}@{digest}", connection.endpoint.host
        key = (self, host, digest)
        async with AsyncExitStack() as held:
            async with self._spool.turn(host, key):
                blob = self._spool.find(key)
                if blob is None:
                    await self._take_turn(connection, held, wanted, what)
                    answer = await held.enter_async_context(
                        self._open_range(connection, digest, wanted)
                    )
                    if answer.response.status == 200 and not wanted.is_whole:
                        blob = await self._spool_answer(connection, key, held, answer)
            if blob is None:
                data = b"".join([piece async for piece in answer.pieces(what)])
                connection.traffic.received += len(data)
                return data
        if not connection.endpoint.final and wanted.end > blob.received + AHEAD:
            raise PassedOverError(what, "is on its way, but not as far", retryable=True)
        return await blob.read(wanted.start, wanted.end - wanted.start)

    async def _take_turn(
        self, connection: Connection, held: AsyncExitStack, wanted: ByteRange, what: str
    ) -> None:
        """Wait until the host has room for a request; raises if it fails meanwhile."""
        turn = connection.turns.turn(wanted.end - wanted.start)
        waited, endpoint = await held.enter_async_context(turn), connection.endpoint
        if waited and not endpoint.final and self._endpoints.health.cools(endpoint.host, what):
            raise PassedOverError(what, f"{endpoint.host} has failed meanwhile", retryable=True)

    async def _spool_answer(
        self, connection: Connection, key: Hashable, held: AsyncExitStack, answer: _Answer
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

    def _subject(self, descriptor: Descriptor) -> str:
        return f"{self.name}@{descriptor.digest}"

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
        self._wrong(connection, self._subject(descriptor), f"wrong bytes at {offset}")
        return True

    async def stream_blob(self, descriptor: Descriptor) -> AsyncGenerator[bytes]:
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
            self._open_range(connection, descriptor.digest, rest) as answer,
            aclosing(answer.pieces(self._subject(descriptor))) as pieces,
            aclosing(_gather(pieces)) as gathered,
        ):
            async for piece in gathered:
                connection.traffic.received += len(piece)
                await asyncio.to_thread(hasher.update, piece)
                yield piece

    async def _read_whole(self, connection: Connection, descriptor: Descriptor) -> bytes:
        wanted = ByteRange(0, descriptor.size, descriptor.size)
        async with self._open_range(connection, descriptor.digest, wanted) as answer:
            data = b"".join([piece async for piece in answer.pieces(self._subject(descriptor))])
        connection.traffic.received += len(data)
        digest = Digest.of(data, descriptor.digest.algorithm)
        if digest != descriptor.digest:
            raise CorruptError(self._subject(descriptor), f"its bytes have digest {digest}")
        return data

    @asynccontextmanager
    async def _open_range(
        self, connection: Connection, digest: Digest, wanted: ByteRange
    ) -> AsyncIterator[_Answer]:
        what = f"{self.name}@{digest}"
        headers = {} if wanted.is_whole else {"Range": f"bytes={wanted.start}-{wanted.end - 1}"}
        async with self._open_blob(connection, digest, what, headers) as response:
            skip = plan_range(what, response.status, response.headers, wanted)
            yield _Answer(response, wanted, skip)

    @asynccontextmanager
    async def _open_blob(
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

    async def user(self) -> str:
        """Give the user name that the registry is shown; see ProvingSource."""
        connection = (await self._endpoints.all())[-1]
        return await connection.user()

    async def prove_blob(self, descriptor: Descriptor) -> None:
        """Ask whether a blob may be read here; see ProvingSource.

        By HEAD, or where that is refused by a GET of one byte. To be redirected is to be allowed.
        """
        what = self._subject(descriptor)

        async def ask(connection: Connection) -> None:
            url = await connection.url(f"blobs/{descriptor.digest}")
            for method, headers in (("HEAD", {}), ("GET", {"Range": "bytes=0-0"})):
                try:
                    async with connection.open(
                        method,
                        url,
                        what=what,
                        expect=_FOUND | _REDIRECTED,
                        scopes=self._pull,
                        headers=headers,
                    ):
                        return
                except (AccessDeniedError, RegistryError) as error:
                    passing = isinstance(error, RegistryError) and error.retryable
                    if passing or method == "GET":
                        raise

        try:
            await self._endpoints.ask("pull", what, ask)
        except NotFoundError as error:
            raise AccessDeniedError(
                what,
                "this repository does not have the layer, so it gives no right to read it",
                "check that the image was pushed whole",
            ) from error

    async def has_blob(self, digest: Digest) -> bool:
        """Tell whether a blob is there; see ImageTarget."""
        connection = await self._endpoints.target()

        async def ask() -> bool:
            async with connection.open(
                "HEAD",
                await connection.url(f"blobs/{digest}"),
                what=f"{self.name}@{digest}",
                expect={200, 404, *_REDIRECTED},  # a signed URL is never asked by HEAD
                scopes=self._pull,
            ) as response:
                return response.status != 404

        return await connection.retry(ask)

    async def mount_blob_from(self, source: ImageSource, descriptor: Descriptor) -> bool:
        """Take a blob over from another repository of this registry; see ImageTarget."""
        if not isinstance(source, Repository):
            return False
        theirs, ours = source.reference, self.reference
        if theirs.registry != ours.registry:
            return False
        if theirs.repository == ours.repository:
            return await self.has_blob(descriptor.digest)
        scopes = (*self._push, pull_scope(theirs.repository))
        uploader = Uploader(await self._endpoints.target(), scopes)
        try:
            return await uploader.mount(descriptor.digest, theirs.repository)
        except (AccessDeniedError, NotFoundError) as error:  # the other one may be out of reach
            logger.debug("%s takes nothing over: %s", self.name, error)
            return False

    async def push_blob(self, chunks: AsyncIterable[bytes], digest: Callable[[], Digest]) -> int:
        """Take in a blob; see ImageTarget."""
        connection = await self._endpoints.target()
        return await Uploader(connection, self._push, self._chunk_size).push(chunks, digest)

    async def push_manifest(
        self, data: bytes, media_type: str, tag: str | None = None
    ) -> Descriptor:
        """Take in a manifest or index; see ImageTarget."""
        digest = Digest.of(data)
        what = f"{self.name}:{tag}" if tag else f"{self.name}@{digest}"
        connection = await self._endpoints.target()

        async def put() -> str:
            async with connection.open(
                "PUT",
                await connection.url(f"manifests/{tag or digest}"),
                what=what,
                expect={200, 201, 202},
                scopes=self._push,
                headers={"Content-Type": media_type},
                data=data,
            ) as response:
                return response.headers.get(_DIGEST, "")

        said = await connection.retry(put)
        if said:
            check_digest(what, data, parse_digest(what, said))
        return Descriptor(media_type=media_type, digest=digest, size=len(data))


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer to a request for a range, and how many bytes of it come before the range."""

    response: ClientResponse
    wanted: ByteRange
    skip: int

    async def pieces(self, what: str) -> AsyncGenerator[bytes]:
        """Give the range that was asked for."""
        wanted = self.wanted
        last = self.response.status == 206 or wanted.end == wanted.size
        body = self.response.content.iter_any()
        length = wanted.end - wanted.start
        async with aclosing(take_range(what, body, self.skip, length, last=last)) as pieces:
            async for piece in pieces:
                yield piece


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
