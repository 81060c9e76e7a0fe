"""What refers to a manifest, in one repository: listed, added, removed.

A registry of distribution-spec 1.1 keeps the list itself, and says so when it takes a referrer
(``OCI-Subject``). For others the list is a document under a tag, which clients change: two that do
it at the same moment may lose one of their entries, as the specification has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from yarl import URL

from lazyimg.errors import AccessDeniedError, CorruptError, NotFoundError, RegistryError
from lazyimg.registry.transport import read_body, same_origin
from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.documents import (
    INDEX_TYPES,
    MAX_DOCUMENT,
    OCI_INDEX,
    Index,
    Manifest,
    parse_document,
    serialize_document,
)
from lazyimg_formats.oci.referrers import (
    MAX_REFERRERS,
    add_referrer,
    describe_referrer,
    parse_referrers,
    referrers_tag,
    remove_referrer,
)

if TYPE_CHECKING:
    from aiohttp import ClientResponse

    from lazyimg.registry.connection import Connection
    from lazyimg.registry.endpoints import Endpoints
    from lazyimg.registry.manifests import Manifests
    from lazyimg_formats.oci.digest import Digest
    from lazyimg_formats.oci.documents import Descriptor

MAX_PAGES: Final = 16
"""Answers that one list may be spread over."""

_REFUSED: Final = frozenset({400, 404, 405, 501})  # by registries that know nothing of it


class Referrers:
    """What refers to the manifests of one repository, with one access.

    Args:
        name: what messages call the repository.
        endpoints: the hosts that serve it.
        manifests: its documents.
        pull: scopes to read it.
    """

    def __init__(
        self, name: str, endpoints: Endpoints, manifests: Manifests, pull: tuple[str, ...]
    ) -> None:
        self.name = name
        self._endpoints = endpoints
        self._manifests = manifests
        self._pull = pull

    async def fetch(self, subject: Digest) -> tuple[Descriptor, ...]:
        """Give what refers to a manifest; see ReferrerSource."""
        listed = await self._ask(subject)
        if listed is None:
            kept = await self._kept(subject)
            listed = () if kept is None else kept.manifests
        return listed

    async def _ask(self, subject: Digest) -> tuple[Descriptor, ...] | None:
        """Give the registry's own list; None if it keeps none."""
        what = f"{self.name}: what refers to {subject}"

        async def ask(connection: Connection) -> tuple[Descriptor, ...] | None:
            url: URL | None = await connection.url(f"referrers/{subject}")
            found: list[Descriptor] = []
            for _ in range(MAX_PAGES):
                if url is None or len(found) >= MAX_REFERRERS:
                    break
                page, url = await self._ask_page(connection, url, what)
                if page is None:
                    return None
                found += page.manifests
            return tuple(found[:MAX_REFERRERS])

        return await self._endpoints.ask("resolve", what, ask)

    async def _ask_page(
        self, connection: Connection, url: URL, what: str
    ) -> tuple[Index | None, URL | None]:
        """Give one answer, and where the next one is."""
        async with connection.open(
            "GET",
            url,
            what=what,
            expect={200, *_REFUSED},
            scopes=self._pull,
            headers={"Accept": OCI_INDEX},
            follow=True,
        ) as response:
            if response.status != 200 or response.content_type not in INDEX_TYPES:
                return None, None  # or it is the page of something else
            data = await read_body(response, MAX_DOCUMENT)
            further = _further(response, what)
            media_type = response.content_type
        try:
            return parse_referrers(data, media_type), further
        except FormatError as error:
            raise CorruptError(what, str(error)) from error

    async def _kept(self, subject: Digest) -> Index | None:
        """Give the list under the tag; None if there is none."""
        tag = referrers_tag(subject)
        try:
            descriptor, data = await self._manifests.fetch(tag)
        except NotFoundError:
            return None
        try:
            return parse_referrers(data, descriptor.media_type)
        except FormatError as error:
            raise CorruptError(f"{self.name}:{tag}", str(error)) from error

    async def push(self, data: bytes, media_type: str) -> Descriptor:
        """Take in a manifest with a subject, and have it listed; see ReferrerTarget."""
        manifest = parse_document(data, media_type)
        if not isinstance(manifest, Manifest) or manifest.subject is None:
            raise AssertionError(media_type)
        descriptor, listed = await self._manifests.push_referrer(data, media_type)
        if not listed:
            subject = manifest.subject.digest
            entry = describe_referrer(descriptor, manifest)
            await self._keep(subject, add_referrer(await self._kept(subject), entry))
        return descriptor

    async def _keep(self, subject: Digest, listed: Index) -> None:
        await self._manifests.push(serialize_document(listed), OCI_INDEX, referrers_tag(subject))

    async def remove(self, subject: Digest, referrer: Digest) -> str:
        """Remove a referrer, as far as the registry allows it; see ReferrerTarget."""
        kept = await self._kept(subject)
        unlisted = kept is not None and any(one.digest == referrer for one in kept.manifests)
        if kept is not None and unlisted:
            await self._keep(subject, remove_referrer(kept, referrer))
        try:
            await self._manifests.delete(referrer)
        except NotFoundError:
            return ""
        except (RegistryError, AccessDeniedError) as error:
            if not unlisted:
                raise
            return error.problem
        return ""


def _further(response: ClientResponse, what: str) -> URL | None:
    """Give where a list goes on; None at its end."""
    try:
        link = response.links.get("next")
        url = None if link is None else URL(str(link["url"]))
    except ValueError as error:
        raise RegistryError(what, "goes on at an impossible place") from error
    if url is not None and not same_origin(url, response.url):
        raise RegistryError(what, "goes on at another host")
    return url
