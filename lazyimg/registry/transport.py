"""One HTTP request: TLS, plain HTTP only where allowed, redirects, timeouts, connection limits.

Redirects are followed here, by hand: the Authorization header goes to the origin (scheme, host and
port) that it was meant for and to no other, and never from HTTPS to HTTP. Statuses are the
caller's business; whatever prevents an answer is a RegistryError.

A connection belongs to its request until the answer's body has been read or left. There are as many
as there are requests: who waited here for a connection would wait for requests that hang, of
whatever image. Reads of blobs, which are many, wait for turns before (`turns`).
"""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import ssl
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import aiohttp
from yarl import URL

from lazyimg.errors import ConfigurationError, RegistryError
from lazyimg.registry.names import Names
from lazyimg.registry.proxies import ProxyRules, is_loopback, parse_proxy
from lazyimg.registry.redact import redact_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

USER_AGENT: Final = "lazyimg"

REFRESH: Final = 30.0
"""Seconds after which files of certificates and keys are looked at again."""

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """Bounds of all requests together.

    Attributes:
        reads_per_host: of blobs, at a time.
        bytes_per_host: that reads may have asked of one host and that have not come yet.
        connect_timeout: seconds until TCP and TLS are up.
        read_timeout: seconds without a byte from the other side.
        redirects: followed in one request.
    """

    reads_per_host: int = 16
    bytes_per_host: int = 64 << 20
    connect_timeout: float = 10.0
    read_timeout: float = 30.0
    redirects: int = 10


class NotTlsError(RegistryError):
    """The other side does not speak TLS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How one host, and where it redirects to, is reached.

    Attributes:
        plain_http: allow HTTP without TLS beyond the loopback interface.
        insecure: do not verify certificates.
        ca_files: further root certificates (PEM).
        client: certificates and keys to show; a key of None is in the certificate's file.
        headers: sent with each request to the host itself.
        connect_timeout: seconds until TCP and TLS are up; None: as the transport's limits say.
        read_timeout: seconds without a byte from the other side; None: likewise.
        proxy: URL of a proxy; "": as the transport's rules say.
    """

    plain_http: bool = False
    insecure: bool = False
    ca_files: tuple[Path, ...] = ()
    client: tuple[tuple[Path, Path | None], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    connect_timeout: float | None = None
    read_timeout: float | None = None
    proxy: str = ""

    def __repr__(self) -> str:
        """Leave out what may hold secrets."""
        return f"Route(plain_http={self.plain_http!r}, insecure={self.insecure!r})"


class Transport:
    """Sends requests to any host over one pool of connections; close it when done.

    Args:
        limits: of connections and time.
        proxies: which requests go through a proxy.
    """

    def __init__(self, limits: TransportLimits, proxies: ProxyRules | None = None) -> None:
        self.limits = limits
        self._proxies = proxies or ProxyRules()
        self._session: aiohttp.ClientSession | None = None
        self._names: Names | None = None
        self._contexts: dict[tuple[object, ...], _Certificates] = {}

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None
        if self._names is not None:
            await self._names.close()
            self._names = None

    @asynccontextmanager
    async def send(
        self,
        method: str,
        url: URL,
        route: Route,
        *,
        headers: Mapping[str, str],
        data: bytes | None = None,
        follow: bool = True,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Give the answer to a request; its `url` is the last one after redirects.

        Args:
            method: of HTTP.
            url: the registry's, or one that it gave.
            route: how this host is reached; its client certificates and headers are its own.
            headers: Authorization among them goes to `url`'s origin only.
            data: body of the request.
            follow: whether to follow redirects (GET only).

        Raises:
            RegistryError: no answer, too many redirects, or one that is not allowed. Also for
                what goes wrong while the answer is being read inside the context.
        """
        async with _translated(url):
            for _ in range(self.limits.redirects + 1):
                response = await self._send_once(method, url, route, headers, data)
                async with response:
                    if not follow or response.status not in _REDIRECTS:
                        yield response
                        return
                    target = _redirect_target(response)
                if not same_origin(url, target):
                    headers = {k: v for k, v in headers.items() if k.lower() != "authorization"}
                    route = replace(route, client=(), headers=())
                url = target
        raise RegistryError(redact_url(url), f"over {self.limits.redirects} redirects")

    async def _send_once(
        self,
        method: str,
        url: URL,
        route: Route,
        headers: Mapping[str, str],
        data: bytes | None,
    ) -> aiohttp.ClientResponse:
        if url.scheme == "http" and not route.plain_http and not is_loopback(url.host or ""):
            raise RegistryError(
                redact_url(url), "is plain HTTP", "allow that with --plain-http where it is right"
            )
        context = await self._context(route) if url.scheme == "https" else True
        proxy = route.proxy or self._proxies.find(url)
        through = parse_proxy(proxy) if proxy else None
        limits = self.limits
        sent: list[tuple[str, str]] = [("Accept-Encoding", "identity"), *route.headers]
        sent += headers.items()
        shown = _proxy_credential(through)
        if url.scheme == "http":  # the proxy reads the request itself, else what opens the tunnel
            sent += shown.items()
        try:
            return await self._open_session().request(
                method,
                url.with_user(None),  # nobody's credentials come out of a URL
                headers=sent,
                data=data,
                ssl=context,
                allow_redirects=False,
                proxy=None if through is None else through.with_user(None),
                proxy_headers=shown if url.scheme == "https" else None,
                timeout=aiohttp.ClientTimeout(
                    total=None,
                    sock_connect=route.connect_timeout or limits.connect_timeout,
                    sock_read=route.read_timeout or limits.read_timeout,
                ),
            )
        except (aiohttp.InvalidURL, UnicodeError) as error:  # the latter: a host's name
            raise RegistryError(redact_url(url), "is an impossible URL") from error

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._names = Names()
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, resolver=self._names),
                headers={"User-Agent": USER_AGENT},
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                requote_redirect_url=False,
                read_bufsize=1 << 18,
            )
        return self._session

    async def _context(self, route: Route) -> ssl.SSLContext:
        key = (route.ca_files, route.client, route.insecure)
        known = self._contexts.get(key)
        if known is not None and time.monotonic() < known.due:
            return known.context
        state = await asyncio.to_thread(_state_of_files, route)
        if known is None or known.state != state:
            context = await asyncio.to_thread(_make_context, route)
        else:
            context = known.context
        self._contexts[key] = _Certificates(context, state, time.monotonic() + REFRESH)
        return context


@dataclass(frozen=True, slots=True)
class _Certificates:
    """What was read from a route's files, what they were like then, and when to look again."""

    context: ssl.SSLContext
    state: tuple[tuple[int, int, int] | None, ...]
    due: float


def _state_of_files(route: Route) -> tuple[tuple[int, int, int] | None, ...]:
    """Give what changes when a file of certificates or keys is written anew."""
    files = [*route.ca_files, *(file for pair in route.client for file in pair if file)]
    states: list[tuple[int, int, int] | None] = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            states.append(None)
        else:
            states.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(states)


def _make_context(route: Route) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for file in route.ca_files:
        try:
            context.load_verify_locations(cafile=file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                str(file), "holds no certificates that can be read (PEM)"
            ) from error
    for certificate, key in route.client:
        try:
            context.load_cert_chain(certificate, key, password="")
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                str(certificate), "holds, with its key, no certificate that can be read (PEM)"
            ) from error
    if route.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _proxy_credential(proxy: URL | None) -> dict[str, str]:
    if proxy is None or not proxy.user:
        return {}
    raw = f"{proxy.user}:{proxy.password or ''}".encode()
    return {"Proxy-Authorization": f"Basic {base64.b64encode(raw).decode()}"}


def same_origin(one: URL, other: URL) -> bool:
    """Tell whether two URLs have scheme, host and port in common."""
    return (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)


def join_location(base: URL, location: str) -> URL | None:
    """Give the URL in a Location header of an answer from `base`; None for an impossible one."""
    try:
        url = base.join(URL(location, encoded=True))
        possible = url.scheme in {"http", "https"} and url.host and url.port
    except ValueError:
        return None
    return url if location and possible else None


def _redirect_target(response: aiohttp.ClientResponse) -> URL:
    what = redact_url(response.url)
    target = join_location(response.url, response.headers.get("Location", ""))
    if target is None:
        raise RegistryError(what, "redirects to an impossible place", status=response.status)
    if response.url.scheme == "https" and target.scheme == "http":
        raise RegistryError(
            what, f"redirects from HTTPS to plain HTTP at {target.host}", status=response.status
        )
    return target


@asynccontextmanager
async def _translated(url: URL) -> AsyncIterator[None]:
    what = redact_url(url)
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        raise RegistryError(
            what,
            f"its certificate cannot be verified: {_reason(error.certificate_error)}",
            "give its authority with --ca-file, or --insecure where that is right",
        ) from error
    except (aiohttp.ClientConnectorSSLError, ssl.SSLError) as error:
        raise NotTlsError(what, "does not speak TLS as expected") from error
    except aiohttp.ClientProxyConnectionError as error:
        raise RegistryError(
            what, f"the proxy {error.host} cannot be reached: {_reason(error)}", retryable=True
        ) from error
    except aiohttp.ClientHttpProxyError as error:
        raise RegistryError(
            what, f"the proxy answers {error.status}", retryable=error.status >= 500
        ) from error
    except aiohttp.ClientConnectorDNSError as error:
        missing = getattr(error.os_error, "errno", None) == socket.EAI_NONAME
        raise RegistryError(
            what, "no such host" if missing else "name service fails", retryable=not missing
        ) from error
    except TimeoutError as error:
        raise RegistryError(what, "no answer in time", retryable=True) from error
    except (aiohttp.ClientError, OSError) as error:
        raise RegistryError(what, f"connection fails: {_reason(error)}", retryable=True) from error


def _reason(error: BaseException) -> str:
    """Give an error's own words, without the URLs that aiohttp puts into them."""
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return type(error).__name__


async def read_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Give the whole body of an answer.

    Raises:
        RegistryError: it has over `limit` bytes.
    """
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > limit:
            raise RegistryError(
                redact_url(response.url),
                f"answers with over {limit} bytes",
                status=response.status,
            )
        parts.append(part)
    return b"".join(parts)
