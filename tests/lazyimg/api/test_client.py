"""The local API's client: against a daemon over a real socket, and against broken ones."""

from __future__ import annotations

import asyncio
import os
import stat
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from lazyimg import errors
from lazyimg.api import client as client_module
from lazyimg.api.client import Client, rebuild_error
from lazyimg.api.messages import (
    Access,
    ErrorReply,
    ImageRequest,
    InspectRequest,
    MountRequest,
    PrefetchRequest,
    UnmountRequest,
)
from lazyimg.errors import (
    DaemonUnavailableError,
    InUseError,
    LazyimgError,
    NotFoundError,
    NotRootError,
    RegistryError,
    UsageError,
)
from tests.fakes.daemon import DIGEST, FSID, IMAGE, MIB, FakeDaemon, serve_in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture
def address(tmp_path: Path) -> Path:
    return tmp_path / "lazyimg.sock"


@pytest.fixture
def daemon(address: Path) -> Iterator[FakeDaemon]:
    with serve_in_thread(FakeDaemon(), address) as served:
        yield served


@asynccontextmanager
async def raw_server(address: Path, answer: bytes) -> AsyncIterator[Client]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        with suppress(OSError):  # the client may have had enough
            await writer.drain()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        ended.set()

    ended = asyncio.Event()
    async with await asyncio.start_unix_server(handle, str(address)):
        yield Client(str(address))
        await ended.wait()


@pytest.mark.usefixtures("daemon")
async def test_mount_and_unmount(address: Path) -> None:
    client = Client(str(address))
    mounted = await client.mount(MountRequest(reference=IMAGE, directory="/mnt"))
    assert (mounted.digest, mounted.fsid, mounted.directory) == (DIGEST, FSID, "/mnt")
    assert [mount.directory for mount in (await client.status()).mounts] == ["/mnt"]
    assert (await client.unmount(UnmountRequest(directory="/mnt"))).reference == IMAGE
    assert (await client.status()).mounts == []


async def test_request_arrives_whole(address: Path, daemon: FakeDaemon) -> None:
    request = MountRequest(
        reference=IMAGE,
        directory="/m\u00e4",
        platform="linux/arm64",
        read_write=True,
        access=Access(username="u", password="p", plain_http=True),
    )
    await Client(str(address)).mount(request)
    assert daemon.requests == [request]


@pytest.mark.usefixtures("daemon")
async def test_fsid_and_inspect(address: Path) -> None:
    client = Client(str(address))
    assert (await client.fsid(ImageRequest(reference=IMAGE))).fsid == FSID
    reply = await client.inspect(InspectRequest(reference=IMAGE))
    assert reply.layers[0].present == 25 * MIB


@pytest.mark.usefixtures("daemon")
async def test_prefetch_gives_events_as_they_come(address: Path) -> None:
    request = PrefetchRequest(references=[IMAGE, "registry.test/none"])
    events = [event async for event in Client(str(address)).prefetch(request)]
    assert [event.present // MIB for event in events] == [25, 50, 75, 100, 0]
    assert [event.done for event in events] == [False, False, False, True, False]
    assert events[-1].error is not None
    assert events[-1].error.kind == "not-found"


@pytest.mark.usefixtures("daemon")
async def test_failure_keeps_its_class_and_facts(address: Path) -> None:
    client = Client(str(address))
    await client.mount(MountRequest(reference=IMAGE, directory="/mnt"))
    with pytest.raises(InUseError) as caught:
        await client.mount(MountRequest(reference=IMAGE, directory="/mnt"))
    assert caught.value.exit_code == 79
    assert str(caught.value) == f"/mnt: has {IMAGE} mounted on it; unmount it first"
    with pytest.raises(NotFoundError, match=r"^other: the registry has no such image$"):
        await client.fsid(ImageRequest(reference="other"))


async def test_no_daemon(address: Path) -> None:
    with pytest.raises(DaemonUnavailableError) as caught:
        await Client(str(address)).status()
    assert str(caught.value) == (
        f"{address}: no daemon answers there; start it with: lazyimg serve"
    )


async def test_socket_that_nobody_listens_on(address: Path) -> None:
    (await asyncio.start_unix_server(lambda _reader, _writer: None, str(address))).close()
    if not address.exists():
        os.mknod(address, stat.S_IFSOCK | 0o600)
    with pytest.raises(DaemonUnavailableError, match="no daemon answers there"):
        await Client(str(address)).status()


async def test_path_too_long_for_a_socket() -> None:
    with pytest.raises(DaemonUnavailableError, match="no daemon answers there"):
        await Client("/" + "x" * 200).status()


async def test_socket_of_root(address: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(asyncio, "open_unix_connection", refuse)
    with pytest.raises(NotRootError) as caught:
        await Client(str(address)).status()
    assert str(caught.value) == (
        f"{address}: the daemon's socket is for root only; run this as root"
    )


OK = b"HTTP/1.0 200 OK\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"", "the daemon ended in the middle of its answer"),
        (b"HTTP/1.0 200 OK\r\nA: b\r\n", "the daemon ended in the middle of its answer"),
        (OK + b'{"version": "0.1', "the daemon ended in the middle of its answer"),
        (OK + b"{}", "the answer is not one of this version of lazyimg"),
        (OK + b'{"version": "\xff"}', "the answer is not one of this version of lazyimg"),
        (OK + b'{"x":' + b"[" * 9999, "the answer is not one of this version of lazyimg"),
        (b"SSH-2.0-x\r\n\r\n", "the answer is not one of this version of lazyimg"),
        (b"HTTP/1.0 oh\r\n\r\n", "the answer is not one of this version of lazyimg"),
        (b"HTTP/1.0 404 No\r\n\r\n{}", "the answer is not one of this version of lazyimg"),
        (b"x" * (2 * client_module.MAX_LINE), "the answer is not one of this version of lazyimg"),
        (b"HTTP/1.0 200 OK\r\n" + b"A: b\r\n" * 200, "the daemon ended in the middle"),
    ],
)
async def test_broken_answer(address: Path, answer: bytes, problem: str) -> None:
    async with raw_server(address, answer) as client:
        with pytest.raises(DaemonUnavailableError, match=problem):
            await client.status()


async def test_answer_without_end(address: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_REPLY", 1000)
    async with raw_server(address, OK + b" " * 1001) as client:
        with pytest.raises(DaemonUnavailableError, match="not one of this version"):
            await client.status()


async def test_connection_reset(address: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def reset(_: object, __: int) -> bytes:
        raise ConnectionResetError

    monkeypatch.setattr(asyncio.StreamReader, "read", reset)
    async with raw_server(address, OK) as client:
        with pytest.raises(DaemonUnavailableError, match="in the middle of its answer"):
            await client.status()


@pytest.mark.parametrize("lines", [b"", b'{"reference": "a", "present": 1}\n', b'{"refer'])
async def test_prefetch_cut_off(address: Path, lines: bytes) -> None:
    async with raw_server(address, OK + lines) as client:
        with pytest.raises(DaemonUnavailableError, match="in the middle of its answer"):
            async for _ in client.prefetch(PrefetchRequest(references=["a"])):
                pass


def test_every_family_is_rebuilt() -> None:
    families = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, LazyimgError)
    }
    for family in families:
        rebuilt = rebuild_error(ErrorReply.of(family("here", "broken", "mend it")))
        assert type(rebuilt) is family
        assert str(rebuilt) == "here: broken; mend it"
    assert RegistryError in families


def test_unknown_kind_keeps_its_exit_code() -> None:
    reply = ErrorReply(kind="new", what="a", problem="b", remedy="", exit_code=99)
    rebuilt = rebuild_error(reply)
    assert (rebuilt.kind, rebuilt.exit_code, str(rebuilt)) == ("new", 99, "a: b")
    assert type(rebuild_error(reply)).__mro__[1] is LazyimgError


@pytest.mark.parametrize("name", ["/mnt/caf\udce9", "/\udcff\udcfe"])
@pytest.mark.usefixtures("daemon")
async def test_name_that_is_not_utf8(address: Path, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        await Client(str(address)).unmount(UnmountRequest(directory=name))
    assert str(caught.value) == (
        f"{name}: is not UTF-8, and the daemon's API has no other names; rename it"
    )
