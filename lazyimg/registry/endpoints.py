"""The hosts of one repository: in which order they are asked, and who is asked when one fails.

Mirrors go before the registry, in the order of their file. One that fails is passed over for a
while (`health`), and the next one is asked at once; the last one, most often the registry itself,
is always asked. When it fails, too, in a way that may pass, mirrors that were passed over get a
last chance, and then the whole is tried again as the retry policy says.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING, Final, TypeVar

from lazyimg.errors import ConfigurationError, LazyimgError, RegistryError, StorageError
from lazyimg.logs import Repeats
from lazyimg.registry.retry import plan_retry, retry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from lazyimg.registry.connection import Connection
    from lazyimg.registry.health import Health
    from lazyimg.registry.hosts import Endpoint
    from lazyimg.registry.retry import RetryPolicy

    FindEndpoints = Callable[[], tuple[Endpoint, ...]]
    Connect = Callable[[Endpoint], Connection]

T = TypeVar("T")

REFRESH: Final = 30.0
"""Seconds after which the files that name the hosts are read again."""

logger = logging.getLogger(__name__)


class PassedOverError(RegistryError):
    """Another host may answer sooner: no failure of this one."""


class Endpoints:
    """The hosts of one repository with one access.

    Args:
        name: what messages call the repository.
        find: reads which hosts there are; blocks.
        connect: makes the connection to one of them.
        health: what is known of all hosts.
        policy: of tries.
    """

    def __init__(
        self,
        name: str,
        find: FindEndpoints,
        connect: Connect,
        health: Health,
        policy: RetryPolicy,
    ) -> None:
        self.name = name
        self.health = health
        self._find = find
        self._connect = connect
        self._policy = policy
        self._found: tuple[Endpoint, ...] = ()
        self._connections: list[Connection] = []
        self._due = 0.0
        self._loading = asyncio.Lock()
        self._repeats = Repeats()

    async def all(self) -> Sequence[Connection]:
        """Give the connections to all hosts, in the order of their file.

        Raises:
            ConfigurationError: the file makes no sense, and never did.
        """
        if time.monotonic() < self._due:
            return self._connections
        async with self._loading:
            if time.monotonic() >= self._due:
                await self._load()
        return self._connections

    async def _load(self) -> None:
        try:
            found = await asyncio.to_thread(self._find)
        except ConfigurationError as error:
            if not self._found:
                raise
            found = self._found
            logger.warning("%s: its hosts stay as they were: %s", self.name, error)
        self._due = time.monotonic() + REFRESH
        if found != self._found:
            known = dict(zip(self._found, self._connections, strict=True))
            self._connections = [known.get(one) or self._connect(one) for one in found]
            self._found = found

    async def target(self) -> Connection:
        """Give the connection for pushes: the first host that takes them, or the last one."""
        connections = await self.all()
        for connection in connections:
            if "push" in connection.endpoint.capabilities:
                return connection
        return connections[-1]

    async def candidates(self, capability: str, subject: str) -> list[Connection]:
        """Give whom to ask, one after the other, as long as `note_failure` says so."""
        connections = await self.all()
        usable = [one for one in connections if capability in one.endpoint.capabilities]
        asked: list[Connection] = []
        passed_over: list[Connection] = []
        for connection in usable or connections[-1:]:
            endpoint = connection.endpoint
            cools = not endpoint.final and self.health.cools(endpoint.host, subject)
            (passed_over if cools else asked).append(connection)
        return asked + passed_over

    def note_failure(self, connection: Connection, subject: str, error: LazyimgError) -> bool:
        """Learn how a host failed; tells whether another one may be asked."""
        if isinstance(error, StorageError):
            return False
        if isinstance(error, PassedOverError):
            return True
        endpoint = connection.endpoint
        if endpoint.final:
            return isinstance(error, RegistryError) and error.retryable
        self.health.note_failure(endpoint.host, subject, error)
        more = self._repeats.due((endpoint.host, error.kind))
        if more is not None:
            logger.warning("%s: mirror %s fails: %s%s", self.name, endpoint.host, error, more)
        return True

    async def ask(
        self, capability: str, subject: str, operation: Callable[[Connection], Awaitable[T]]
    ) -> T:
        """Give what `operation` gives at the first host that answers.

        Args:
            capability: what the host must be good for: pull or resolve.
            subject: what is asked for, so that a host that lacks it is not asked for it again.
            operation: asks one host.

        Raises:
            LazyimgError: no host answers; the last one's error.
        """

        async def once() -> T:
            failure: LazyimgError | None = None
            for connection in await self.candidates(capability, subject):
                try:
                    result = await operation(connection)
                except LazyimgError as error:
                    failure = worst(failure, connection, error)
                    if not self.note_failure(connection, subject, error):
                        raise
                else:
                    self.health.note_success(connection.endpoint.host)
                    return result
            raise failure or _no_host(self.name)

        return await retry(once, self._policy)

    async def wait(self, attempt: int, error: LazyimgError | None) -> None:
        """Wait before the next try, after `attempt` tries; raises `error` if there is none."""
        if not isinstance(error, RegistryError):
            raise error or _no_host(self.name)
        delay = plan_retry(self._policy, attempt, error, random.random())  # noqa: S311 - jitter
        if delay is None:
            raise error
        await asyncio.sleep(delay)


def worst(known: LazyimgError | None, connection: Connection, error: LazyimgError) -> LazyimgError:
    """Give the failure to tell of: the last host's, which is the registry's, goes before others."""
    return error if known is None or connection.endpoint.final else known


def _no_host(name: str) -> RegistryError:
    return RegistryError(name, "has no host to ask")
