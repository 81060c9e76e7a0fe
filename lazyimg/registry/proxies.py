"""Which HTTP proxy a request goes through.

Source: the environment variables as Go's golang.org/x/net/http/httpproxy reads them, so that a
node's settings mean the same to containerd and to lazyimg.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from yarl import URL

from lazyimg.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NO_PROXY: Final = "none"
"""A setting's word for: no proxy, whatever the environment says."""

_SCHEMES: Final = frozenset({"http", "https"})


def is_loopback(host: str) -> bool:
    """Tell whether a host, without port, is this machine's loopback interface."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_proxy(text: str) -> URL:
    """Give a proxy's URL; without a scheme it is ``http://``.

    Raises:
        ConfigurationError: no URL, or a proxy of another kind.
    """
    try:
        url = URL(text if "://" in text else f"http://{text}")
        good = url.scheme in _SCHEMES and url.host and url.port
    except ValueError:
        good = False
    if not good:
        raise ConfigurationError(
            "proxy", "expected the URL of an HTTP proxy", "write it as http://HOST:PORT"
        )
    return url


@dataclass(frozen=True, slots=True)
class ProxyRules:
    """Which proxy is for which URL. The loopback interface is never reached through one.

    Attributes:
        http: for plain HTTP; "" for none. Both may hold a user name and password.
        https: for HTTPS, by CONNECT.
        no_proxy: hosts that are reached directly: a domain with all below it, ``.domain`` for
            those below it only, an address, a network such as 10.0.0.0/8, each but a network with
            a port or without; ``*`` for all.
    """

    http: str = ""
    https: str = ""
    no_proxy: tuple[str, ...] = ()

    @classmethod
    def of(cls, environ: Mapping[str, str], proxy: str = "", no_proxy: Sequence[str] = ()) -> Self:
        """Give the rules of an environment, or those of settings that replace it.

        Args:
            environ: HTTP_PROXY, HTTPS_PROXY, NO_PROXY, and the same in lower case.
            proxy: for everything, in place of the environment's; `NO_PROXY` for none.
            no_proxy: added to the environment's.
        """

        def variable(name: str) -> str:
            return environ.get(name) or environ.get(name.lower()) or ""

        direct = tuple(part.strip().lower() for part in variable("NO_PROXY").split(","))
        direct += tuple(part.strip().lower() for part in no_proxy)
        if proxy:
            one = "" if proxy == NO_PROXY else proxy
            return cls(one, one, direct)
        # HTTP_PROXY of a CGI process is whatever a client sent: not ours to know better
        return cls(variable("HTTP_PROXY"), variable("HTTPS_PROXY"), direct)

    def __repr__(self) -> str:
        """Leave passwords out."""
        return f"ProxyRules(no_proxy={self.no_proxy!r})"

    def find(self, url: URL) -> str:
        """Give the proxy for a URL; "" for none."""
        proxy = self.https if url.scheme == "https" else self.http
        host = (url.host or "").lower().rstrip(".")
        if not proxy or is_loopback(host):
            return ""
        return "" if any(_covers(rule, host, url.port) for rule in self.no_proxy) else proxy


def _covers(rule: str, host: str, port: int | None) -> bool:
    if rule == "*":
        return True
    if "/" in rule:
        return _in_network(rule, host)
    name, colon, number = rule.rpartition(":")
    if colon and number.isdecimal() and (":" not in name or name.endswith("]")):
        if int(number[:6]) != port:
            return False
        rule = name
    rule = rule.removeprefix("*").strip("[]")
    if rule.startswith("."):
        return host.endswith(rule)
    return bool(rule) and (host == rule or (host.endswith(f".{rule}") and not _is_address(host)))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _in_network(rule: str, host: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(rule, strict=False)
    except ValueError:
        return False
