"""The way to all registries: one pool of connections, one set of tokens per repository.

    async with RegistryClient() as client:
        repository = client.repository(reference, access)
        descriptor, data = await repository.fetch_manifest(reference.target)

Repositories of one client and one access share tokens and redirects; those of another access
never do; nor do those that were asked for while another credential was given for the repository.
They are forgotten when nobody uses them any more, but for those asked for last. What is known of a
host's health is shared by all.
"""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, Self
from weakref import WeakValueDictionary

from lazyimg.registry.connection import Connection
from lazyimg.registry.credentials import find_credential
from lazyimg.registry.endpoints import Endpoints
from lazyimg.registry.health import Health
from lazyimg.registry.hosts import find_endpoints
from lazyimg.registry.ports import Access
from lazyimg.registry.repository import Repository
from lazyimg.registry.retry import RetryPolicy
from lazyimg.registry.spool import Spool
from lazyimg.registry.traffic import Traffic
from lazyimg.registry.transport import Transport, TransportLimits
from lazyimg.registry.turns import Turns
from lazyimg.registry.upload import DEFAULT_CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from lazyimg.registry.auth import Credential
    from lazyimg.registry.hosts import Endpoint
    from lazyimg.registry.proxies import ProxyRules
    from lazyimg_formats.oci.reference import Reference

MAX_UNUSED: Final = 32
"""Repositories, asked for last, that keep their tokens though nobody may use them any more."""


class RegistryClient:
    """Gives repositories; close it when done, or use it in ``async with``."""

    def __init__(
        self,
        *,
        limits: TransportLimits | None = None,
        policy: RetryPolicy | None = None,
        environ: Mapping[str, str] | None = None,
        chunk_size: int = DEFAULT_CHUNK,
        proxies: ProxyRules | None = None,
        mirror_timeout: float | None = None,
        spool: tuple[Path, int] | None = None,
        given: Callable[[str], Credential | None] = lambda _repository: None,
    ) -> None:
        """Open nothing yet.

        Args:
            limits: of connections and time.
            policy: of tries.
            environ: variables that say where credentials are; the process's own by default.
            chunk_size: bytes of one piece of an upload.
            proxies: which requests go through a proxy.
            mirror_timeout: seconds without a byte after which a mirror is given up; None: as the
                limits say for every host.
            spool: directory for blobs of hosts that send whole ones, and how many bytes it may
                have; None: what was not asked for is passed over.
            given: gives what was given for a repository, for accesses of the node.
        """
        self._transport = Transport(limits or TransportLimits(), proxies)
        self._policy = policy or RetryPolicy()
        self._environ = os.environ if environ is None else environ
        self._chunk_size = chunk_size
        self._mirror_timeout = mirror_timeout
        self._spool = Spool(*(spool or (None, 0)))
        self._given = given
        self._health = Health(time.monotonic)
        self._turns: dict[str, Turns] = {}
        self._traffic: dict[str, Traffic] = {}
        self._repositories: WeakValueDictionary[
            tuple[str, Access, Credential | None], Repository
        ] = WeakValueDictionary()
        self._recent: deque[Repository] = deque(maxlen=MAX_UNUSED)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        await self._spool.close()
        await self._transport.close()

    def repository(self, reference: Reference, access: Access = Access()) -> Repository:  # noqa: B008 - frozen
        """Give the repository of a reference; its tag and digest do not matter. Asks nobody."""
        key = (reference.name, access, self._find_given(reference.name, access))
        repository = self._repositories.get(key)
        if repository is None:
            endpoints = Endpoints(
                reference.name,
                partial(find_endpoints, reference, access, self._mirror_timeout),
                partial(self._connect, reference, access),
                self._health,
                self._policy,
            )
            repository = Repository(reference, endpoints, self._spool, self._chunk_size)
            self._repositories[key] = repository
        if repository in self._recent:
            self._recent.remove(repository)
        self._recent.append(repository)
        return repository

    def traffic(self) -> dict[str, Traffic]:
        """Give what was counted since the start, for each host."""
        return self._traffic

    def cools(self, host: str) -> float:
        """Give the seconds for which a host is not asked because it failed; 0: it is."""
        return self._health.cools(host)

    def _find_given(self, name: str, access: Access) -> Credential | None:
        return self._given(name) if access.node and not access.username else None

    def _connect(self, reference: Reference, access: Access, endpoint: Endpoint) -> Connection:
        if endpoint.is_own:
            name, shown = reference.name, access
        else:  # what was given for the registry is not shown to others
            name = f"{endpoint.host}/{reference.repository}"
            shown = replace(access, username="", password="", node=False)

        async def find() -> Credential | None:
            given = self._find_given(name, shown)
            return given or await find_credential(name, shown, self._environ)

        host, limits = endpoint.host, self._transport.limits
        if host not in self._turns:
            self._turns[host] = Turns(limits.reads_per_host, limits.bytes_per_host)
        return Connection(
            reference,
            endpoint,
            self._transport,
            find,
            self._policy,
            traffic=self._traffic.setdefault(host, Traffic()),
            turns=self._turns[host],
            node=access.node,
        )
