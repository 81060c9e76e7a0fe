"""The system calls, with real processes, signals and sockets."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from lazyimg.supervisor.device import CANNOT_EXEC, ProcessDevice
from lazyimg.supervisor.ports import Happened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

LIMIT = 30.0

SAY = """
import array, os, socket, sys
address = "\\0" + os.environ["NOTIFY_SOCKET"][1:]
channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
def say(text, *fds):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    channel.sendmsg([text.encode()], rights if fds else [], 0, address)
"""


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ProcessDevice]]:
    """Make a device whose worker is a program of Python; signals are given back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGCHLD, signal.SIGINT)}
    made: list[ProcessDevice] = []

    def make_device(program: str, **environment: str) -> ProcessDevice:
        command = [sys.executable, "-I", "-S", "-c", SAY + program]
        made.append(ProcessDevice(command, {**os.environ, **environment}))
        return made[-1]

    yield make_device
    for device in made:
        device.close()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def wait_for(
    device: ProcessDevice, condition: Callable[[Happened], bool], listeners: Sequence[int] = ()
) -> Happened:
    """Wait until all that happened fulfils a condition."""
    total = Happened()
    end = time.monotonic() + LIMIT
    while not condition(total):
        assert time.monotonic() < end, total
        more = device.wait(end - time.monotonic(), listeners)
        total = Happened(
            total.ends + more.ends,
            total.datagrams + more.datagrams,
            total.stops + more.stops,
            total.callers + more.callers,
        )
    return total


def ended(happened: Happened) -> bool:
    return bool(happened.ends)


def test_worker_says_something_and_ends(make: Callable[..., ProcessDevice]) -> None:
    device = make("say('READY=1'); say('STATUS=x'); sys.exit(7)")
    process = device.start([], 0)
    happened = wait_for(device, ended)
    assert happened.ends == ((process, 7),)
    assert [(one.data, one.sender, one.fds) for one in happened.datagrams] == [
        (b"READY=1", process, ()),
        (b"STATUS=x", process, ()),
    ]


def test_fds_go_there_and_back(make: Callable[..., ProcessDevice], tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("content")
    device = make("say('FDSTORE=1', *map(os.open, sys.argv[1:], [os.O_RDONLY] * 2))")
    device._command += [str(tmp_path / "kept"), "/dev/null"]
    device.start([], 0)
    (datagram,) = wait_for(device, ended).datagrams
    first, second = datagram.fds
    assert os.read(first, 100) == b"content"
    assert not os.get_inheritable(first)
    os.lseek(first, 0, os.SEEK_SET)

    device = make("say(' '.join(os.environ[n] for n in sys.argv[1:]) + os.read(4, 99).decode())")
    device._command += ["LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID"]
    process = device.start([("null", second), ("kept", first)], 3)
    (datagram,) = wait_for(device, ended).datagrams
    assert datagram.data == f"3 null:kept:callers {process}content".encode()
    device.close_fd(first)
    device.close_fd(second)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(first)


TAKE = """
channel = socket.socket(fileno=3)
for _ in range(2):
    name, fds, _, _ = socket.recv_fds(channel, 100, 1)
    socket.socket(fileno=fds[0]).sendall(b" from the worker for " + name)
"""


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "socket"))
        made.listen()
        yield made


@contextmanager
def calling(listener: socket.socket) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(LIMIT)
        caller.connect(listener.getsockname())
        yield caller


def test_callers_are_greeted_before_there_is_a_worker(
    make: Callable[..., ProcessDevice], listener: socket.socket
) -> None:
    device = make(TAKE)
    fd = os.dup(listener.fileno())
    with calling(listener) as one, calling(listener) as other:
        calls = wait_for(device, lambda happened: len(happened.callers) == 2, [fd]).callers
        for number, (called, caller) in enumerate(calls):
            assert called == fd
            device.greet(caller, f"name {number}", b"hello")
        for each in (one, other):
            assert each.recv(5) == b"hello"
        device.start([], 1)
        wait_for(device, ended, [fd])
        said = {one.recv(100), other.recv(100)}
        assert said == {b" from the worker for name 0", b" from the worker for name 1"}
        assert one.recv(1) == b""
    device.close_fd(fd)
    with calling(listener):
        assert device.wait(0.01) == Happened()


def test_caller_that_nobody_can_take(
    make: Callable[..., ProcessDevice], caplog: pytest.LogCaptureFixture
) -> None:
    device = make("")
    ours, theirs = socket.socketpair()
    ours.close()
    device.greet(theirs.detach(), "name", b"hello")
    assert caplog.messages == ["a caller of name is refused: [Errno 32] Broken pipe"]


def test_sockets_that_are_waited_for_no_longer(
    make: Callable[..., ProcessDevice],
    listener: socket.socket,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device, fd = make(""), listener.fileno()
    with calling(listener):
        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, "accept", raising(BlockingIOError()))
            assert device.wait(LIMIT, [fd]) == Happened()
        assert device.wait(0.01, []) == Happened()
        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, "accept", raising(OSError(24, "Too many open files")))
            assert device.wait(LIMIT, [fd]) == Happened()
        assert device.wait(0.01, [fd]) == Happened()  # it does not turn and turn
        assert device.wait(0.01) == Happened()
        ((_, caller),) = device.wait(LIMIT, [fd]).callers
        os.close(caller)
    assert caplog.messages == ["callers wait for the next worker: [Errno 24] Too many open files"]


def raising(error: OSError) -> Callable[[socket.socket], None]:
    def fail(_: socket.socket) -> None:
        raise error

    return fail


def test_environment_of_the_worker(make: Callable[..., ProcessDevice]) -> None:
    names = "('LISTEN_PID', 'LISTEN_FDS', 'LAZYIMG_SUPERVISOR_PID', 'LAZYIMG_WORKER_RESTARTS')"
    device = make(
        f"say(repr([os.environ.get(name) for name in {names}]))",
        LISTEN_PID="1", LISTEN_FDS="5", NOTIFY_SOCKET="/none",
    )  # fmt: skip
    device.start([], 0)
    (datagram,) = wait_for(device, ended).datagrams
    assert datagram.data == repr([None, None, str(os.getpid()), "0"]).encode()


def test_worker_inherits_nothing_of_ours(make: Callable[..., ProcessDevice]) -> None:
    device = make("say(' '.join(os.listdir('/proc/self/fd')))")
    ours = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 300)
    device.start([("a", ours)], 0)
    (datagram,) = wait_for(device, ended).datagrams
    os.close(ours)
    open_fds = set(map(int, datagram.data.split()))
    assert 3 in open_fds
    assert ours not in open_fds


def test_worker_that_cannot_be_run(
    make: Callable[..., ProcessDevice], capfd: pytest.CaptureFixture[str]
) -> None:
    device = make("")
    device._command = ["/none/such"]
    device.start([], 0)
    assert wait_for(device, ended).ends[0][1] == CANNOT_EXEC
    assert capfd.readouterr().err == (
        "lazyimg: /none/such: cannot be run: [Errno 2] No such file or directory: '/none/such'\n"
    )


@pytest.mark.parametrize(
    ("number", "arrives"),
    [
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGHUP, signal.SIGTERM),
        (signal.SIGKILL, signal.SIGKILL),
    ],
)
def test_signal_to_the_worker(
    make: Callable[..., ProcessDevice], number: int, arrives: int
) -> None:
    device = make("say('here'); import time; time.sleep(60)")
    process = device.start([], 0)
    wait_for(device, lambda happened: bool(happened.datagrams))
    device.signal(process, number)
    assert wait_for(device, ended).ends == ((process, -arrives),)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_to_the_supervisor(make: Callable[..., ProcessDevice], number: int) -> None:
    device = make("")
    os.kill(os.getpid(), number)
    assert wait_for(device, lambda happened: bool(happened.stops)).stops == (number,)


def test_wait_without_an_event(make: Callable[..., ProcessDevice]) -> None:
    device = make("")
    before = device.now()
    assert device.wait(0.01) == Happened()
    assert device.now() > before


def test_datagram_with_more_fds_than_can_be_open(
    make: Callable[..., ProcessDevice],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = make("say('x')")

    class Broken:
        def recvmsg(self, *_: int) -> None:
            raise OSError(24, "Too many open files")

    process = device.start([], 0)
    with monkeypatch.context() as patched:
        patched.setattr(device, "_channel", Broken())
        assert device.wait(LIMIT) in (Happened(), Happened(ends=((process, 0),)))
    assert "a datagram of the worker cannot be read: [Errno 24] Too many open files" in caplog.text


@pytest.mark.parametrize("abstract", [False, True])
def test_service_manager_is_told(
    make: Callable[..., ProcessDevice], tmp_path: Path, *, abstract: bool
) -> None:
    name = f"lazyimg-supervisor-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}" if abstract else name)
        manager.settimeout(LIMIT)
        device = make("", NOTIFY_SOCKET=f"@{name}" if abstract else name)
        device.notify("READY=1")
        assert manager.recv(100) == b"READY=1"


def test_service_manager_that_is_gone_or_none(
    make: Callable[..., ProcessDevice], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make("", NOTIFY_SOCKET="").notify("READY=1")
    assert caplog.messages == []
    make("", NOTIFY_SOCKET=str(tmp_path / "none")).notify("READY=1")
    assert caplog.messages == [
        "the service manager was not told READY=1: [Errno 2] No such file or directory"
    ]
