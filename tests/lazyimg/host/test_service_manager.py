"""The service manager's side of a process, with a real socket."""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import KernelError
from lazyimg.host import service_manager
from lazyimg.host.service_manager import ServiceManager

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def address(tmp_path: Path) -> str:
    return str(tmp_path / "notify")


@pytest.fixture
def channel(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(address)
        channel.settimeout(10)
        yield channel


def test_no_service_manager(caplog: pytest.LogCaptureFixture) -> None:
    manager = ServiceManager({})
    assert manager.notify("READY=1") is False
    manager.keep("a", 0)
    manager.forget("a")
    manager.wait_told()
    assert (manager.names, manager.take("a")) == ([], None)
    assert (manager.supervisor, manager.restarts) == (0, 0)
    assert caplog.messages == []


def test_variables_are_taken_out_of_the_environment(address: str) -> None:
    environment = {
        "NOTIFY_SOCKET": address,
        "LISTEN_PID": "1",
        "LISTEN_FDS": "1",
        "LISTEN_FDNAMES": "a",
        "LAZYIMG_SUPERVISOR_PID": "77",
        "LAZYIMG_WORKER_RESTARTS": "3",
        "PATH": "/bin",
    }
    manager = ServiceManager(environment)
    assert environment == {"PATH": "/bin"}
    assert (manager.supervisor, manager.restarts, manager.names) == (77, 3, [])


def test_handed_fds_are_taken_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    fds = [os.dup(0) for _ in range(3)]
    names = ["a", "b", "a"]
    monkeypatch.setattr(
        service_manager, "take_handed", lambda _: list(zip(names, fds, strict=True))
    )
    manager = ServiceManager({})
    assert manager.names == ["a", "b"]
    assert manager.take("a") == fds[0]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fds[2])
    assert manager.names == ["b"]
    assert manager.take("b") == fds[1]
    assert manager.take("b") is None
    for fd in fds[:2]:
        os.close(fd)


@pytest.mark.parametrize("abstract", [False, True])
def test_it_is_told(tmp_path: Path, *, abstract: bool) -> None:
    name = f"lazyimg-manager-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(f"\0{name}" if abstract else name)
        channel.settimeout(10)
        manager = ServiceManager({"NOTIFY_SOCKET": f"@{name}" if abstract else name})
        assert manager.notify("READY=1") is True
        assert channel.recv(100) == b"READY=1"
        manager.forget("a")
        assert channel.recv(100) == b"FDSTOREREMOVE=1\nFDNAME=a"


def test_fd_is_kept(address: str, channel: socket.socket, tmp_path: Path) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": address})
    with (tmp_path / "file").open("w+") as file:
        file.write("content")
        file.flush()
        manager.keep("a", file.fileno())
    data, fds, _, _ = socket.recv_fds(channel, 100, 4)
    assert data == b"FDSTORE=1\nFDPOLL=0\nFDNAME=a"
    assert os.pread(fds[0], 100, 0) == b"content"
    os.close(fds[0])


def test_listening_socket_is_kept_with_a_greeting(address: str, channel: socket.socket) -> None:
    ServiceManager({"NOTIFY_SOCKET": address}).keep("a", 0, b"\0\xff")
    data, fds, _, _ = socket.recv_fds(channel, 100, 4)
    assert data == b"FDSTORE=1\nFDPOLL=0\nX_GREETING=00ff\nFDNAME=a"
    os.close(fds[0])


def test_service_manager_that_is_gone(address: str, caplog: pytest.LogCaptureFixture) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": address})
    assert manager.notify("FDSTORE=1\nFDNAME=a") is False
    assert caplog.messages == [
        "the service manager was not told FDSTORE=1 FDNAME=a: [Errno 2] No such file or directory"
    ]
    manager.wait_told()


def test_barrier(address: str, channel: socket.socket) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": address})
    waiting = threading.Thread(target=manager.wait_told)
    waiting.start()
    data, fds, _, _ = socket.recv_fds(channel, 100, 4)
    assert data == b"BARRIER=1"
    assert waiting.is_alive()
    os.close(fds[0])
    waiting.join(10)
    assert not waiting.is_alive()


@pytest.mark.usefixtures("channel")
def test_barrier_that_nobody_reads(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_manager, "BARRIER_TIMEOUT", 0.01)
    with pytest.raises(KernelError) as caught:
        ServiceManager({"NOTIFY_SOCKET": address}).wait_told()
    assert str(caught.value) == "service manager: does not read its socket for 0.01 s"


def test_supervisor_that_is_gone(address: str, caplog: pytest.LogCaptureFixture) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": address, "LAZYIMG_SUPERVISOR_PID": "77"})
    manager.lose_supervisor()
    assert manager.supervisor == 0
    assert manager.notify("STOPPING=1") is False
    (said,) = caplog.messages
    assert said == (
        "the supervisor, process 77, is gone: mounts work until this process ends too;"
        " start lazyimg anew when nothing needs them"
    )
