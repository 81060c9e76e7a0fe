"""What a user wrote for an image, and the credentials that belong to it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from lazyimg.errors import BadReferenceError
from lazyimg.registry.credentials import find_authfile
from lazyimg.registry.ports import Access as RegistryAccess
from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.reference import Location, RegistryLocation, parse_location

if TYPE_CHECKING:
    from pathlib import Path

    from lazyimg.api.messages import Access


def read_location(text: str) -> Location:
    """Give the place and image in what a user wrote.

    Raises:
        BadReferenceError: none is in it.
    """
    try:
        return parse_location(text)
    except FormatError as error:
        raise BadReferenceError(
            text, error.problem, "write it as [REGISTRY/]NAME[:TAG][@DIGEST] or oci:PATH[:TAG]"
        ) from error


def check_reference(text: str) -> RegistryLocation:
    """Give the image in a registry that a user wrote; the daemon takes nothing else.

    Raises:
        BadReferenceError: none, or one that is not in a registry.
    """
    location = read_location(text)
    if not isinstance(location, RegistryLocation):
        raise BadReferenceError(text, "is not in a registry", "push it to one first")
    return location


def registry_access(access: Access) -> RegistryAccess:
    """Give the flags for registries as the registry client takes them."""
    return RegistryAccess(
        authfile=_path(access.authfile),
        username=access.username,
        password=access.password,
        plain_http=access.plain_http,
        insecure=access.insecure,
        ca_file=_path(access.ca_file),
    )


def _path(text: str) -> Path | None:
    from pathlib import Path  # noqa: PLC0415  seldom needed

    return Path(text) if text else None


async def daemon_access(access: Access, text: str) -> Access:
    """Give `access` with the file in which this user's credentials for an image are.

    The daemon runs as another user and looks in other places.

    Raises:
        BadReferenceError: `text` is no image in a registry.
        ConfigurationError: a credentials file cannot be used.
    """
    name = check_reference(text).reference.name
    if access.username:
        return access
    found = await find_authfile(name, registry_access(access), os.environ)
    if found is None:
        return access
    return msgspec.structs.replace(access, authfile=str(found.absolute()))
