"""The local API's client: against a daemon over a real socket, and against broken ones."""

from __future__ import annotations

import socket
import threading
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from lazyimg import errors
from lazyimg.api import client as client_module
from lazyimg.api.client import Client, rebuild_error
from lazyimg.api.messages import (
    Access,
    CacheCheckReply,
    CacheCheckRequest,
    ErrorReply,
    ImageRequest,
    InspectRequest,
    MountRequest,
    PrefetchRequest,
    PushIndexRequest,
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
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def address(tmp_path: Path) -> Path:
    return tmp_path / "lazyimg.sock"


@pytest.fixture
def daemon(address: Path) -> Iterator[FakeDaemon]:
    with serve_in_thread(FakeDaemon(), address) as served:
        yield served


@contextmanager
def raw_server(address: Path, answer: bytes) -> Iterator[Client]:
    """Answer one request with these bytes."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):  # the client may have had enough
            connection.recv(65536)  # it comes in one piece
            connection.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield Client(str(address))
        thread.join()


@pytest.mark.usefixtures("daemon")
def test_mount_and_unmount(address: Path) -> None:
    client = Client(str(address))
    mounted = client.mount(MountRequest(reference=IMAGE, directory="/mnt"))
    assert (mounted.digest, mounted.fsid, mounted.directory) == (DIGEST, FSID, "/mnt")
    assert [mount.directory for mount in (client.status()).mounts] == ["/mnt"]
    assert (client.unmount(UnmountRequest(directory="/mnt"))).reference == IMAGE
    assert (client.status()).mounts == []


def test_request_arrives_whole(address: Path, daemon: FakeDaemon) -> None:
    request = MountRequest(
        reference=IMAGE,
        directory="/m\u00e4",
        platform="linux/arm64",
        read_write=True,
        access=Access(username="u", password="p", plain_http=True),
    )
    Client(str(address)).mount(request)
    assert daemon.requests == [request]


@pytest.mark.usefixtures("daemon")
def test_fsid_and_inspect(address: Path) -> None:
    client = Client(str(address))
    assert (client.fsid(ImageRequest(reference=IMAGE))).fsid == FSID
    reply = client.inspect(InspectRequest(reference=IMAGE))
    assert reply.layers[0].present == 25 * MIB


def test_indexes(daemon: FakeDaemon, address: Path) -> None:
    client = Client(str(address))
    request = ImageRequest(reference=IMAGE)
    assert [layer.made for layer in client.create_index(request).layers] == [True, False, False]
    assert len(client.indexes().layers) == len(client.remove_index(request).layers) == 1
    push = PushIndexRequest(reference=IMAGE, tag="2")
    assert len(client.find_indexes(request).layers) == 2
    assert client.push_index(push).tagged == "registry.example/app:2"
    assert len(client.unpush_index(request).artifacts) == 2
    assert daemon.requests == [request, request, request, push, request]


def test_cache(daemon: FakeDaemon, address: Path) -> None:
    verdict = CacheCheckReply(device="one", checked=1, unchecked=2, wrong=3, repaired=4)
    daemon.verdicts["one"] = verdict
    client = Client(str(address))
    assert [each.device for each in client.cache().devices] == ["one", "gone"]
    request = CacheCheckRequest(device="one", repair=True)
    assert client.check_cache(request) == verdict
    assert daemon.requests == [request]


@pytest.mark.usefixtures("daemon")
def test_validation(address: Path) -> None:
    seen: list[tuple[int, int]] = []
    request = ImageRequest(reference=IMAGE)
    reply = Client(str(address)).validate(request, lambda *step: seen.append(step))
    assert [layer.problem for layer in reply.layers] == ["", "lies"]
    assert seen == [(MIB, 2 * MIB)]
    with pytest.raises(NotFoundError, match="the registry has no such image"):
        Client(str(address)).validate(ImageRequest(reference="none"), lambda *_: None)


@pytest.mark.usefixtures("daemon")
def test_prefetch_gives_events_as_they_come(address: Path) -> None:
    request = PrefetchRequest(references=[IMAGE, "registry.test/none"])
    events = list(Client(str(address)).prefetch(request))
    assert [event.present // MIB for event in events] == [25, 50, 75, 100, 0]
    assert [event.done for event in events] == [False, False, False, True, False]
    assert events[-1].error is not None
    assert events[-1].error.kind == "not-found"


def test_prefetch_that_is_closed_ends_with_its_connection(address: Path) -> None:
    gone = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(OK + b'{"reference": "a", "present": 1}\n')
            while connection.recv(65536):
                pass
        gone.set()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        threading.Thread(target=serve).start()
        with closing(Client(str(address)).prefetch(PrefetchRequest(references=["a"]))) as events:
            assert next(events).present == 1
        assert gone.wait(10)


@pytest.mark.usefixtures("daemon")
def test_failure_keeps_its_class_and_facts(address: Path) -> None:
    client = Client(str(address))
    client.mount(MountRequest(reference=IMAGE, directory="/mnt"))
    with pytest.raises(InUseError) as caught:
        client.mount(MountRequest(reference=IMAGE, directory="/mnt"))
    assert caught.value.exit_code == 79
    assert str(caught.value) == f"/mnt: has {IMAGE} mounted on it; unmount it first"
    with pytest.raises(NotFoundError, match=r"^other: the registry has no such image$"):
        client.fsid(ImageRequest(reference="other"))


def test_no_daemon(address: Path) -> None:
    with pytest.raises(DaemonUnavailableError) as caught:
        Client(str(address)).status()
    assert str(caught.value) == (
        f"{address}: no daemon answers there; start it with: lazyimg serve"
    )


def test_socket_that_nobody_listens_on(address: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
    with pytest.raises(DaemonUnavailableError, match="no daemon answers there"):
        Client(str(address)).status()


def test_path_too_long_for_a_socket() -> None:
    with pytest.raises(DaemonUnavailableError, match="no daemon answers there"):
        Client("/" + "x" * 200).status()


def test_socket_of_root(address: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: socket.socket, _address: str) -> None:
        raise PermissionError

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(NotRootError) as caught:
        Client(str(address)).status()
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
def test_broken_answer(address: Path, answer: bytes, problem: str) -> None:
    with (
        raw_server(address, answer) as client,
        pytest.raises(DaemonUnavailableError, match=problem),
    ):
        client.status()


def test_answer_without_end(address: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_REPLY", 1000)
    with (
        raw_server(address, OK + b" " * 1001) as client,
        pytest.raises(DaemonUnavailableError, match="not one of this version"),
    ):
        client.status()


def test_connection_reset(address: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reset(*_: object) -> int:
        raise ConnectionResetError

    monkeypatch.setattr(socket.SocketIO, "readinto", reset)
    with (
        raw_server(address, OK) as client,
        pytest.raises(DaemonUnavailableError, match="in the middle of its answer"),
    ):
        client.status()


@pytest.mark.parametrize("lines", [b"", b'{"reference": "a", "present": 1}\n', b'{"refer'])
def test_prefetch_cut_off(address: Path, lines: bytes) -> None:
    with (
        raw_server(address, OK + lines) as client,
        pytest.raises(DaemonUnavailableError, match="in the middle of its answer"),
    ):
        list(client.prefetch(PrefetchRequest(references=["a"])))


@pytest.mark.parametrize("lines", [b"", b'{"read": 1, "total": 2}\n', b'{"rea'])
def test_validation_cut_off(address: Path, lines: bytes) -> None:
    with (
        raw_server(address, OK + lines) as client,
        pytest.raises(DaemonUnavailableError, match="in the middle of its answer"),
    ):
        client.validate(ImageRequest(reference="a"), lambda _read, _total: None)


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
def test_name_that_is_not_utf8(address: Path, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        Client(str(address)).unmount(UnmountRequest(directory=name))
    assert str(caught.value) == (
        f"{name}: is not UTF-8, and the daemon's API has no other names; rename it"
    )
