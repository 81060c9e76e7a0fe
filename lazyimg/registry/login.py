"""Whether a registry takes a user name and password. Source: distribution-spec, "Checking"."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lazyimg.errors import AccessDeniedError, BadReferenceError, NotFoundError, RegistryError
from lazyimg.registry.auth import Credential
from lazyimg.registry.connection import Connection
from lazyimg.registry.hosts import find_endpoints, own_endpoint
from lazyimg.registry.retry import RetryPolicy
from lazyimg.registry.transport import Transport, TransportLimits
from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.reference import Reference, parse_reference

if TYPE_CHECKING:
    from lazyimg.registry.ports import Access


def parse_registry(text: str) -> str:
    """Give the registry that a user wrote: its host and port, as credentials are kept under.

    Raises:
        BadReferenceError: no registry.
    """
    host = text.removeprefix("https://").removeprefix("http://").rstrip("/")
    try:
        Reference(host, "x")
    except FormatError as error:
        raise BadReferenceError(text, error.problem, "write it as HOST or HOST:PORT") from error
    return parse_reference(f"{host}/x/x").registry if "." in host else host


async def check_credential(
    registry: str, access: Access, transport: Transport | None = None
) -> None:
    """Show a registry the access's user name and password.

    Args:
        registry: host and port.
        access: how to reach it, and what to show.
        transport: to be used, and closed.

    Raises:
        AccessDeniedError: it refuses them.
        ConfigurationError: its hosts.toml cannot be used.
        RegistryError: it cannot be reached, or is no registry.
    """
    reference = Reference(registry, "login")  # a repository's name is needed, but not asked for
    transport = transport or Transport(TransportLimits())

    async def find() -> Credential:
        return Credential(access.username, access.password)

    try:
        endpoint = (await asyncio.to_thread(find_endpoints, reference, access))[-1]
        if not endpoint.is_own:  # a mirror stands in for the registry: these are not for it
            endpoint = own_endpoint(reference, access)
        connection = Connection(reference, endpoint, transport, find, RetryPolicy())
        root = await connection.root()
        async with connection.open("GET", root / "", what=registry, expect={200}, scopes=()):
            pass
    except AccessDeniedError as error:
        raise AccessDeniedError(
            registry, "the registry refuses these credentials", "check user name and password"
        ) from error
    except NotFoundError as error:
        raise RegistryError(registry, "is no registry: it has no /v2/", status=404) from error
    finally:
        await transport.close()
