"""The way to all registries: one pool of connections, one set of tokens per repository.

    async with RegistryClient() as client:
        repository = client.repository(reference, access)
        descriptor, data = await repository.fetch_manifest(reference.target)

Repositories of one client and one access share tokens and redirects; those of another access
never do.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self

from lazyimg.registry.connection import Connection
from lazyimg.registry.credentials import find_credential
from lazyimg.registry.ports import Access
from lazyimg.registry.repository import Repository
from lazyimg.registry.retry import RetryPolicy
from lazyimg.registry.transport import Transport, TransportLimits
from lazyimg.registry.upload import DEFAULT_CHUNK

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lazyimg.registry.auth import Credential
    from lazyimg_formats.oci.reference import Reference


class RegistryClient:
    """Gives repositories; close it when done, or use it in ``async with``."""

    def __init__(
        self,
        *,
        limits: TransportLimits | None = None,
        policy: RetryPolicy | None = None,
        environ: Mapping[str, str] | None = None,
        chunk_size: int = DEFAULT_CHUNK,
    ) -> None:
        """Open nothing yet.

        Args:
            limits: of connections and time.
            policy: of tries.
            environ: variables that say where credentials are; the process's own by default.
            chunk_size: bytes of one piece of an upload.
        """
        self._transport = Transport(limits or TransportLimits())
        self._policy = policy or RetryPolicy()
        self._environ = os.environ if environ is None else environ
        self._chunk_size = chunk_size
        self._repositories: dict[tuple[str, Access], Repository] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        await self._transport.close()

    def repository(self, reference: Reference, access: Access = Access()) -> Repository:  # noqa: B008 - frozen
        """Give the repository of a reference; its tag and digest do not matter. Asks nobody."""
        key = (reference.name, access)
        if key not in self._repositories:

            async def find() -> Credential | None:
                return await find_credential(reference.name, access, self._environ)

            connection = Connection(reference, access, self._transport, find, self._policy)
            self._repositories[key] = Repository(connection, self._chunk_size)
        return self._repositories[key]
