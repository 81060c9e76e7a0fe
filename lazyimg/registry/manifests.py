"""Manifests and indexes of one repository: fetched and pushed, their bytes checked.

Source: the OCI distribution specification; media types of Docker's are understood as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lazyimg.errors import CorruptError, RegistryError
from lazyimg.registry.transport import read_body
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
    from collections.abc import Mapping

    from lazyimg.registry.connection import Connection
    from lazyimg.registry.endpoints import Endpoints

_ACCEPT: Final = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))
_DIGEST: Final = "Docker-Content-Digest"
_SUBJECT: Final = "OCI-Subject"


class Manifests:
    """The documents of one repository with one access.

    Args:
        name: what messages call the repository.
        endpoints: the hosts that serve it.
        pull: scopes to read it.
        push: scopes to write it.
        delete: scopes to remove something from it.
    """

    def __init__(
        self,
        name: str,
        endpoints: Endpoints,
        pull: tuple[str, ...],
        push: tuple[str, ...],
        delete: tuple[str, ...],
    ) -> None:
        self.name = name
        self._endpoints = endpoints
        self._pull = pull
        self._push_scopes = push
        self._delete_scopes = delete

    async def fetch(self, reference: Digest | str) -> tuple[Descriptor, bytes]:
        """Give a manifest or index; see ImageSource.

        A tag is asked of hosts that may resolve it; a digest, and what is under it, of any.
        """
        by_digest = isinstance(reference, Digest)
        what = f"{self.name}{'@' if by_digest else ':'}{reference}"

        async def ask(connection: Connection) -> tuple[Descriptor, bytes]:
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

        return await self._endpoints.ask("pull" if by_digest else "resolve", what, ask)

    async def push(self, data: bytes, media_type: str, tag: str | None = None) -> Descriptor:
        """Take in a manifest or index; see ImageTarget."""
        descriptor, _ = await self._push(data, media_type, tag or "")
        return descriptor

    async def push_referrer(self, data: bytes, media_type: str) -> tuple[Descriptor, bool]:
        """Take in a manifest that has a subject; tells whether the registry lists it there."""
        descriptor, headers = await self._push(data, media_type, "")
        return descriptor, _SUBJECT in headers

    async def _push(
        self, data: bytes, media_type: str, tag: str
    ) -> tuple[Descriptor, Mapping[str, str]]:
        digest = Digest.of(data)
        what = f"{self.name}:{tag}" if tag else f"{self.name}@{digest}"
        connection = await self._endpoints.target()

        async def put() -> Mapping[str, str]:
            async with connection.open(
                "PUT",
                await connection.url(f"manifests/{tag or digest}"),
                what=what,
                expect={200, 201, 202},
                scopes=self._push_scopes,
                headers={"Content-Type": media_type},
                data=data,
            ) as response:
                return response.headers

        headers = await connection.retry(put)
        if said := headers.get(_DIGEST, ""):
            check_digest(what, data, parse_digest(what, said))
        return Descriptor(media_type=media_type, digest=digest, size=len(data)), headers

    async def delete(self, digest: Digest) -> None:
        """Remove a manifest.

        Raises:
            NotFoundError: it is not there.
            AccessDeniedError: this user may not.
            RegistryError: this registry lets nobody, or does not answer.
        """
        what = f"{self.name}@{digest}"
        connection = await self._endpoints.target()

        async def delete() -> None:
            async with connection.open(
                "DELETE",
                await connection.url(f"manifests/{digest}"),
                what=what,
                expect={200, 202, 204},
                scopes=self._delete_scopes,
            ):
                pass

        await connection.retry(delete)


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
