"""One HTTP request: where a credential may go, what may not be followed, how it fails."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trustme
from aiohttp import web
from yarl import URL

from lazyimg.errors import ConfigurationError, RegistryError
from lazyimg.registry import transport as module
from lazyimg.registry.transport import (
    NotTlsError,
    Route,
    Transport,
    TransportLimits,
    read_body,
    same_origin,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SECRET = {"Authorization": "Bearer secret"}


@asynccontextmanager
async def serve(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[URL]:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    try:
        port = runner.addresses[0][1]
        yield URL(f"{'https' if tls else 'http'}://127.0.0.1:{port}/")
    finally:
        await runner.cleanup()


async def show(request: web.Request) -> web.Response:
    """Answer with what was sent."""
    return web.json_response({name.lower(): value for name, value in request.headers.items()})


def redirect_to(place: str) -> Handler:
    async def redirect(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == SECRET["Authorization"]
        return web.Response(status=307, headers={"Location": place} if place else {})

    return redirect


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    made = Transport(TransportLimits(redirects=3))
    yield made
    await made.close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


async def get(transport: Transport, url: URL | str, route: Route | None = None) -> bytes:
    async with transport.send("GET", URL(url), route or Route(), headers=SECRET) as response:
        return await read_body(response, 1000)


def test_origins() -> None:
    assert same_origin(URL("https://a/x"), URL("https://a:443/y"))
    assert not same_origin(URL("https://a/"), URL("http://a:443/"))
    assert not same_origin(URL("https://a/"), URL("https://b/"))
    assert not same_origin(URL("https://a/"), URL("https://a:444/"))


async def test_headers(transport: Transport) -> None:
    async with serve(show) as url:
        sent = await get(transport, url)
    assert b'"authorization": "Bearer secret"' in sent
    assert b'"accept-encoding": "identity"' in sent
    assert b'"user-agent": "lazyimg"' in sent


class TestRedirects:
    async def test_credential_stays_with_its_origin(self, transport: Transport) -> None:
        async with (
            serve(show) as other,
            serve(redirect_to(f"{other}x?a=b%2Fc")) as url,
            transport.send("GET", url, Route(), headers=SECRET) as response,
        ):
            assert b"secret" not in await read_body(response, 1000)
            assert response.url.raw_query_string == "a=b%2Fc"

    async def test_credential_goes_along_within_its_origin(self, transport: Transport) -> None:
        async def handler(request: web.Request) -> web.StreamResponse:
            return await (show if request.path == "/x" else redirect_to("x"))(request)

        async with serve(handler) as url:
            assert b"secret" in await get(transport, url)

    async def test_not_followed_unless_told(self, transport: Transport) -> None:
        async with (
            serve(redirect_to("/x")) as url,
            transport.send("HEAD", url, Route(), headers=SECRET, follow=False) as response,
        ):
            assert response.status == 307

    async def test_loop(self, transport: Transport) -> None:
        async with serve(redirect_to("/")) as url:
            with pytest.raises(RegistryError, match=r"^http://127.0.0.1:\d+/: over 3 redirects$"):
                await get(transport, url)

    @pytest.mark.parametrize("place", ["", "ftp://x/", "http://[oops/", "http://x:99999/"])
    async def test_impossible_places(self, transport: Transport, place: str) -> None:
        async with serve(redirect_to(place)) as url:
            with pytest.raises(RegistryError, match=r"/: redirects to an impossible place$"):
                await get(transport, url)

    @pytest.mark.parametrize("place", [f"https://{'a' * 70}.io/", "https://1.2.3.4.5/"])
    async def test_impossible_hosts(self, transport: Transport, place: str) -> None:
        async with serve(redirect_to(place)) as url:
            with pytest.raises(RegistryError, match=f"^{place}: is an impossible URL$"):
                await get(transport, url)

    async def test_user_in_a_url_is_left_out(self, transport: Transport) -> None:
        async with serve(show) as url:
            assert b"Bearer secret" in await get(transport, url.with_user("a").with_password("b"))

    async def test_plain_http_elsewhere(self, transport: Transport) -> None:
        async with serve(redirect_to("http://192.0.2.1/x?secret")) as url:
            with pytest.raises(RegistryError) as caught:
                await get(transport, url)
        assert str(caught.value).endswith(
            "/x: is plain HTTP; allow that with --plain-http where it is right"
        )
        assert "secret" not in str(caught.value)

    async def test_from_https_to_http(
        self, transport: Transport, authority: trustme.CA, tls: ssl.SSLContext, tmp_path: Path
    ) -> None:
        ca_file = tmp_path / "ca.pem"
        authority.cert_pem.write_to_path(ca_file)
        async with serve(redirect_to("http://127.0.0.1:1/"), tls) as url:
            with pytest.raises(RegistryError, match="redirects from HTTPS to plain HTTP at 127"):
                await get(transport, url, Route(ca_files=(ca_file,), plain_http=True))


class TestTls:
    async def test_authority(
        self, transport: Transport, authority: trustme.CA, tls: ssl.SSLContext, tmp_path: Path
    ) -> None:
        ca_file = tmp_path / "ca.pem"
        authority.cert_pem.write_to_path(ca_file)
        async with serve(show, tls) as url:
            for _ in range(2):
                assert await get(transport, url, Route(ca_files=(ca_file,)))
            assert await get(transport, url, Route(insecure=True))
            with pytest.raises(RegistryError) as caught:
                await get(transport, url)
        assert str(caught.value) == (
            f"{url}: its certificate cannot be verified: unable to get local issuer certificate;"
            " give its authority with --ca-file, or --insecure where that is right"
        )
        assert not caught.value.retryable

    async def test_files_that_were_written_anew_count(
        self,
        transport: Transport,
        authority: trustme.CA,
        tls: ssl.SSLContext,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(module, "REFRESH", 0.0)
        ca_file = tmp_path / "ca.pem"
        trustme.CA().cert_pem.write_to_path(str(ca_file))
        route = Route(ca_files=(ca_file,))
        async with serve(show, tls) as url:
            with pytest.raises(RegistryError, match="its certificate cannot be verified"):
                await get(transport, url, route)
            authority.cert_pem.write_to_path(str(ca_file))
            assert await get(transport, url, route)
            (before,) = transport._contexts.values()
            assert await get(transport, url, route)
            (after,) = transport._contexts.values()
            assert after.context is before.context
            ca_file.unlink()
            with pytest.raises(ConfigurationError, match="holds no certificates that can be read"):
                await get(transport, url, route)

    async def test_client_certificate_is_shown_to_its_host_only(
        self, transport: Transport, authority: trustme.CA, tmp_path: Path
    ) -> None:
        ca_file, mine = tmp_path / "ca.pem", tmp_path / "me.pem"
        authority.cert_pem.write_to_path(str(ca_file))
        leaf = authority.issue_cert("me@test")
        leaf.private_key_and_cert_chain_pem.write_to_path(str(mine))
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(tls)
        authority.configure_trust(tls)
        tls.verify_mode = ssl.CERT_OPTIONAL

        async def who(request: web.Request) -> web.Response:
            assert request.transport is not None
            shown = request.transport.get_extra_info("peercert")
            return web.json_response([bool(shown), "X-Mine" in request.headers])

        route = Route(ca_files=(ca_file,), client=((mine, None),), headers=(("X-Mine", "1"),))
        async with serve(who, tls) as other, serve(redirect_to(str(other)), tls) as url:
            assert await get(transport, other, route) == b"[true, true]"
            assert await get(transport, url, route) == b"[false, false]"
            files = (tmp_path / "cert.pem", tmp_path / "key.pem")
            leaf.cert_chain_pems[0].write_to_path(str(files[0]))
            leaf.private_key_pem.write_to_path(str(files[1]))
            assert await get(transport, other, replace(route, client=(files,))) == b"[true, true]"
            with pytest.raises(
                ConfigurationError, match=r"ca\.pem: holds, with its key, no certif"
            ):
                await get(transport, other, replace(route, client=((ca_file, None),)))

    @pytest.mark.parametrize("content", [b"", None, b"-----BEGIN CERTIFICATE-----\nx"])
    async def test_authority_that_is_none(
        self, transport: Transport, tmp_path: Path, content: bytes | None
    ) -> None:
        ca_file = tmp_path / "ca.pem"
        if content is not None:
            ca_file.write_bytes(content)
        with pytest.raises(
            ConfigurationError, match=r"ca\.pem: holds no certificates that can be r"
        ):
            await get(transport, "https://127.0.0.1:1/", Route(ca_files=(ca_file,)))

    async def test_server_without_tls(self, transport: Transport) -> None:
        async with serve(show) as url:
            with pytest.raises(NotTlsError, match="does not speak TLS as expected"):
                await get(transport, url.with_scheme("https"))

    async def test_plain_http_to_another_machine(self, transport: Transport) -> None:
        with pytest.raises(RegistryError, match=r"^http://192.0.2.1/: is plain HTTP; allow that"):
            await get(transport, "http://192.0.2.1/")


class TestFailures:
    async def test_nobody_listens(self, transport: Transport) -> None:
        with pytest.raises(RegistryError) as caught:
            await get(transport, "http://user:pass@127.0.0.1:1/x?signed")
        assert str(caught.value) == "http://127.0.0.1:1/x: connection fails: Connection refused"
        assert caught.value.retryable
        assert "pass" not in str(caught.value)
        assert "signed" not in str(caught.value)

    async def test_no_such_host(
        self, transport: Transport, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for code, text, retryable in (
            (-2, "no such host", False),
            (-3, "name service fails", True),
        ):

            def fail(*_: object, code: int = code) -> None:
                raise OSError(code, "resolver's words")

            monkeypatch.setattr(socket, "getaddrinfo", fail)
            with pytest.raises(RegistryError, match=rf"^https://r.example/: {text}$") as caught:
                await get(transport, "https://r.example/")
            assert caught.value.retryable is retryable

    async def test_no_answer(self, transport: Transport) -> None:
        async def hang(_: web.Request) -> web.Response:
            await asyncio.Event().wait()
            raise AssertionError

        transport.limits = TransportLimits(read_timeout=0.05)
        async with serve(hang) as url:
            with pytest.raises(RegistryError, match="no answer in time") as caught:
                await get(transport, url)
        assert caught.value.retryable

    async def test_body_that_breaks_off(self, transport: Transport) -> None:
        async def half(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            response.content_length = 100
            await response.prepare(request)
            await response.write(b"x")
            assert request.transport is not None
            request.transport.close()
            return response

        async with serve(half) as url:
            with pytest.raises(RegistryError, match="connection fails: ClientPayloadError") as bad:
                await get(transport, url)
        assert bad.value.retryable

    async def test_body_over_the_limit(self, transport: Transport) -> None:
        async def large(_: web.Request) -> web.Response:
            return web.Response(body=bytes(1001))

        async with serve(large) as url:
            with pytest.raises(RegistryError, match="answers with over 1000 bytes"):
                await get(transport, url)

    async def test_cancelling(self, transport: Transport) -> None:
        arrived = asyncio.Event()

        async def hang(_: web.Request) -> web.Response:
            arrived.set()
            await asyncio.Event().wait()
            raise AssertionError

        async with serve(hang) as url:
            task = asyncio.create_task(get(transport, url))
            await arrived.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


async def test_requests_that_hang_leave_connections_to_others() -> None:
    transport = Transport(TransportLimits())
    hanging = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal hanging
        if request.path == "/hang":
            hanging += 1
            await asyncio.Event().wait()
        return web.Response(text="well")

    async with serve(answer) as url:
        waiting = [asyncio.create_task(get(transport, url / "hang")) for _ in range(150)]
        while hanging < 150:  # noqa: ASYNC110 - all hang
            await asyncio.sleep(0.001)
        assert await get(transport, url) == b"well"
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        await transport.close()


async def test_closing_twice() -> None:
    transport = Transport(TransportLimits())
    await transport.close()
    async with serve(show) as url:
        await get(transport, url)
    await transport.close()
    await transport.close()
