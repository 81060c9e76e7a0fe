"""One repository of a registry, as a source and as a target of images: who does which part of it.

Source: the OCI distribution specification.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from lazyimg.errors import AccessDeniedError, NotFoundError, RegistryError
from lazyimg.registry.auth import delete_scope, pull_scope, push_scope
from lazyimg.registry.blob_answers import FOUND, BlobAnswers
from lazyimg.registry.blob_reads import BlobReads
from lazyimg.registry.blob_streams import BlobStreams
from lazyimg.registry.manifests import Manifests
from lazyimg.registry.referrers import Referrers
from lazyimg.registry.upload import DEFAULT_CHUNK, Uploader

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Callable

    from lazyimg.registry.connection import Connection
    from lazyimg.registry.endpoints import Endpoints
    from lazyimg.registry.ports import ImageSource
    from lazyimg.registry.spool import Spool
    from lazyimg_formats.oci.digest import Digest
    from lazyimg_formats.oci.documents import Descriptor
    from lazyimg_formats.oci.reference import Reference

logger = logging.getLogger(__name__)

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
        self._pull = (pull_scope(reference.repository),)
        self._push = (push_scope(reference.repository),)
        answers = BlobAnswers(self.name, self._pull)
        delete = (delete_scope(reference.repository),)
        self._manifests = Manifests(self.name, endpoints, self._pull, self._push, delete)
        self._referrers = Referrers(self.name, endpoints, self._manifests, self._pull)
        self._reads = BlobReads(self.name, endpoints, answers, spool)
        self._streams = BlobStreams(self.name, endpoints, answers)
        self._chunk_size = chunk_size

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.reference.name

    async def fetch_manifest(self, reference: Digest | str) -> tuple[Descriptor, bytes]:
        """Give a manifest or index; see ImageSource."""
        return await self._manifests.fetch(reference)

    async def referrers(self, subject: Digest) -> tuple[Descriptor, ...]:
        """Give what refers to a manifest; see ReferrerSource."""
        return await self._referrers.fetch(subject)

    async def read_blob(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        """Give a part of a blob; see ImageSource."""
        return await self._reads.read(descriptor, offset, length)

    def distrust(self, descriptor: Descriptor, offset: int, length: int) -> bool:
        """Ask another host for this blob from now on, if a mirror gave the range; see the port."""
        return self._reads.distrust(descriptor, offset, length)

    def stream_blob(self, descriptor: Descriptor) -> AsyncGenerator[bytes]:
        """Give a whole blob; see ImageSource. Close the generator when it is not used up."""
        return self._streams.open(descriptor)

    async def user(self) -> str:
        """Give the user name that the registry is shown; see ProvingSource."""
        connection = (await self._endpoints.all())[-1]
        return await connection.user()

    async def hosts(self) -> frozenset[str]:
        """Give the hosts that are asked; see ProvingSource."""
        return frozenset(one.endpoint.host for one in await self._endpoints.all())

    async def prove_blob(self, descriptor: Descriptor) -> str:
        """Ask whether a blob may be read here; see ProvingSource.

        By HEAD, or where that is refused by a GET of one byte. To be redirected is to be allowed.
        """
        what = f"{self.name}@{descriptor.digest}"

        async def ask_by(connection: Connection, method: str, headers: dict[str, str]) -> str:
            url = await connection.url(f"blobs/{descriptor.digest}")
            async with connection.open(
                method,
                url,
                what=what,
                expect=FOUND | _REDIRECTED,
                scopes=self._pull,
                headers=headers,
            ):
                return connection.endpoint.host

        async def ask(connection: Connection) -> str:
            try:
                return await ask_by(connection, "HEAD", {})
            except (AccessDeniedError, RegistryError) as error:
                if isinstance(error, RegistryError) and error.retryable:
                    raise
            return await ask_by(connection, "GET", {"Range": "bytes=0-0"})

        try:
            return await self._endpoints.ask("pull", what, ask)
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
        return await self._manifests.push(data, media_type, tag)

    async def push_referrer(self, data: bytes, media_type: str) -> Descriptor:
        """Take in a manifest that has a subject; see ReferrerTarget."""
        return await self._referrers.push(data, media_type)

    async def remove_referrer(self, subject: Digest, referrer: Digest) -> str:
        """Remove one; see ReferrerTarget."""
        return await self._referrers.remove(subject, referrer)
