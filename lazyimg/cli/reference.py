"""What a user wrote for an image, and the credentials that belong to it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from lazyimg.errors import BadReferenceError
from lazyimg.registry.authfiles import list_authfiles
from lazyimg.registry.ports import Access as RegistryAccess
from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.reference import (
    ArchiveLocation,
    LayoutLocation,
    Location,
    RegistryLocation,
    parse_location,
)

if TYPE_CHECKING:
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
            text or "''",
            error.problem,
            "write it as [REGISTRY/]NAME[:TAG][@DIGEST] or oci:PATH[:TAG]",
        ) from error


def absolute_reference(text: str) -> str:
    """Give what a user wrote as the daemon takes it: paths in it made absolute.

    Raises:
        BadReferenceError: it names no image.
    """
    location = read_location(text)
    if isinstance(location, LayoutLocation | ArchiveLocation):
        return str(replace(location, path=str(Path(location.path).absolute())))
    return text


def registry_access(access: Access) -> RegistryAccess:
    """Give the flags for registries as the registry client takes them."""
    return RegistryAccess(
        authfile=_path(access.authfile),
        username=access.username,
        password=access.password,
        plain_http=access.plain_http,
        insecure=access.insecure,
        ca_file=_path(access.ca_file),
        hosts_dir=_path(access.hosts_dir),
    )


def _path(text: str) -> Path | None:
    return Path(text) if text else None


def daemon_access(access: Access, text: str) -> Access:
    """Give `access` with the file in which this user's credentials for an image are.

    The daemon runs as another user and looks in other places.

    Raises:
        BadReferenceError: `text` names no image.
        ConfigurationError: a credentials file cannot be used.
    """
    location = read_location(text)
    if access.username or not isinstance(location, RegistryLocation):
        return access
    wanted = registry_access(access)
    if not any(list_authfiles(wanted, os.environ)):
        return access
    import asyncio  # noqa: PLC0415  slow to import

    from lazyimg.registry.credentials import find_authfile  # noqa: PLC0415

    found = asyncio.run(find_authfile(location.reference.name, wanted, os.environ))
    if found is None:
        return access
    return msgspec.structs.replace(access, authfile=str(found.absolute()))
