"""What is fuzzed of `lazyimg.registry`: what registries answer, and the files around them."""

from __future__ import annotations

import asyncio
import atexit
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yarl import URL

from lazyimg.errors import ConfigurationError, LazyimgError
from lazyimg.registry.auth import Authenticator, Challenge, parse_challenges
from lazyimg.registry.blob_files import parse_index
from lazyimg.registry.connection import parse_realm
from lazyimg.registry.credentials import find_credential, parse_helper_reply
from lazyimg.registry.hosts import find_endpoints
from lazyimg.registry.oci_archive import ArchiveFiles
from lazyimg.registry.oci_layout import check_marker
from lazyimg.registry.ports import Access
from lazyimg.registry.proxies import ProxyRules, parse_proxy
from lazyimg.registry.ranges import ByteRange, plan_range
from lazyimg.registry.redact import printable, redact_url
from lazyimg.registry.redirects import redirect_lifetime
from lazyimg.registry.retry import parse_retry_after
from lazyimg.registry.transport import join_location
from lazyimg.registry.upload import parse_progress
from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.reference import Reference
from tests.fuzz import seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

REFERENCE = Reference("r.test:5000", "team/app")
ENVIRONMENT = {"PATH": "/nonexistent"}  # no credential helper is ever run


def each(*calls: Callable[[], object], allowed: type[Exception] = FormatError) -> None:
    """Call everything; each may raise what is allowed."""
    for call in calls:
        with suppress(allowed):
            call()


@cache
def loop() -> asyncio.AbstractEventLoop:
    made = asyncio.new_event_loop()
    atexit.register(made.close)
    return made


def run(coroutine: Coroutine[Any, Any, object]) -> None:
    loop().run_until_complete(coroutine)


@cache
def directory() -> Path:
    """Give a directory of this process, in memory where there is any."""
    path = Path(tempfile.mkdtemp(prefix="lazyimg-fuzz-", dir=seeds.memory_directory()))
    atexit.register(shutil.rmtree, path)
    (path / "_default").mkdir()
    return path


def run_headers(data: bytes) -> None:
    """What a registry writes into headers of its answers."""
    text = data.decode("latin-1")
    parse_challenges([text, text[::-1]])
    parse_retry_after(text, 0.0)
    location = join_location(URL("http://127.0.0.1:5000/v2/"), text)
    if location is not None:
        redact_url(location)
        redirect_lifetime(location.query, 0.0)
    printable(text)
    parse_progress({"Range": text})
    each(
        lambda: plan_range("b", 206, {"Content-Range": text}, ByteRange(0, 10, 100)),
        lambda: plan_range("b", 200, {"Content-Length": text}, ByteRange(0, 10, 100)),
        lambda: parse_realm("r.test", text),
        allowed=LazyimgError,
    )


class Answering:
    """An authorization service that answers with these bytes."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def fetch_token(self, *_: object) -> bytes:
        return self._body

    async def post_token(self, *_: object) -> bytes:
        return self._body


def run_tokens(data: bytes) -> None:
    """What an authorization service and a credential helper answer."""

    async def nobody() -> None:
        return None

    async def renew() -> None:
        made = Authenticator("r.test/app", nobody, Answering(data), lambda: 0.0)
        challenge = Challenge("bearer", {"realm": "http://a.test/"})
        header = await made.renew(("a",), [challenge], "")
        if not header.isprintable():
            raise AssertionError(f"{header!r} cannot be a header")

    each(
        lambda: run(renew()),
        lambda: parse_helper_reply("docker-credential-x", data),
        allowed=LazyimgError,
    )


def run_credentials(data: bytes) -> None:
    path = directory() / "config.json"
    path.write_bytes(data)
    access = Access(authfile=path)

    async def find() -> None:
        credential = await find_credential("r.test:5000/team/app", access, ENVIRONMENT)
        if credential is not None:
            credential.basic.encode("ascii")

    each(lambda: run(find()), allowed=LazyimgError)


def run_hosts(data: bytes) -> None:
    (directory() / "_default" / "hosts.toml").write_bytes(data)
    access = Access(hosts_dir=directory())
    each(lambda: find_endpoints(REFERENCE, access), allowed=ConfigurationError)


def run_layout(data: bytes) -> None:
    """An image layout's files, and an archive of one."""
    path = directory() / "archive.tar"
    path.write_bytes(data)

    def archive() -> None:
        files = ArchiveFiles(path)
        files.locate(Digest.of(b""))
        files.read_index()

    each(
        lambda: check_marker("l", data),
        lambda: parse_index("l", data),
        archive,
        allowed=LazyimgError,
    )


def run_proxies(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    rules = ProxyRules.of({"NO_PROXY": text, "HTTP_PROXY": "http://p.test:1"})
    for url in ("http://a.b.test:80/", "http://10.1.2.3/", "http://[fe80::1]:5000/"):
        rules.find(URL(url))
    each(lambda: parse_proxy(text), allowed=ConfigurationError)
