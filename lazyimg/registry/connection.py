"""Requests to one repository at one host: authorized, refusals as errors, tried again.

Where an endpoint does not say, the origin is ``https://host``; for a host on the loopback
interface that does not speak TLS it is ``http://host``; with `Route.plain_http` it is always that.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from yarl import URL

from lazyimg.errors import (
    AccessDeniedError,
    CorruptError,
    LazyimgError,
    NotFoundError,
    RegistryError,
)
from lazyimg.registry.auth import MAX_TOKEN_REPLY, Authenticator, parse_challenges
from lazyimg.registry.proxies import is_loopback
from lazyimg.registry.redact import printable, redact_url
from lazyimg.registry.retry import (
    RETRYABLE_STATUSES,
    RegistryBusyError,
    RetryPolicy,
    parse_retry_after,
    plan_retry,
    retry,
)
from lazyimg.registry.traffic import Traffic
from lazyimg.registry.transport import (
    NotTlsError,
    Transport,
    read_body,
    same_origin,
)
from lazyimg.registry.turns import Turns
from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.documents import parse_errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Container, Mapping, Sequence

    from aiohttp import ClientResponse

    from lazyimg.registry.auth import Credential
    from lazyimg.registry.hosts import Endpoint
    from lazyimg.registry.transport import Route
    from lazyimg_formats.oci.reference import Reference

T = TypeVar("T")

MAX_ERROR_BODY: Final = 1 << 16
"""Bytes that are read of an answer that refuses."""

TOKEN_USER: Final = "<token>"  # noqa: S105 - as credential helpers have it
"""What the holder of an identity token is called."""

NODE_USER: Final = "<node>"
"""What whoever had containerd pull is called: once they have, the node has the image."""

NODE_REMEDY: Final = (
    "have it pulled again through lazyimg's image service, which keeps a pull's credentials for a"
    " while, or put some into the file of registry.authfile"
)
"""What to do when containerd's images cannot be read."""

_FORM: Final = "application/x-www-form-urlencoded"


class Connection:
    """One repository at one host with one access: its origin, its tokens.

    Args:
        reference: names registry and repository.
        endpoint: the host to ask.
        transport: sends requests.
        find_credential: gives what to show this host.
        policy: of tries.
        traffic: counts what goes over it.
        turns: limits the reads at this host.
        node: see `Access`.
    """

    def __init__(
        self,
        reference: Reference,
        endpoint: Endpoint,
        transport: Transport,
        find_credential: Callable[[], Awaitable[Credential | None]],
        policy: RetryPolicy,
        *,
        traffic: Traffic | None = None,
        turns: Turns | None = None,
        node: bool = False,
    ) -> None:
        limits = transport.limits
        self.reference = reference
        self.endpoint = endpoint
        self.transport = transport
        self.traffic = traffic or Traffic()
        self.turns = turns or Turns(limits.reads_per_host, limits.bytes_per_host)
        self._policy = policy
        self._node = node
        self._find_credential = find_credential
        self._root = endpoint.root
        self._finding_root = asyncio.Lock()
        self._authenticator = Authenticator(
            reference.name,
            find_credential,
            _Tokens(transport, endpoint.route, endpoint.host),
            time.monotonic,
        )

    async def user(self) -> str:
        """Give the user name in the credential for this host; "" without one.

        Raises:
            ConfigurationError: the credential cannot be read.
        """
        if self._node:
            return NODE_USER
        credential = await self._find_credential()
        return "" if credential is None else credential.username or TOKEN_USER

    async def url(self, path: str) -> URL:
        """Give the URL of ``/v2/<repository>/<path>``.

        Raises:
            RegistryError: a loopback registry cannot be asked whether it speaks TLS.
        """
        url = (await self.root()) / self.reference.repository / path
        namespace = self.endpoint.namespace
        return url.with_query({"ns": namespace}) if namespace else url

    async def root(self) -> URL:
        """Give the URL of the registry's API; raises as `url`."""
        async with self._finding_root:
            if self._root is None:
                self._root = await self._find_origin() / "v2"
            return self._root

    async def _find_origin(self) -> URL:
        host = self.reference.host
        plain, secure = URL(f"http://{host}"), URL(f"https://{host}")
        try:
            name = secure.host or ""
        except UnicodeError as error:  # of xn--
            raise RegistryError(self.reference.name, "names an impossible host") from error
        if self.endpoint.route.plain_http:
            return plain
        if not is_loopback(name):
            return secure
        try:
            async with self.transport.send(
                "GET", secure / "v2/", self.endpoint.route, headers={}, follow=False
            ):
                return secure
        except NotTlsError:
            return plain

    @asynccontextmanager
    async def open(
        self,
        method: str,
        url: URL,
        *,
        what: str,
        expect: Container[int],
        scopes: tuple[str, ...],
        headers: Mapping[str, str] | None = None,
        data: bytes | None = None,
        follow: bool = False,
    ) -> AsyncIterator[ClientResponse]:
        """Give the answer to one authorized request, if its status is one of `expect`.

        A 401 or 403 of the registry itself leads to one renewal of the authorization.

        Raises:
            AccessDeniedError: 401 or 403, also with renewed authorization.
            NotFoundError: 404; `what` is named.
            CorruptError: the registry says that a digest does not fit.
            RegistryError: any other status, or no answer.
        """
        with self.traffic.request():
            try:
                async with self._open(
                    method, url, what=what, expect=expect, scopes=scopes,
                    headers=headers, data=data, follow=follow,
                ) as response:  # fmt: skip
                    yield response
            except AccessDeniedError as error:
                if self._node:
                    raise AccessDeniedError(error.what, error.problem, NODE_REMEDY) from error
                raise

    @asynccontextmanager
    async def _open(
        self,
        method: str,
        url: URL,
        *,
        what: str,
        expect: Container[int],
        scopes: tuple[str, ...],
        headers: Mapping[str, str] | None,
        data: bytes | None,
        follow: bool,
    ) -> AsyncIterator[ClientResponse]:
        sent = dict(headers or {})
        ours = same_origin(url, await self.root())
        authorization = await self._authenticator.header(scopes) if ours else ""
        for renewed in (False, True):
            if authorization:
                sent["Authorization"] = authorization
            async with self.transport.send(
                method, url, self.endpoint.route, headers=sent, data=data, follow=follow
            ) as response:
                if response.status in expect:
                    yield response
                    return
                local = ours and same_origin(url, response.url)
                challenges = parse_challenges(response.headers.getall("WWW-Authenticate", []))
                refused = response.status == 401 or (response.status == 403 and authorization)
                if renewed or not local or not refused:
                    raise await refusal(response, what, self.endpoint.host, local=local)
            authorization = await self._authenticator.renew(scopes, challenges, authorization)

    async def retry(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Give what `operation` gives, tried again as the policy allows."""
        return await retry(operation, self._policy)

    async def wait(self, attempt: int, error: RegistryError) -> None:
        """Wait before the next try, after `attempt` tries; raises `error` if there is none."""
        delay = plan_retry(self._policy, attempt, error, random.random())  # noqa: S311 - jitter
        if delay is None:
            raise error
        await asyncio.sleep(delay)


class _Tokens:
    """The authorization service, over HTTP."""

    def __init__(self, transport: Transport, route: Route, registry: str) -> None:
        self._transport = transport
        self._route = route
        self._registry = registry

    async def fetch_token(
        self, realm: str, query: Sequence[tuple[str, str]], authorization: str
    ) -> bytes:
        headers = {"Authorization": authorization} if authorization else {}
        return await self._ask(
            "GET", parse_realm(self._registry, realm).extend_query(query), headers, None
        )

    async def post_token(self, realm: str, form: Sequence[tuple[str, str]]) -> bytes:
        url = parse_realm(self._registry, realm)
        data = URL.build(query=form).raw_query_string.encode()
        return await self._ask("POST", url, {"Content-Type": _FORM}, data)

    async def _ask(
        self, method: str, url: URL, headers: Mapping[str, str], data: bytes | None
    ) -> bytes:
        async with self._transport.send(
            method, url, self._route, headers=headers, data=data, follow=method == "GET"
        ) as response:
            if response.status == 200:
                return await read_body(response, MAX_TOKEN_REPLY)
            raise await refusal(response, redact_url(url), self._registry, local=True)


def parse_realm(registry: str, realm: str) -> URL:
    """Give the URL of the authorization service that a registry names; raises RegistryError."""
    try:
        url = URL(realm)
        possible = url.scheme in {"http", "https"} and url.host
    except ValueError:  # also of a host's name
        possible = None
    if not possible:
        raise RegistryError(registry, "names an impossible authorization service")
    return url


async def refusal(
    response: ClientResponse, what: str, registry: str, *, local: bool
) -> LazyimgError:
    """Give the error for an answer that is none of those expected.

    Args:
        response: the answer; its body may be read.
        what: what was asked for.
        registry: whose credentials were shown.
        local: whether it came from the registry itself, not from where it redirected to.
    """
    codes, said = await _read_errors(response)
    status = response.status
    place = "the registry" if local else redact_url(response.url)
    problem = f"{place} answers {status}{said}"
    if local and status in {401, 403}:
        return AccessDeniedError(
            what,
            problem,
            f"log in with 'lazyimg login {registry}' or give --authfile, and check that the"
            " repository exists",
        )
    if local and status == 404:
        return NotFoundError(what, problem)
    if "DIGEST_INVALID" in codes:
        return CorruptError(what, problem)
    if status in RETRYABLE_STATUSES:
        return _passing(response, what, problem)
    if status == 416:
        problem += ": it is shorter than the image says"
    expired = not local and status in {400, 401, 403, 404}  # a signed URL, cut short
    return RegistryError(what, problem, status=status, retryable=expired)


def _passing(response: ClientResponse, what: str, problem: str) -> RegistryError:
    status = response.status
    remedy = "log in for a higher limit, or try again later" if status == 429 else ""
    seconds = parse_retry_after(response.headers.get("Retry-After", ""), time.time())
    if seconds is None:
        return RegistryError(what, problem, remedy, status=status, retryable=True)
    return RegistryBusyError(what, problem, remedy, status=status, retry_after=seconds)


async def _read_errors(response: ClientResponse) -> tuple[set[str], str]:
    """Give the codes in a refusal's body, and what it says, to be put behind the status."""
    if response.method == "HEAD":
        return set(), ""
    try:
        entries = parse_errors(await read_body(response, MAX_ERROR_BODY))
    except (FormatError, RegistryError):
        return set(), ""  # a refusal need not have such a body
    if not entries:
        return set(), ""
    text = printable(f"{entries[0].code} {entries[0].message}")
    return {entry.code for entry in entries}, f" ({text})" if text else ""
