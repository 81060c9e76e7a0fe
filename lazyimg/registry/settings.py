"""What the configuration says of registries, in the registry client's own terms."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lazyimg.registry.client import RegistryClient
from lazyimg.registry.proxies import NO_PROXY, ProxyRules, parse_proxy
from lazyimg.registry.retry import RetryPolicy
from lazyimg.registry.transport import Transport, TransportLimits
from lazyimg_formats.oci.reference import RegistryLocation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lazyimg.config import RegistrySettings
    from lazyimg.registry.auth import Credential
    from lazyimg.registry.ports import Access
    from lazyimg_formats.oci.reference import Location, Reference


def transport_limits(settings: RegistrySettings) -> TransportLimits:
    """Give the bounds of requests."""
    return TransportLimits(
        reads_per_host=settings.connections,
        bytes_per_host=settings.bytes_in_flight,
        connect_timeout=settings.connect_timeout,
        read_timeout=settings.read_timeout,
    )


def retry_policy(settings: RegistrySettings, patience: float | None = None) -> RetryPolicy:
    """Give how often a request is tried: once, and then as often as the settings say.

    Args:
        settings: of the configuration.
        patience: seconds that those who ask wait at most; a registry that wants to be left alone
            for longer is given up at once. None: as the policy has it.
    """
    policy = RetryPolicy(attempts=settings.retries + 1)
    return policy if patience is None else replace(policy, max_retry_after=patience)


def proxy_rules(settings: RegistrySettings, environ: Mapping[str, str]) -> ProxyRules:
    """Give which requests go through a proxy.

    Raises:
        ConfigurationError: the settings' proxy is none.
    """
    if settings.proxy not in {"", NO_PROXY}:
        parse_proxy(settings.proxy)
    return ProxyRules.of(environ, settings.proxy, settings.no_proxy)


def make_transport(settings: RegistrySettings, environ: Mapping[str, str]) -> Transport:
    """Give what sends single requests; raises as `proxy_rules`."""
    return Transport(transport_limits(settings), proxy_rules(settings, environ))


def make_client(
    settings: RegistrySettings,
    environ: Mapping[str, str] | None = None,
    *,
    spool: Path | None = None,
    patience: float | None = None,
    given: Callable[[str], Credential | None] = lambda _repository: None,
) -> RegistryClient:
    """Give a client as the settings, and the process's environment, have it.

    Args:
        settings: of the configuration.
        environ: the process's by default.
        spool: directory for blobs of hosts that send whole ones.
        patience: see `retry_policy`.
        given: see `RegistryClient`.

    Raises:
        ConfigurationError: the settings' proxy is none.
    """
    variables = os.environ if environ is None else environ
    return RegistryClient(
        limits=transport_limits(settings),
        policy=retry_policy(settings, patience),
        environ=variables,
        proxies=proxy_rules(settings, variables),
        mirror_timeout=settings.mirror_timeout,
        spool=None if spool is None else (spool, settings.spool),
        given=given,
    )


def apply_settings(access: Access, location: Location, settings: RegistrySettings) -> Access:
    """Give a request's access, completed with what the settings say of its registry."""
    if not isinstance(location, RegistryLocation):
        return access
    return complete_access(access, location.reference, settings)


def complete_access(access: Access, reference: Reference, settings: RegistrySettings) -> Access:
    """Give the access to a repository, completed with what the settings say of its registry."""
    host = reference.host
    names = {reference.registry, host, host.rpartition(":")[0] if ":" in host else host}
    return replace(
        access,
        authfile=access.authfile or (Path(settings.authfile) if settings.authfile else None),
        plain_http=access.plain_http or not names.isdisjoint(settings.plain_http),
        insecure=access.insecure or not names.isdisjoint(settings.insecure),
        ca_file=access.ca_file or (Path(settings.ca_file) if settings.ca_file else None),
        hosts_dir=access.hosts_dir or (Path(settings.hosts_dir) if settings.hosts_dir else None),
    )
