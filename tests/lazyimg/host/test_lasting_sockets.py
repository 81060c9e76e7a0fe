"""Sockets of gRPC servers, of which each process has its own, and callers that notice nothing."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from lazyimg.errors import ConfigurationError, InUseError, StorageError
from lazyimg.host import lasting_sockets
from lazyimg.host.lasting_sockets import LastingSockets
from lazyimg.host.service_manager import ServiceManager
from lazyimg.host.waiting import Waiting
from tests.real.grpc_process import killed_server, make_server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator, Sequence
    from pathlib import Path


class Keeper(ServiceManager):
    """Keeps what this process gives it, or another one, which is killed."""

    def __init__(self) -> None:
        super().__init__({})
        self.kept: dict[str, socket.socket] = {}

    def notify(self, message: str, fds: Sequence[int] = ()) -> bool:
        name = message.rpartition("=")[2]
        if fds:
            self.kept[name] = socket.socket(fileno=os.dup(fds[0]))
        else:
            self.kept.pop(name).close()
        return True

    @contextmanager
    def killed_server(self, path: Path) -> Iterator[None]:
        """Another process has the server while the block runs."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            notify = path.with_name("notify")
            channel.bind(str(notify))
            with killed_server(path, b"first", notify):
                data, fds, _, _ = socket.recv_fds(channel, 1000, 4)
                self.notify(data.decode(), fds)
                os.close(*fds)
                yield
            notify.unlink()

    def hand_over(self) -> dict[str, Waiting]:
        """What the next process does first."""
        return {name: Waiting(one.dup()) for name, one in self.kept.items()}

    def close(self) -> None:
        for one in self.kept.values():
            one.close()


class Process:
    """A process with a server."""

    def __init__(self, path: Path, word: bytes, keeper: Keeper) -> None:
        self._path = path
        self._sockets = LastingSockets(keeper, keeper.hand_over())
        self._server = make_server(word)
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        await self._sockets.start(self._server, self._path, "one", self._stack)

    async def stop(self) -> None:
        await self._stack.aclose()
        await self._server.stop(None)


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    made = Keeper()
    yield made
    made.close()


def ask(channel: grpc.aio.Channel) -> Awaitable[bytes]:
    """Begin a call."""
    method: Any = channel.unary_unary("/service/Call")
    call: Awaitable[bytes] = method(b"", timeout=20)
    return call


def kept_name(keeper: Keeper) -> str:
    """What the one socket is bound to that is kept; it listens."""
    (kept,) = keeper.kept.values()
    assert kept.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    name: str = kept.getsockname()
    return name


async def test_callers_wait_for_the_next_process(tmp_path: Path, keeper: Keeper) -> None:
    path = tmp_path / "socket"
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        with keeper.killed_server(path):
            assert await ask(channel) == b"first"
            before = kept_name(keeper)
        calls = [ask(channel) for _ in range(3)]
        second = Process(path, b"second", keeper)
        async with grpc.aio.insecure_channel(f"unix:{path}") as other:
            calls.append(ask(other))
            await second.start()
            assert [await each for each in calls] == [b"second"] * 4
            assert await ask(other) == b"second"
        assert await ask(channel) == b"second"
        assert kept_name(keeper) != before
        await second.stop()
    assert keeper.kept == {}
    assert list(tmp_path.iterdir()) == []


async def test_socket_is_for_root_only(tmp_path: Path, keeper: Keeper) -> None:
    path = tmp_path / "socket"
    process = Process(path, b"", keeper)
    await process.start()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]
    assert kept_name(keeper).startswith(f"{tmp_path}/.socket/")
    await process.stop()


async def test_process_that_died_before_its_socket_was_reached(
    tmp_path: Path, keeper: Keeper
) -> None:
    path = tmp_path / "socket"
    with keeper.killed_server(path):
        before = kept_name(keeper)
    unseen = socket.socket(socket.AF_UNIX)
    unseen.bind(str(tmp_path / "unseen"))
    unseen.listen()
    keeper.kept["grpc-one-unseen"] = unseen
    (tmp_path / ".socket").mkdir()
    (tmp_path / "unseen").rename(tmp_path / ".socket/socket")
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        call = ask(channel)
        second = Process(path, b"second", keeper)
        await second.start()
        assert await call == b"second"
        assert kept_name(keeper) not in {before, str(tmp_path / "unseen")}
        await second.stop()


async def test_sockets_of_which_there_are_none_any_more(tmp_path: Path, keeper: Keeper) -> None:
    path = tmp_path / "socket"
    with keeper.killed_server(path):
        pass
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        call = ask(channel)
        LastingSockets(keeper, keeper.hand_over()).close_others()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert keeper.kept == {}


async def refusal(path: Path) -> Exception:
    server = make_server(b"")
    async with AsyncExitStack() as stack:
        with pytest.raises(Exception, match=r".") as caught:
            await LastingSockets(Keeper(), {}).start(server, path, "one", stack)
    await server.stop(None)
    return caught.value


async def test_another_one_listens_there(tmp_path: Path, keeper: Keeper) -> None:
    path = tmp_path / "socket"
    process = Process(path, b"", keeper)
    await process.start()
    assert isinstance(await refusal(path), InUseError)
    await process.stop()


async def test_no_place_for_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    error = await refusal(path)
    assert isinstance(error, StorageError)
    text = "a file is there that is no socket; check the address"
    assert str(error) == f"{path}: cannot listen: {text}"
    assert path.read_text() == "mine"
    long = tmp_path / ("s" * 120)
    error = await refusal(long)
    assert isinstance(error, StorageError)
    assert str(error).startswith(f"{long}: cannot listen: ")
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / ".socket").touch()
    error = await refusal(tmp_path / "socket")
    assert str(error) == f"{tmp_path}/socket: cannot listen: File exists; check the address"
    tmp_path.chmod(0o777)
    assert isinstance(await refusal(tmp_path / "other"), ConfigurationError)
    tmp_path.chmod(0o700)


async def test_socket_that_cannot_be_kept_is_said(
    tmp_path: Path,
    keeper: Keeper,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fds = tmp_path / "fds"
    fds.mkdir()
    (fds / "9").symlink_to("socket:[1]")
    (fds / "8").symlink_to("/some/file")
    (fds / "7").touch()
    monkeypatch.setattr(lasting_sockets, "_OWN_FDS", fds)
    path = tmp_path / "socket"
    process = Process(path, b"word", keeper)
    await process.start()
    assert caplog.messages == [f"{path}: callers will be refused while no process serves"]
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        assert await ask(channel) == b"word"
    await process.stop()
    assert keeper.kept == {}
