"""Requests to one repository: its origin, and what each refusal means."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from yarl import URL

from lazyimg.errors import (
    AccessDeniedError,
    CorruptError,
    LazyimgError,
    NotFoundError,
    RegistryError,
)
from lazyimg.registry.auth import Credential, pull_scope
from lazyimg.registry.connection import Connection
from lazyimg.registry.hosts import own_endpoint
from lazyimg.registry.ports import Access
from lazyimg.registry.retry import RegistryBusyError, RetryPolicy
from lazyimg.registry.transport import Transport, TransportLimits
from lazyimg_formats.oci.reference import Reference
from tests.fakes.registry import FakeRegistry, run_registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SCOPES = (pull_scope("a/b"),)


class Setup:
    def __init__(self, host: str, access: Access | None = None) -> None:
        self.credential: Credential | None = None
        self.transport = Transport(TransportLimits())
        self.connection = Connection(
            Reference(host, "a/b"),
            own_endpoint(Reference(host, "a/b"), access or Access()),
            self.transport,
            self.find,
            RetryPolicy(attempts=2, first_delay=0.001),
        )

    async def find(self) -> Credential | None:
        return self.credential

    async def get(self, path: str = "blobs/x", **options: Any) -> int:
        async with self.connection.open(
            "GET",
            await self.connection.url(path),
            what="the blob",
            expect={200},
            scopes=SCOPES,
            **options,
        ) as response:
            return response.status


@asynccontextmanager
async def connect(host: str, access: Access | None = None) -> AsyncIterator[Setup]:
    setup = Setup(host, access)
    try:
        yield setup
    finally:
        await setup.transport.close()


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with run_registry() as running:
        yield running


@pytest.fixture
async def setup(registry: FakeRegistry) -> AsyncIterator[Setup]:
    async with connect(registry.host) as made:
        yield made


class TestOrigin:
    @pytest.mark.parametrize(
        ("reference", "plain_http", "expected"),
        [
            (Reference("docker.io", "a/b"), False, "https://registry-1.docker.io/v2/a/b/x"),
            (Reference("r.example:5000", "a/b"), False, "https://r.example:5000/v2/a/b/x"),
            (Reference("r.example:5000", "a/b"), True, "http://r.example:5000/v2/a/b/x"),
            (Reference("[::1]:1", "a/b"), True, "http://[::1]:1/v2/a/b/x"),
        ],
    )
    async def test_nobody_is_asked(
        self, reference: Reference, expected: str, *, plain_http: bool
    ) -> None:
        access = Access(plain_http=plain_http)
        setup = Setup("x.example")
        connection = Connection(
            reference, own_endpoint(reference, access), setup.transport, setup.find, RetryPolicy()
        )
        assert str(await connection.url("x")) == expected

    @pytest.mark.parametrize("plain_http", [False, True])
    async def test_impossible_host(self, *, plain_http: bool) -> None:
        async with connect("xn--a.example", Access(plain_http=plain_http)) as setup:
            with pytest.raises(RegistryError, match=r"^xn--a.example/a/b: names an impossible"):
                await setup.get()

    async def test_loopback_without_tls(self, registry: FakeRegistry, setup: Setup) -> None:
        for _ in range(2):
            assert str(await setup.connection.root()) == f"http://{registry.host}/v2"
        assert registry.asked == []

    async def test_loopback_with_tls(self, tmp_path: Path) -> None:
        authority = trustme.CA()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(tls)
        ca_file = tmp_path / "ca.pem"
        authority.cert_pem.write_to_path(ca_file)
        async with run_registry(tls) as registry:
            registry.auth, registry.redirect = "token", True
            blob = registry.add_blob("a/b", b"data")
            async with connect(registry.host, Access(ca_file=ca_file)) as setup:
                assert await setup.get(f"blobs/{blob.digest}", follow=True) == 200
            async with connect(registry.host) as setup:
                with pytest.raises(RegistryError, match="its certificate cannot be verified"):
                    await setup.get()

    async def test_nobody_listens_now(self) -> None:
        async with connect("127.0.0.1:1") as setup:
            with pytest.raises(RegistryError, match=r"^https://127.0.0.1:1/v2/: connection fails"):
                await setup.get()


@pytest.mark.parametrize(
    ("fault", "kind", "text", "retryable"),
    [
        ({"status": 404}, NotFoundError, "the blob: the registry answers 404", None),
        (
            {"status": 500, "body": b'{"errors":[{"code":"X","message":"a\\nb"}]}'},
            RegistryError,
            "the blob: the registry answers 500 (X a b)",
            True,
        ),
        (
            {"status": 500, "body": b'{"errors":[]}'},
            RegistryError,
            "the blob: the registry answers 500",
            True,
        ),
        (
            {"status": 500, "body": b'{"errors":[{}]}'},
            RegistryError,
            "the blob: the registry answers 500",
            True,
        ),
        ({"status": 500, "body": bytes(70_000)}, RegistryError, "the blob: the re", True),
        ({"status": 418}, RegistryError, "the blob: the registry answers 418", False),
        ({"status": 204}, RegistryError, "the blob: the registry answers 204", False),
        (
            {"status": 403},
            AccessDeniedError,
            "the blob: the registry answers 403; log in with 'lazyimg login ",
            None,
        ),
        (
            {"status": 400, "body": b'{"errors":[{"code":"DIGEST_INVALID"}]}'},
            CorruptError,
            "the blob: the registry answers 400 (DIGEST_INVALID)",
            None,
        ),
        (
            {"status": 416},
            RegistryError,
            "the blob: the registry answers 416: it is shorter than the image says",
            False,
        ),
        (
            {"status": 429},
            RegistryError,
            "the blob: the registry answers 429; log in for a higher limit, or try again later",
            True,
        ),
    ],
)
async def test_refusals(
    registry: FakeRegistry,
    setup: Setup,
    fault: dict[str, Any],
    kind: type[LazyimgError],
    text: str,
    *,
    retryable: bool | None,
) -> None:
    registry.fail("status", **fault)
    with pytest.raises(kind) as caught:
        await setup.get()
    assert str(caught.value).startswith(text)
    if isinstance(caught.value, RegistryError):
        assert caught.value.status == fault["status"]
        assert caught.value.retryable is retryable


async def test_retry_after(registry: FakeRegistry, setup: Setup) -> None:
    registry.fail("status", status=503, headers={"Retry-After": "7"})
    with pytest.raises(RegistryBusyError) as caught:
        await setup.get()
    assert caught.value.retry_after == 7


async def test_refusal_of_head_has_no_body(registry: FakeRegistry, setup: Setup) -> None:
    registry.fail("status", method="HEAD", status=500, body=b"lost")
    url = await setup.connection.url("blobs/x")
    with pytest.raises(RegistryError, match=r"^the blob: the registry answers 500$"):
        async with setup.connection.open("HEAD", url, what="the blob", expect={200}, scopes=SCOPES):
            pass


async def test_retry_and_wait(setup: Setup) -> None:
    error = RegistryError("here", "down", retryable=True)
    tries = 0

    async def fail() -> None:
        nonlocal tries
        tries += 1
        raise error

    with pytest.raises(RegistryError, match="here: down"):
        await setup.connection.retry(fail)
    assert tries == 2
    await setup.connection.wait(1, error)
    with pytest.raises(RegistryError, match="here: down"):
        await setup.connection.wait(2, error)


class TestTokens:
    @pytest.fixture(autouse=True)
    def blob(self, registry: FakeRegistry) -> str:
        registry.auth, registry.users = "token", {"me": "secret"}
        return f"blobs/{registry.add_blob('a/b', b'data').digest}"

    async def test_user(self, setup: Setup, blob: str) -> None:
        setup.credential = Credential("me", "secret")
        assert await setup.get(blob) == 200

    async def test_identity_token(self, registry: FakeRegistry, setup: Setup, blob: str) -> None:
        registry.identity_token = "a&b=c d"
        setup.credential = Credential(identity_token="a&b=c d")
        assert await setup.get(blob) == 200

    @pytest.mark.parametrize(
        "credential", [None, Credential("me", "guess"), Credential(identity_token="guess")]
    )
    async def test_refused(
        self,
        registry: FakeRegistry,
        setup: Setup,
        blob: str,
        credential: Credential | None,
    ) -> None:
        setup.credential = credential
        with pytest.raises(AccessDeniedError) as caught:
            await setup.get(blob)
        assert str(caught.value).startswith(
            f"http://{registry.host}/token: the registry answers 401 (UNAUTHORIZED); log in with"
        )
        assert "guess" not in str(caught.value)

    @pytest.mark.parametrize("realm", ["", "ftp://x/", "http://[oops/", "/token", "http://xn--a/"])
    async def test_impossible_realm(
        self, registry: FakeRegistry, setup: Setup, blob: str, realm: str
    ) -> None:
        challenge = {"WWW-Authenticate": f'Bearer realm="{realm}"'}
        registry.fail("status", status=401, headers=challenge)
        with pytest.raises(RegistryError, match="names an impossible authorization service"):
            await setup.get(blob)

    async def test_plain_realm_on_another_machine(
        self, registry: FakeRegistry, setup: Setup, blob: str
    ) -> None:
        setup.credential = Credential("me", "secret")
        challenge = {"WWW-Authenticate": 'Bearer realm="http://192.0.2.1/token"'}
        registry.fail("status", status=401, headers=challenge)
        with pytest.raises(RegistryError, match="/token: is plain HTTP"):
            await setup.get(blob)

    async def test_token_goes_to_the_registry_only(self, setup: Setup, blob: str) -> None:
        setup.credential = Credential("me", "secret")
        await setup.get(blob)
        async with run_registry() as other:
            url = URL(f"http://{other.host}/v2/a/b/blobs/x")
            with pytest.raises(RegistryError, match=f"it: {url} answers 404"):
                async with setup.connection.open(
                    "GET", url, what="it", expect={200}, scopes=SCOPES
                ):
                    pass
            assert not other.asked[0].authorized
