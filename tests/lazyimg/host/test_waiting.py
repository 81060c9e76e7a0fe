"""Callers that come before there is a server: greeted, then passed on to it."""

from __future__ import annotations

import os
import socket
import struct
import time
from contextlib import contextmanager, suppress
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from lazyimg.host.service_manager import ServiceManager
from lazyimg.host.waiting import PIECE, Waiting, greet_callers
from lazyimg_formats.http2 import ACKNOWLEDGEMENT, GREETING, PREFACE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIMIT = 20.0


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(LIMIT)
        yield listener


@contextmanager
def calling(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(LIMIT)
        caller.connect(str(path))
        yield caller


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[Waiting]:
    """Callers of the socket `old`."""
    with listening(tmp_path / "old") as listener:
        made = Waiting(socket.socket(fileno=os.dup(listener.fileno())))
        yield made
        made.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[socket.socket]:
    """What listens on the socket `new`."""
    with listening(tmp_path / "new") as listener:
        yield listener


@pytest.fixture
def pair(
    waiting: Waiting, server: socket.socket, tmp_path: Path
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A caller that was greeted, and the server's end of what it is passed on by."""
    with calling(tmp_path / "old") as caller:
        assert receive(caller, len(GREETING)) == GREETING
        waiting.answer(str(tmp_path / "new"))
        accepted, _ = server.accept()
        accepted.settimeout(LIMIT)
        with accepted:
            yield caller, accepted


def receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := connection.recv(size - len(data))):
        data += piece
    return data


def test_caller_is_greeted_before_there_is_a_server(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    caller, server = pair
    caller.sendall(PREFACE + ACKNOWLEDGEMENT + b"request")
    server.sendall(b"answer")
    assert receive(server, len(PREFACE) + 7) == PREFACE + b"request"
    assert receive(caller, 6) == b"answer"


def test_many_bytes_both_ways_to_slow_readers(pair: tuple[socket.socket, socket.socket]) -> None:
    data = PREFACE + ACKNOWLEDGEMENT + bytes(range(256)) * (PIECE // 256) * 20
    expected = PREFACE + data[len(PREFACE + ACKNOWLEDGEMENT) :]
    caller, server = pair
    for source, target, arrives in ((caller, server, expected), (server, caller, data)):
        sender = Thread(target=source.sendall, args=(data,), daemon=True)
        sender.start()
        assert receive(target, len(arrives)) == arrives
        sender.join()


def test_sender_waits_for_its_reader(pair: tuple[socket.socket, socket.socket]) -> None:
    caller, server = pair
    server.settimeout(0.3)  # what is on its way has arrived where it can
    sent = 0
    with suppress(TimeoutError):
        while sent < 100 * PIECE:
            sent += server.send(bytes(PIECE))
    assert sent < 100 * PIECE
    assert receive(caller, sent) == bytes(sent)


def test_each_side_may_end_first(pair: tuple[socket.socket, socket.socket]) -> None:
    caller, server = pair
    caller.sendall(PREFACE)
    caller.shutdown(socket.SHUT_WR)
    assert receive(server, len(PREFACE) + 1) == PREFACE
    server.sendall(b"the rest")
    server.shutdown(socket.SHUT_WR)
    assert receive(caller, 100) == b"the rest"


def test_side_that_breaks_ends_the_other(pair: tuple[socket.socket, socket.socket]) -> None:
    caller, server = pair
    server.sendall(b"unread")
    assert receive(caller, 1) == b"u"
    caller.close()  # with bytes unread: a reset
    assert receive(server, 1) == b""


def test_server_that_is_not_there(
    waiting: Waiting, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with calling(tmp_path / "old") as caller:
        assert receive(caller, len(GREETING)) == GREETING
        waiting.answer(str(tmp_path / "none"))
        assert caller.recv(1) == b""
    assert caplog.messages == [
        "a caller that waited is not answered: [Errno 2] No such file or directory"
    ]


def test_caller_that_comes_when_there_is_a_server(
    waiting: Waiting, server: socket.socket, tmp_path: Path
) -> None:
    waiting.answer(str(tmp_path / "new"))
    for _ in range(2):
        with calling(tmp_path / "old") as caller:
            accepted, _ = server.accept()
            with accepted:
                accepted.sendall(b"hello")
                assert receive(caller, len(GREETING) + 5) == GREETING + b"hello"


def test_nobody_is_greeted_after_the_end(waiting: Waiting, tmp_path: Path) -> None:
    with calling(tmp_path / "old") as caller:
        assert receive(caller, len(GREETING)) == GREETING
        waiting.close()
        assert caller.recv(1) == b""


def test_socket_that_cannot_accept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with listening(tmp_path / "old") as listener:
        listener.settimeout(None)
        listener.shutdown(socket.SHUT_RD)
        waiting = Waiting(listener.dup())
        end = time.monotonic() + LIMIT
        while not caplog.messages and time.monotonic() < end:
            time.sleep(0.01)
        waiting.close()
    assert caplog.messages == ["callers that waited are refused: [Errno 22] Invalid argument"]


def test_callers_that_the_supervisor_has_greeted(
    tmp_path: Path, server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with channel, listening(tmp_path / "old") as listener:
        handed = [("grpc-a", os.dup(listener.fileno())), ("callers", theirs.detach())]
        monkeypatch.setattr("lazyimg.host.service_manager.take_handed", lambda _: handed)
        callers = []
        for _ in range(2):
            caller, connection = socket.socketpair()
            socket.send_fds(channel, [b"grpc-a"], [connection.fileno()])
            connection.close()
            caller.settimeout(LIMIT)
            callers.append(caller)
        waiting = greet_callers(ServiceManager({}))
        waiting["grpc-a"].answer(str(tmp_path / "new"))
        for caller in callers:
            caller.sendall(PREFACE + ACKNOWLEDGEMENT)
            caller.shutdown(socket.SHUT_WR)
        for _ in callers:  # in any order: each has a thread
            accepted, _ = server.accept()
            accepted.settimeout(LIMIT)
            with accepted:
                assert receive(accepted, 1000) == PREFACE
                accepted.sendall(b"answer")
        for caller in callers:
            with caller:
                assert receive(caller, 1000) == b"answer"  # and no second greeting
        waiting["grpc-a"].close()


def test_only_kept_sockets_of_grpc_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other:
        for listener in (one, other):
            listener.bind(b"\0" + struct.pack("Q", id(listener)))
            listener.listen()
        handed = [
            ("grpc-a", os.dup(one.fileno())),
            ("api", os.dup(other.fileno())),
            ("grpc-b", os.dup(other.fileno())),
        ]
        monkeypatch.setattr("lazyimg.host.service_manager.take_handed", lambda _: handed)
        manager = ServiceManager({})
        waiting = greet_callers(manager)
        assert list(waiting) == ["grpc-a", "grpc-b"]
        assert manager.names == ["api"]
        for each in waiting.values():
            each.close()
        os.close(handed[1][1])
