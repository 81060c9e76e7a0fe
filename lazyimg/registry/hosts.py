"""The hosts that serve a registry's images, as containerd's certs.d directory names them.

`find_endpoints` reads DIRECTORY/<registry>/hosts.toml, or without one the certificates that lie
there (docker's habit). Files are read again now and then: changes need no restart.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from yarl import URL

from lazyimg.errors import ConfigurationError
from lazyimg.registry.transport import Route
from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.hosts import (
    CAPABILITIES,
    MAX_HOSTS_FILE,
    Host,
    directory_names,
    parse_hosts,
)
from lazyimg_formats.oci.reference import DOCKER_HUB

if TYPE_CHECKING:
    from lazyimg.registry.ports import Access
    from lazyimg_formats.oci.reference import Reference

MAX_CERTIFICATES: Final = 64
"""Certificates in a directory without hosts.toml."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A host to ask for a registry's images.

    Attributes:
        root: URL of its API; None: found out from the registry's name.
        host: its host and port, as credentials and messages name it.
        namespace: the registry, for hosts that serve several; "" for the registry's own.
        capabilities: what may be asked of it: pull, resolve, push.
        route: how it is reached.
        final: nobody else is asked after it.
    """

    root: URL | None
    host: str
    namespace: str = ""
    capabilities: frozenset[str] = CAPABILITIES
    route: Route
    final: bool = False

    @property
    def is_own(self) -> bool:
        """Whether it is the registry itself: credentials for the registry are for it."""
        return not self.namespace


def own_endpoint(reference: Reference, access: Access) -> Endpoint:
    """Give the registry itself, where no file says more."""
    return Endpoint(
        root=None,
        host=reference.registry,
        route=Route(
            plain_http=access.plain_http,
            insecure=access.insecure,
            ca_files=() if access.ca_file is None else (access.ca_file,),
        ),
        final=True,
    )


def find_endpoints(
    reference: Reference, access: Access, mirror_timeout: float | None = None
) -> tuple[Endpoint, ...]:
    """Give the hosts to ask, in order; the last one is `final`. Blocks for reading files.

    Args:
        reference: names the registry.
        access: has the directory, and what goes for the registry itself.
        mirror_timeout: seconds without a byte after which a mirror is given up.

    Raises:
        ConfigurationError: a file cannot be read or makes no sense.
    """
    own = own_endpoint(reference, access)
    if access.hosts_dir is None:
        return (own,)
    for name in directory_names(reference.registry):
        directory = access.hosts_dir / name
        if directory.is_dir():
            break
    else:
        return (own,)
    *mirrors, server = _read_hosts(directory.absolute())
    found = [_make_endpoint(host, reference, own, mirror_timeout) for host in mirrors]
    return (*found, _make_server(server, reference, own))


def _make_endpoint(
    host: Host, reference: Reference, own: Endpoint, mirror_timeout: float | None
) -> Endpoint:
    root = URL(host.root)
    is_own = _is_own(root, reference)
    capabilities = host.capabilities
    if not host.says_capabilities:  # a mirror that takes pushes says so
        capabilities -= {"push"}
    return Endpoint(
        root=root,
        host=reference.registry if is_own else _host_of(root),
        namespace="" if is_own else reference.registry,
        capabilities=capabilities,
        route=_make_route(host, own if is_own else None, own, mirror_timeout),
    )


def _make_server(host: Host, reference: Reference, own: Endpoint) -> Endpoint:
    root = URL(host.root) if host.root else None
    if root is not None and reference.registry == DOCKER_HUB and _is_own(root, reference):
        root = None  # its API is elsewhere than its name says
    is_own = root is None or _is_own(root, reference)
    return Endpoint(
        root=root,
        host=reference.registry if is_own or root is None else _host_of(root),
        namespace="" if is_own else reference.registry,
        capabilities=host.capabilities,
        route=_make_route(host, own if is_own else None, own, None),
        final=True,
    )


def _make_route(
    host: Host, base: Endpoint | None, own: Endpoint, read_timeout: float | None
) -> Route:
    """Give a host's route; `base`: the registry's own, whose leave to be insecure it then has."""
    insecure = base is not None and base.route.insecure
    named_plain = host.root.startswith("http:")
    return Route(
        plain_http=named_plain or (base is not None and base.route.plain_http),
        insecure=insecure if host.skip_verify is None else host.skip_verify,
        ca_files=(*own.route.ca_files, *map(Path, host.ca)),
        client=tuple((Path(file), Path(key) if key else None) for file, key in host.client),
        headers=host.headers,
        connect_timeout=host.dial_timeout,
        read_timeout=read_timeout,
        proxy=host.proxy,
    )


def _host_of(root: URL) -> str:
    """Give host and port as they are written."""
    return root.host_port_subcomponent or ""


def _is_own(root: URL, reference: Reference) -> bool:
    return _host_of(root) in {reference.registry, reference.host}


def _read_hosts(directory: Path) -> tuple[Host, ...]:
    path = directory / "hosts.toml"
    try:
        with path.open("rb") as file:
            data = file.read(MAX_HOSTS_FILE + 1)
        hosts = parse_hosts(data, str(directory))
    except FileNotFoundError:
        return (_read_certificates(directory),)
    except OSError as error:
        raise ConfigurationError(str(path), f"cannot be read: {error.strerror}") from error
    except FormatError as error:
        raise ConfigurationError(str(path), error.problem) from error
    for host in hosts:
        if host.root and not _is_possible(host.root):
            raise ConfigurationError(str(path), f"names an impossible host: {host.root[:300]}")
    return hosts


def _is_possible(root: str) -> bool:
    """Tell whether a URL that has the right form has a host and port that can be."""
    try:
        url = URL(root)
        return bool(url.host and url.port)
    except ValueError:  # also of a name that is no IDNA
        return False


def _read_certificates(directory: Path) -> Host:
    """Give the server that docker's certificate files describe: NAME.crt, NAME.cert + NAME.key."""
    try:
        names = sorted(path for path in directory.iterdir() if path.suffix in {".crt", ".cert"})
    except OSError as error:
        raise ConfigurationError(str(directory), f"cannot be read: {error.strerror}") from error
    if len(names) > MAX_CERTIFICATES:
        raise ConfigurationError(
            str(directory), f"has {len(names)} certificates, at most {MAX_CERTIFICATES} allowed"
        )
    client = []
    for path in names:
        if path.suffix == ".cert":
            key = path.with_suffix(".key")
            if not key.exists():
                raise ConfigurationError(str(path), f"has no key: {key.name} is missing")
            client.append((str(path), str(key)))
    authorities = tuple(str(path) for path in names if path.suffix == ".crt")
    return Host(ca=authorities, client=tuple(client))
