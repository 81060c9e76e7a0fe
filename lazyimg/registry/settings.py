"""What the configuration says of registries, in the registry client's own terms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lazyimg.registry.retry import RetryPolicy
from lazyimg.registry.transport import TransportLimits
from lazyimg_formats.oci.reference import RegistryLocation

if TYPE_CHECKING:
    from lazyimg.config import RegistrySettings
    from lazyimg.registry.ports import Access
    from lazyimg_formats.oci.reference import Location


def transport_limits(settings: RegistrySettings) -> TransportLimits:
    """Give the bounds of requests."""
    return TransportLimits(
        connections_per_host=settings.connections,
        connect_timeout=settings.connect_timeout,
        read_timeout=settings.read_timeout,
    )


def retry_policy(settings: RegistrySettings) -> RetryPolicy:
    """Give how often a request is tried: once, and then as often as the settings say."""
    return RetryPolicy(attempts=settings.retries + 1)


def apply_settings(access: Access, location: Location, settings: RegistrySettings) -> Access:
    """Give a request's access, completed with what the settings say of its registry."""
    if not isinstance(location, RegistryLocation):
        return access
    reference = location.reference
    host = reference.host
    names = {reference.registry, host, host.rpartition(":")[0] if ":" in host else host}
    return replace(
        access,
        authfile=access.authfile or (Path(settings.authfile) if settings.authfile else None),
        plain_http=access.plain_http or not names.isdisjoint(settings.plain_http),
        insecure=access.insecure or not names.isdisjoint(settings.insecure),
        ca_file=access.ca_file or (Path(settings.ca_file) if settings.ca_file else None),
    )
