"""Names of hosts, and a name service that hangs."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest
from yarl import URL

from lazyimg.errors import RegistryError
from lazyimg.registry.names import Names
from lazyimg.registry.transport import Route, Transport, TransportLimits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def names() -> AsyncIterator[Names]:
    names = Names()
    yield names
    await names.close()


async def test_address(names: Names) -> None:
    (found,) = await names.resolve("127.0.0.1", 80)
    assert (found["hostname"], found["host"], found["port"]) == ("127.0.0.1", "127.0.0.1", 80)
    assert found["family"] is socket.AF_INET


async def test_link_local_address_has_its_interface(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = (socket.AF_INET6, socket.SOCK_STREAM, 6, "")
    answer = [(*kind, ("fe80::1", 80, 0, 2)), (*kind, ("2001:db8::1", 80, 0, 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: answer)
    found = await names.resolve("a.test", 80, socket.AF_UNSPEC)
    assert [one["host"] for one in found] == ["fe80::1%2", "2001:db8::1"]


async def test_unknown_name(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(socket.gaierror, match="unknown"):
        await names.resolve("a.test")
    transport = Transport(TransportLimits())
    with pytest.raises(RegistryError, match="no such host"):
        await get(transport, "a.test")
    await transport.close()


async def get(transport: Transport, host: str) -> None:
    route = Route(plain_http=True)
    async with transport.send("GET", URL(f"http://{host}/"), route, headers={}):
        raise AssertionError


async def test_name_service_that_hangs_holds_up_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    asked: list[str] = []
    over = Event()

    def hang(host: str, *_: Any) -> None:
        asked.append(host)
        over.wait()
        raise socket.gaierror(socket.EAI_AGAIN, "not now")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    transport = Transport(TransportLimits())
    waiting = [asyncio.create_task(get(transport, f"{letter}.test")) for letter in "abcd"]
    while len(asked) < 2:  # noqa: ASYNC110 - all hang
        await asyncio.sleep(0.001)
    assert await asyncio.to_thread(str, 1) == "1"
    over.set()
    for task in waiting:
        with pytest.raises(RegistryError, match="name service fails"):
            await task
    await transport.close()
    with pytest.raises(RegistryError, match="name service fails"):
        await get(transport, "e.test")  # it is opened anew
    await transport.close()


async def test_closing_does_not_wait_for_a_name_service_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, over = Event(), Event()

    def hang(*_: object) -> list[object]:
        asked.set()
        over.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    names = Names()
    waiting = asyncio.create_task(names.resolve("a.test"))
    await asyncio.sleep(0)
    await asyncio.to_thread(asked.wait)
    await names.close()
    assert not waiting.done()
    over.set()
    assert await waiting == []
