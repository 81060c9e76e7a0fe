"""Which hosts serve a registry's images: hosts.toml, as containerd reads it.

Source: containerd's docs/hosts.md. The `server` is asked last; without one the registry itself is.
Paths in a file may be relative to its directory; `parse_hosts` gives them absolute. Keys that are
not known here are passed over, as containerd does.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lazyimg_formats.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_HOSTS_FILE: Final = 1 << 18
"""Bytes of a hosts.toml."""

MAX_HOSTS: Final = 64
"""Hosts in a file."""

MAX_TEXT: Final = 4096
"""Characters of a path, URL or header."""

CAPABILITIES: Final = frozenset({"pull", "resolve", "push"})

_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0,
                 "h": 3600.0}  # fmt: skip
_DURATION_PART: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{0,9})?)(ns|us|µs|μs|ms|s|m|h)")
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}", re.ASCII)
_HOST: Final = r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?"
_URL: Final = re.compile(rf"(https?)://({_HOST})((?:/[!$%&'()*+,;=:@\w.~-]*)*)", re.ASCII)
_PROXY: Final = re.compile(rf"(?:https?|socks5h?)://(?:[^\s/?#@\\]*@)?{_HOST}/?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One host of a file, or the file's server.

    Attributes:
        root: URL of its API, such as ``https://mirror.test:5000/v2``; "" for a server that the
            file does not name: the registry itself.
        capabilities: of `CAPABILITIES`.
        says_capabilities: whether the file lists them; without a list it has all.
        ca: paths of certificates of authorities (PEM).
        client: paths of client certificates and their keys; "" for a key in the same file.
        skip_verify: whether its certificate is left unverified; None if the file does not say.
        headers: names and values to send with each request.
        dial_timeout: seconds to connect; None if the file does not say.
        proxy: URL of the proxy to reach it through; "" if the file does not say.
    """

    root: str = ""
    capabilities: frozenset[str] = CAPABILITIES
    says_capabilities: bool = False
    ca: tuple[str, ...] = ()
    client: tuple[tuple[str, str], ...] = ()
    skip_verify: bool | None = None
    headers: tuple[tuple[str, str], ...] = ()
    dial_timeout: float | None = None
    proxy: str = ""


def directory_names(registry: str) -> tuple[str, ...]:
    """Give the names of a registry's directory, in the order to look for them.

    Args:
        registry: host with optional port, as a reference has it.
    """
    host, colon, port = registry.rpartition(":")
    if not colon or not port.isdecimal():
        return registry, "_default"
    return f"{host}_{port}_", registry, "_default"


def parse_hosts(data: bytes, directory: str) -> tuple[Host, ...]:
    """Give the hosts of a hosts.toml in the order to ask them; the last one is the server.

    Args:
        data: the file.
        directory: where it is, absolute.

    Raises:
        FormatError: no TOML, or a value that makes no sense.
    """
    if len(data) > MAX_HOSTS_FILE:
        raise FormatError("hosts.toml", f"has {len(data)} bytes, at most {MAX_HOSTS_FILE} allowed")
    try:
        document = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise FormatError("hosts.toml", f"is not TOML: {error}") from error
    tables = document.get("host", {})
    if not isinstance(tables, dict) or not all(isinstance(one, dict) for one in tables.values()):
        raise _wrong("host", 'tables, [host."URL"]')
    if len(tables) > MAX_HOSTS:
        raise FormatError("hosts.toml", f"names {len(tables)} hosts, at most {MAX_HOSTS} allowed")
    hosts = [_parse_host(_root(url, table), table, directory) for url, table in tables.items()]
    server = document.get("server", "")
    root = _root(_text("server", server), document) if server != "" else ""
    return (*hosts, _parse_host(root, document, directory))


def _parse_host(root: str, table: Mapping[str, Any], directory: str) -> Host:
    def absolute(path: str) -> str:
        return path if path.startswith("/") else f"{directory}/{path}"

    said = _texts("capabilities", table.get("capabilities", []))
    capabilities = frozenset(name.lower() for name in said)
    if not capabilities <= CAPABILITIES:
        raise _wrong("capabilities", "a list of pull, resolve, push")
    verify = table.get("skip_verify")
    if not isinstance(verify, bool | None):
        raise _wrong("skip_verify", "true or false")
    return Host(
        root=root,
        capabilities=capabilities or CAPABILITIES,
        says_capabilities=bool(capabilities),
        ca=tuple(map(absolute, _texts("ca", table.get("ca", [])))),
        client=tuple(_parse_client(table.get("client", []), absolute)),
        skip_verify=verify,
        headers=tuple(_parse_headers(table.get("header", {}))),
        dial_timeout=_parse_duration(table.get("dial_timeout", "")),
        proxy=_parse_proxy(table.get("proxy", "")),
    )


def _root(text: str, table: Mapping[str, Any]) -> str:
    """Give the URL of a host's API."""
    override = table.get("override_path", False)
    if not isinstance(override, bool):
        raise _wrong("override_path", "true or false")
    _text("host", text)
    match = _URL.fullmatch(text if text.startswith(("http://", "https://")) else f"https://{text}")
    if match is None:
        raise _wrong("host", "a URL with a host, and without user, query and fragment")
    scheme, host, path = match.groups()
    parts = [part for part in path.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise _wrong("host", "a URL without '..' in it")
    if not override and parts[-1:] != ["v2"]:
        parts.append("v2")
    return "/".join([f"{scheme}://{host.lower()}", *parts])


def _parse_client(value: object, absolute: Callable[[str], str]) -> list[tuple[str, str]]:
    pairs = []
    for entry in [value] if isinstance(value, str) else _list("client", value):
        if isinstance(entry, list):
            if len(entry) != 2:
                raise _wrong("client", "pairs of certificate and key")
            certificate, key = (_text("client", one) for one in entry)
            pairs.append((absolute(certificate), absolute(key) if key else ""))
        else:
            pairs.append((absolute(_text("client", entry)), ""))
    return pairs


def _parse_headers(value: object) -> list[tuple[str, str]]:
    if not isinstance(value, dict):
        raise _wrong("header", "a table")
    headers = []
    for name, content in value.items():
        texts = _texts("header", content)
        if not _HEADER_NAME.fullmatch(name) or not all(text.isprintable() for text in texts):
            raise _wrong("header", "names and values of HTTP headers")
        headers += [(name, text) for text in texts]
    return headers


def _parse_duration(value: object) -> float | None:
    """Give the seconds in such as ``1m30s``. Source: Go's time.ParseDuration."""
    text = _text("dial_timeout", value)
    if not text:
        return None
    seconds, position = 0.0, 0
    while position < len(text):
        part = _DURATION_PART.match(text, position)
        if part is None:
            raise _wrong("dial_timeout", 'a duration such as "1s"')
        seconds += float(part[1]) * _UNITS[part[2]]
        position = part.end()
    if not seconds:
        raise _wrong("dial_timeout", "a duration above 0")
    return seconds


def _parse_proxy(value: object) -> str:
    text = _text("proxy", value)
    if text and not _PROXY.fullmatch(text):
        raise _wrong("proxy", "a URL of scheme http, https or socks5, without a path")
    return text


def _texts(what: str, value: object) -> list[str]:
    """Give the texts of a list, or of one alone."""
    if isinstance(value, str):
        return [_text(what, value)]
    return [_text(what, one) for one in _list(what, value)]


def _list(what: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong(what, "a text or a list")
    return value


def _text(what: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT or "\0" in value:
        raise _wrong(what, f"a text of at most {MAX_TEXT} characters")
    return value


def _wrong(what: str, expected: str) -> FormatError:
    return FormatError("hosts.toml", f"'{what}': expected {expected}")
