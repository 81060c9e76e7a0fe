"""The real registry, as Debian packages it, on loopback, behind a proxy that counts.

    with running_registry(tmp_path) as registry:
        reference = f"{registry.address}/name:tag"
        ...
        registry.counts.sent()

`address` is the proxy's: what it counts is what left the registry. `origin` is the registry's own.
Everything can be deleted from it; with `credentials` it asks for basic authorization, with `tokens`
for those of a service. With `tls` it is its own `address`: nothing is counted.
"""

from __future__ import annotations

import re
import subprocess
import threading
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Final, NamedTuple

from tests.real.counting_proxy import Counts, running_proxy
from tests.real.token_service import NAME, TokenService

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The registry takes bcrypt hashes only, which the standard library cannot make.
USER: Final = "alice"
PASSWORD: Final = "open sesame"
HTPASSWD: Final = f"{USER}:$2b$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n"

CONFIGURATION: Final = """\
version: 0.1
log: {{level: info, accesslog: {{disabled: true}}}}
http: {{addr: "127.0.0.1:{port}", secret: of-the-tests{tls}}}
storage:
  filesystem: {{rootdirectory: "{storage}"}}
  delete: {{enabled: true}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
"""
MIRROR: Final = 'proxy: {{remoteurl: "http://{origin}"}}\n'
TLS: Final = ', tls: {{certificate: "{certificate}", key: "{key}"{more}}}'
CLIENTS: Final = ', clientcas: ["{path}"]'
TOKENS: Final = """\
auth:
  token: {{realm: "{realm}", service: tests, issuer: {issuer}, rootcertbundle: "{bundle}"}}
"""
AUTHORIZATION: Final = 'auth: {{htpasswd: {{realm: tests, path: "{path}"}}}}\n'
LISTENING: Final = re.compile(r"listening on (127\.0\.0\.1:\d+)")


class Registry(NamedTuple):
    """A running registry."""

    address: str
    """host:port, behind the proxy."""
    origin: str
    """host:port of the registry itself."""
    storage: Path
    """Where it keeps blobs; see `blob_path`."""
    counts: Counts
    """What the proxy has seen."""

    def blob_path(self, digest: str) -> Path:
        """Return the file in which the registry keeps a blob, for tests that damage it."""
        algorithm, _, hexadecimal = digest.partition(":")
        blobs = self.storage / "docker/registry/v2/blobs"
        return blobs / algorithm / hexadecimal[:2] / hexadecimal / "data"


class Tls(NamedTuple):
    """Files (PEM): the registry's certificate and key, and the authority of clients, if any."""

    certificate: Path
    key: Path
    clients: Path | None = None

    def __str__(self) -> str:
        more = "" if self.clients is None else CLIENTS.format(path=self.clients)
        return TLS.format(certificate=self.certificate, key=self.key, more=more)


@contextmanager
def running_registry(
    directory: Path,
    *,
    credentials: bool = False,
    tokens: TokenService | None = None,
    tls: Tls | None = None,
    port: int = 0,
    mirror_of: str = "",
) -> Iterator[Registry]:
    """Run a registry that keeps its blobs below `directory`, which may have some already.

    `port` is the registry's own, any free one by default. With `mirror_of` (host:port) it is a
    pull-through cache of that registry.
    """
    storage = directory / "registry"
    storage.mkdir(exist_ok=True)
    configuration = CONFIGURATION.format(storage=storage, port=port, tls=tls or "")
    if credentials:
        (directory / "htpasswd").write_text(HTPASSWD)
        configuration += AUTHORIZATION.format(path=directory / "htpasswd")
    if tokens is not None:
        configuration += TOKENS.format(realm=tokens.realm, issuer=NAME, bundle=tokens.bundle)
    if mirror_of:
        configuration += MIRROR.format(origin=mirror_of)
    (directory / "registry.yml").write_text(configuration)
    with running_process(["docker-registry", "serve", directory / "registry.yml"]) as origin:
        if tls is not None:
            yield Registry(origin, origin, storage, Counts())
            return
        with running_proxy(origin) as proxy:
            yield Registry(proxy.address, origin, storage, proxy.counts)


@contextmanager
def running_process(command: list[str | Path]) -> Iterator[str]:
    """Run the registry until the block ends; yield the address that it says it listens on."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            yield read_address(process.stderr)
        finally:
            process.terminate()


def read_address(log: IO[str]) -> str:
    """Return the address from the registry's log, the rest of which a thread reads away."""
    said = ""
    for line in log:
        said += line
        if found := LISTENING.search(line):
            threading.Thread(target=log.read, daemon=True).start()
            return found[1]
    raise AssertionError(f"docker-registry did not start:\n{said}")
