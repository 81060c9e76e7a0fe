"""The daemon put together: start, the socket, the lock, the service manager, the end."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import grpc
import msgspec
import pytest

from lazyimg import app
from lazyimg.api.messages import (
    Access,
    CompletionReport,
    ImageRequest,
    MountRequest,
    PrefetchRequest,
)
from lazyimg.cache.device_cache import DeviceCache
from lazyimg.config import (
    CachefilesSettings,
    CompletionSettings,
    Config,
    ImageServiceSettings,
    RegistrySettings,
    SnapshotterSettings,
)
from lazyimg.errors import (
    DaemonUnavailableError,
    InUseError,
    KernelBusyError,
    KernelError,
    NotRootError,
    RegistryError,
    StorageError,
    UsageError,
)
from lazyimg.host import service_manager
from lazyimg.host.service_manager import ServiceManager
from lazyimg.host.space import CacheLimits, CacheSpace
from lazyimg.images.given import GivenCredentials
from lazyimg.images.library import (
    ChainRecord,
    ImageRecord,
    Library,
    MountRecord,
    MountState,
)
from lazyimg.images.shown import ShownAccess
from lazyimg.registry.auth import Credential
from lazyimg.snapshotter.lifecycle import REF
from lazyimg.transports import choice
from lazyimg.transports.cachefiles.staging import StagedDevices
from lazyimg_formats.containerd.labels import serialize_image_labels
from tests.fakes.api_client import ApiClient
from tests.fakes.host_mounts import FakeMounts
from tests.fakes.lazy_image import LazyLayer, add_lazy_image, make_lazy_layer
from tests.fakes.node import DIRECTORIES, MemoryTransport
from tests.fakes.registry import run_registry
from tests.real.snapshot_client import SnapshotClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Mapping

FSID = "f" * 64


class Started:
    """A daemon over a stand-in for the kernel.

    Attributes:
        events: what was done to the transport, and the end of each mount, in order.
        failure: raised when the device is opened.
        cannot_restore: raised when it is taken over.
    """

    def __init__(self, host: FakeMounts) -> None:
        self.host = host
        self.events: list[Any] = []
        self.failure: Exception | None = None
        self.cannot_restore: Exception | None = None
        self.device = tempfile.TemporaryFile()  # noqa: SIM115 - stands for the kernel's

    def transport(self, filler: Any, *, domain_id: str) -> MemoryTransport:
        started = self

        class Transport(MemoryTransport):
            async def start(
                self,
                directory: Path,
                *,
                tag: str,
                limits: CacheLimits,
                control_fd: int | None = None,
            ) -> None:
                assert directory.is_dir()
                self.staged = StagedDevices(CacheSpace(directory, limits, directory))
                if control_fd is None:
                    started.events.append(("start", directory, tag, limits, domain_id))
                    if started.failure is not None:
                        raise started.failure
                    self.control_fd = started.device.fileno()
                else:
                    started.events.append(("restore", os.fstat(control_fd).st_ino))
                    os.close(control_fd)
                    if started.cannot_restore is not None:
                        raise started.cannot_restore

            async def stop(self) -> None:
                started.events.append(("stop", list(started.host.points)))

        return Transport(self.host, Path("/nowhere"))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    started = Started(FakeMounts())
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    started.host.install(monkeypatch)
    monkeypatch.setattr(choice, "CachefilesTransport", started.transport)
    yield started
    started.device.close()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(root=str(tmp_path / "root"), address=str(tmp_path / "run" / "sock"))


@pytest.fixture(scope="module")
def layer() -> LazyLayer:
    return asyncio.run(make_lazy_layer({"bin/tool": bytes(range(256)) * 200}))


@asynccontextmanager
async def start(config: Config) -> AsyncIterator[ApiClient]:
    async with AsyncExitStack() as stack:
        await app.start(config, stack)
        yield ApiClient(config.address)


@pytest.mark.usefixtures("started")
async def test_start_makes_its_directories_and_answers(config: Config, tmp_path: Path) -> None:
    async with start(config) as client:
        status = await client.status()
        assert (status.root, status.mounts) == (config.root, [])
        mode = stat.S_IMODE((tmp_path / "run" / "sock").stat().st_mode)
        assert mode & 0o077 == 0
    names = {path.name for path in (tmp_path / "root").iterdir() if path.is_dir()}
    assert names == {*DIRECTORIES, "cache"}
    assert stat.S_IMODE((tmp_path / "root").stat().st_mode) == 0o700
    assert not (tmp_path / "run" / "sock").exists()


async def test_settings_reach_the_transport(
    config: Config, started: Started, tmp_path: Path
) -> None:
    cachefiles = CachefilesSettings(
        tag="mine", brun=50, bcull=40, bstop=30, frun=20, fcull=15, fstop=10
    )
    config = Config(
        root=config.root,
        address=config.address,
        cache=str(tmp_path / "elsewhere"),
        domain_id="mine",
        cachefiles=cachefiles,
    )
    async with start(config):
        pass
    limits = CacheLimits(50, 40, 30, 20, 15, 10)
    assert started.events[0] == ("start", tmp_path / "elsewhere", "mine", limits, "mine")


async def test_image_is_mounted_over_the_socket_and_unmounted_at_the_end(
    config: Config, started: Started, layer: LazyLayer
) -> None:
    async with run_registry() as registry, start(config) as client:
        add_lazy_image(registry, "app", "1", [layer])
        reference = f"{registry.host}/app:1"
        reply = await client.mount(MountRequest(reference=reference, directory="/one"))
        assert started.host.points == [f"{config.root}/mnt/{reply.fsid}", "/one"]
        request = PrefetchRequest(references=[reference])
        events = [event async for event in client.prefetch(request)]
        assert events[-1].present == events[-1].total == 13 * 4096
    assert started.events[-1] == ("stop", [])


class FileTransport(MemoryTransport):
    """A transport that names the files to mount."""

    def __init__(self, host: FakeMounts) -> None:
        super().__init__(host, Path("/nowhere"))
        self.name = "fuse"
        self.served: set[str] = set()

    async def prepare(self, devices: Mapping[str, int]) -> dict[str, Path]:
        self.served |= devices.keys()
        return {name: Path("/tree", name) for name in devices}

    async def release(self, names: Iterable[str]) -> None:
        self.served -= set(names)


async def test_image_is_mounted_from_files_where_the_transport_names_them(
    config: Config, started: Started, layer: LazyLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = FileTransport(started.host)
    cache = DeviceCache(Path(config.root).parent)

    async def make(*_: object) -> choice.Offer:
        async def start(control_fd: int | None) -> None:
            transport.control_fd = started.device.fileno()

        return choice.Offer(cast("Any", transport), start, cache)

    monkeypatch.setattr(choice, "MAKERS", {"fuse": make})
    config = msgspec.structs.replace(config, transport="fuse")
    async with run_registry() as registry, start(config) as client:
        add_lazy_image(registry, "app", "1", [layer])
        reference = f"{registry.host}/app:1"
        reply = await client.mount(MountRequest(reference=reference, directory="/one"))
        bootstrap, devices = started.host.files[reply.fsid]
        assert bootstrap == Path(config.root, "bootstraps", reply.fsid)
        assert {path.name for path in devices} == transport.served
        assert (await client.status()).transport == "fuse"
        assert (await client.cache()).devices == []
        with pytest.raises(UsageError, match="images are mounted from files here"):
            await client.fsid(ImageRequest(reference=reference))
    assert transport.served == set()
    assert started.host.points == []
    await cache.close()


async def completion_of(config: Config) -> CompletionReport | None:
    report = (await ApiClient(config.address).status()).snapshotter
    assert report is not None
    return report.completion


@pytest.mark.usefixtures("started")
async def test_snapshotter_answers_where_the_configuration_says(
    config: Config, tmp_path: Path
) -> None:
    address = tmp_path / "containerd" / "sock"
    settings = SnapshotterSettings(address=str(address))
    async with start(msgspec.structs.replace(config, snapshotter=settings)):
        client = SnapshotClient(address)
        (mount,) = await asyncio.to_thread(client.prepare, "key")
        assert mount.source == f"{config.root}/snapshotter/snapshots/1/fs"
        client.close()
        assert (await completion_of(config)) is not None
    assert not address.exists()
    off = CompletionSettings(bytes_per_second=0)
    async with start(msgspec.structs.replace(config, snapshotter=settings, completion=off)):
        assert (await completion_of(config)) is None
    async with start(config):
        assert not address.exists()


@pytest.mark.usefixtures("started")
async def test_image_is_ready_soon_after_its_pull(
    config: Config, tmp_path: Path, layer: LazyLayer
) -> None:
    """And after the next start, if what was made is not there any more."""
    address = tmp_path / "containerd" / "sock"
    settings = SnapshotterSettings(address=str(address))
    config = msgspec.structs.replace(config, snapshotter=settings)
    bootstraps = Path(config.root) / "bootstraps"
    async with run_registry() as registry:
        manifest = add_lazy_image(registry, "app", "1", [layer])
        async with start(config):
            client = SnapshotClient(address)
            labels = serialize_image_labels(
                f"{registry.host}/app:1", manifest.digest, layer.descriptor.digest
            )
            chain = {REF: str(layer.diff_id)}
            with pytest.raises(grpc.RpcError) as caught:
                await asyncio.to_thread(client.prepare, "extract", "", labels | chain)
            assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
            client.close()
            made = await made_bootstrap(bootstraps)
        made.unlink()
        async with start(config):
            assert await made_bootstrap(bootstraps) == made


async def made_bootstrap(bootstraps: Path) -> Path:
    """Wait until there is one, and give it."""
    async with asyncio.timeout(60):
        while True:
            for found in bootstraps.glob("[0-9a-f]*"):
                return found
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("started")
async def test_image_service_answers_where_the_configuration_says(
    config: Config, tmp_path: Path
) -> None:
    settings = ImageServiceSettings(
        address=str(tmp_path / "kubelet" / "sock"), containerd=str(tmp_path / "none")
    )
    async with start(msgspec.structs.replace(config, image_service=settings)):
        async with grpc.aio.insecure_channel(f"unix:{settings.address}") as channel:
            call: Any = channel.unary_unary("/runtime.v1.ImageService/ListImages")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "none" in str(caught.value.details())
    assert not Path(settings.address).exists()


async def test_restart_knows_images_and_their_sources(
    config: Config, started: Started, layer: LazyLayer
) -> None:
    async with run_registry() as registry:
        descriptor = add_lazy_image(registry, "app", "1", [layer])
        reference = f"{registry.host}/app@{descriptor.digest}"
        async with start(config) as client:
            first = await client.fsid(ImageRequest(reference=reference))
        asked = len(registry.asked)
        async with start(config) as client:
            assert await client.fsid(ImageRequest(reference=reference)) == first
            assert len(registry.asked) == asked
            events = [
                event async for event in client.prefetch(PrefetchRequest(references=[reference]))
            ]
            assert events[-1].done
            assert registry.count(path="/blobs/") > 0


async def test_credentials_of_a_request_serve_its_fills_and_are_not_recorded(
    config: Config, started: Started, layer: LazyLayer
) -> None:
    async with run_registry() as registry, start(config) as client:
        add_lazy_image(registry, "app", "1", [layer])
        registry.auth = "basic"
        registry.users["user"] = "never-on-disk"
        reference = f"{registry.host}/app:1"
        access = Access(username="user", password="never-on-disk")
        await client.mount(MountRequest(reference=reference, directory="/one", access=access))
        events = [
            event
            async for event in client.prefetch(
                PrefetchRequest(references=[reference], access=access)
            )
        ]
        assert events[-1].done
        files = [path for path in (tmp(config)).rglob("*") if path.is_file()]
        assert files
        assert not [path for path in files if b"never-on-disk" in path.read_bytes()]


def tmp(config: Config) -> Path:
    return config.cache_directory.parent


async def test_settings_of_registries_are_used(
    config: Config, started: Started, tmp_path: Path, layer: LazyLayer
) -> None:
    authfile = tmp_path / "auth.json"
    settings = RegistrySettings(authfile=str(authfile), retries=0)
    config = Config(root=config.root, address=config.address, registry=settings)
    async with run_registry() as registry, start(config) as client:
        add_lazy_image(registry, "app", "1", [layer])
        registry.auth = "basic"
        registry.users["user"] = "right"
        request = ImageRequest(reference=f"{registry.host}/app:1")
        registry.fail("status", path="/manifests/", status=503)
        with pytest.raises(RegistryError, match="the registry answers 503"):
            await client.fsid(request)
        authfile.write_text(json.dumps({"auths": {registry.host: {"auth": "dXNlcjpyaWdodA=="}}}))
        assert (await client.fsid(request)).fsid


@pytest.mark.usefixtures("started")
async def test_start_without_root(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NotRootError) as caught:
        async with start(config):
            pass
    assert str(caught.value) == "lazyimg serve: mounting needs root; run it as root"
    assert not tmp(config).exists()


async def test_start_that_fails_can_be_tried_again(config: Config, started: Started) -> None:
    started.failure = KernelBusyError("/dev/cachefiles", "somebody has it")
    with pytest.raises(KernelBusyError):
        async with start(config):
            pass
    with pytest.raises(DaemonUnavailableError):
        await ApiClient(config.address).status()
    started.failure = None
    async with start(config) as client:
        await client.status()


@pytest.mark.usefixtures("started")
async def test_second_daemon_on_the_same_root(config: Config, tmp_path: Path) -> None:
    second = Config(root=config.root, address=str(tmp_path / "other"))
    async with start(config) as client:
        with pytest.raises(InUseError) as caught:
            async with start(second):
                pass
        assert str(caught.value) == (
            f"{config.root}: another lazyimg serves from it; stop it, or choose another --root"
        )
        await client.status()
    async with start(second):
        pass


@pytest.mark.usefixtures("started")
async def test_second_daemon_on_the_same_address(config: Config, tmp_path: Path) -> None:
    second = Config(root=str(tmp_path / "other"), address=config.address)
    async with start(config) as client:
        with pytest.raises(InUseError) as caught:
            async with start(second):
                pass
        assert str(caught.value) == (
            f"{config.address}: a daemon listens there; stop it, or use another address"
        )
        assert (await client.status()).root == config.root


@pytest.mark.usefixtures("started")
async def test_socket_of_a_dead_daemon_is_replaced(config: Config, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(config.address)
    async with start(config) as client:
        await client.status()


@pytest.mark.usefixtures("started")
async def test_address_that_is_a_file(config: Config, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "sock").write_text("precious")
    with pytest.raises(StorageError) as caught:
        async with start(config):
            pass
    assert str(caught.value) == (
        f"{config.address}: cannot listen: Address already in use; check --address"
    )
    assert (tmp_path / "run" / "sock").read_text() == "precious"


@pytest.mark.usefixtures("started")
async def test_address_that_is_too_long(config: Config, tmp_path: Path) -> None:
    long = Config(root=config.root, address=str(tmp_path / ("a" * 120)))
    with pytest.raises(StorageError, match="cannot listen: AF_UNIX path too long"):
        async with start(long):
            pass


@pytest.mark.usefixtures("started")
async def test_unfinished_files_are_removed(config: Config, tmp_path: Path) -> None:
    for name in ("content", "bootstraps", "tables"):
        directory = tmp_path / "root" / name
        directory.mkdir(parents=True)
        (directory / ".half").touch()
        (directory / "whole").touch()
    async with start(config):
        pass
    for name in ("content", "bootstraps", "tables"):
        assert [path.name for path in (tmp_path / "root" / name).iterdir()] == ["whole"]


@pytest.mark.usefixtures("started")
async def test_root_that_is_a_file(config: Config, tmp_path: Path) -> None:
    (tmp_path / "root").touch()
    with pytest.raises(StorageError) as caught:
        async with start(config):
            pass
    assert str(caught.value) == f"{config.root}: cannot be used: File exists; check --root"


@pytest.mark.usefixtures("started")
async def test_records_of_a_newer_version(config: Config, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    library = Library(tmp_path / "root" / "library.sqlite")
    library._db.execute("PRAGMA user_version = 9")
    library.close()
    with pytest.raises(StorageError, match="has records of version 9"):
        async with start(config):
            pass


def serve_until(
    monkeypatch: pytest.MonkeyPatch, config: Config, number: signal.Signals
) -> list[str]:
    """Run a daemon of nothing, which gets a signal when it is ready; give what happened."""
    happened: list[str] = []

    async def begin(_: Config, stack: AsyncExitStack, *__: object) -> None:
        happened.append("started")
        stack.callback(happened.append, "stopped")
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), number)

    monkeypatch.setattr(app, "start", begin)
    app.run(config, ServiceManager(os.environ), {})
    return happened


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_it(
    monkeypatch: pytest.MonkeyPatch, config: Config, number: signal.Signals
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert serve_until(monkeypatch, config, number) == ["started", "stopped"]


def test_hangup_that_is_ignored_stays_so(monkeypatch: pytest.MonkeyPatch, config: Config) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert serve_until(monkeypatch, config, signal.SIGTERM) == ["started", "stopped"]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("abstract", [False, True])
def test_service_manager_is_told(
    monkeypatch: pytest.MonkeyPatch, config: Config, tmp_path: Path, *, abstract: bool
) -> None:
    name = f"lazyimg-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}" if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if abstract else name)
        serve_until(monkeypatch, config, signal.SIGTERM)
        manager.settimeout(1)
        assert [manager.recv(100), manager.recv(100)] == [b"READY=1", b"STOPPING=1"]


def test_service_manager_that_is_gone(
    monkeypatch: pytest.MonkeyPatch,
    config: Config,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    assert serve_until(monkeypatch, config, signal.SIGTERM) == ["started", "stopped"]
    assert "the service manager was not told READY=1: [Errno 2]" in caplog.text


# What a process that died left.


class Manager:
    """A service manager with a real socket: what it keeps, and hands to the next process."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._channel.bind(str(directory / "notify"))
        self._environment = {"NOTIFY_SOCKET": str(directory / "notify")}
        self._monkeypatch = monkeypatch
        self.kept: dict[str, int] = {}

    def receive(self) -> list[str]:
        """Do what it was told; gives that."""
        told: list[str] = []
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._channel, 1000, 4)
            except BlockingIOError:
                return told
            lines = data.decode().splitlines()
            told.append(lines[0])
            if "FDSTORE=1" in lines:
                (self.kept[lines[-1].removeprefix("FDNAME=")],) = fds
            elif "FDSTOREREMOVE=1" in lines:
                os.close(self.kept.pop(lines[-1].removeprefix("FDNAME=")))
            else:
                for fd in fds:
                    os.close(fd)

    def next(self, **variables: str) -> ServiceManager:
        """Give what the next process sees of it."""
        self.receive()
        handed = [(name, os.dup(fd)) for name, fd in self.kept.items()]
        self._monkeypatch.setattr(service_manager, "take_handed", lambda _: handed)
        return ServiceManager(self._environment | variables)

    def close(self) -> None:
        for fd in self.kept.values():
            os.close(fd)
        self._channel.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    manager = Manager(tmp_path, monkeypatch)
    yield manager
    manager.close()


def leave_a_mount(config: Config, started: Started) -> None:
    """Do to records and mount table what a process does that mounts an image and is killed."""
    root = tmp(config)
    (root / "mnt" / FSID).mkdir(parents=True)
    (root / "scratch").mkdir()
    library = Library(root / "library.sqlite")
    library.add_chain(ChainRecord("key", FSID, 4096, []))
    image = ImageRecord("reg.test/app:1", "linux/amd64", "sha256:aa", "key")
    library.add_mount(MountRecord("/one", image, "", MountState.MOUNTED))
    library.close()
    started.host.table = [
        (f"{root}/mnt/{FSID}", "erofs in lazyimg", FSID),
        ("/one", "bind", FSID),
    ]


def leave_a_socket(config: Config, manager: Manager) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    Path(config.address).parent.mkdir()
    listener.bind(config.address)
    listener.listen()
    manager.kept["api"] = os.dup(listener.fileno())
    return listener


async def test_fds_are_kept_and_given_back_at_the_end(
    config: Config, started: Started, manager: Manager
) -> None:
    async with AsyncExitStack() as stack:
        await app.start(config, stack, manager.next())
        manager.receive()
        assert set(manager.kept) == {"cachefiles", "shown", "api"}
        kept = os.fstat(manager.kept["cachefiles"])
        assert kept.st_ino == os.fstat(started.device.fileno()).st_ino
    manager.receive()
    assert manager.kept == {}


async def test_mounts_and_callers_of_a_process_that_died_are_taken_over(
    config: Config, started: Started, manager: Manager
) -> None:
    leave_a_mount(config, started)
    manager.kept["cachefiles"] = os.dup(started.device.fileno())
    table = list(started.host.table)
    with leave_a_socket(config, manager):
        waiting = asyncio.create_task(ApiClient(config.address).status())
        await asyncio.sleep(0)
        variables = {"LAZYIMG_SUPERVISOR_PID": "41", "LAZYIMG_WORKER_RESTARTS": "2"}
        async with AsyncExitStack() as stack:
            await app.start(config, stack, manager.next(**variables))
            assert started.events == [("restore", os.fstat(started.device.fileno()).st_ino)]
            assert started.host.table == table
            status = await waiting
            assert (status.supervisor, status.restarts) == (41, 2)
            assert [mount.directory for mount in status.mounts] == ["/one"]
            assert manager.receive() == ["FDSTORE=1"]
            assert set(manager.kept) == {"cachefiles", "shown", "api"}
    assert started.host.table == []
    assert manager.receive() == ["FDSTOREREMOVE=1"] * 3
    assert not Path(config.address).exists()


async def test_mounts_are_made_again_when_nothing_was_kept(
    config: Config, started: Started, caplog: pytest.LogCaptureFixture
) -> None:
    leave_a_mount(config, started)
    table = list(started.host.table)
    async with start(config) as client:
        assert started.host.table == table
        assert [mount.directory for mount in (await client.status()).mounts] == ["/one"]
        assert "/one: left by a daemon that died; unmounted" in caplog.text
        assert "/one: reg.test/app:1 is mounted again" in caplog.text
    assert started.host.table == []
    async with start(config) as client:
        assert (await client.status()).mounts == []


async def test_mounts_are_made_again_when_the_kernel_hands_nothing_over(
    config: Config, started: Started, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_a_mount(config, started)
    manager.kept["cachefiles"] = os.dup(started.device.fileno())
    started.cannot_restore = KernelError("/dev/cachefiles", "this kernel hands nothing over")
    told: list[list[str]] = []
    monkeypatch.setattr(ServiceManager, "wait_told", lambda _: told.append(manager.receive()))
    async with AsyncExitStack() as stack:
        await app.start(config, stack, manager.next())
        assert told == [["FDSTOREREMOVE=1"]]  # before the device is opened anew
        assert [event[0] for event in started.events] == ["restore", "start"]
        assert started.host.calls.count("mount_erofs") == 1
        manager.receive()
        assert set(manager.kept) == {"cachefiles", "shown", "api"}


async def test_kept_socket_whose_path_is_gone_is_replaced(
    config: Config, started: Started, manager: Manager
) -> None:
    with leave_a_socket(config, manager):
        Path(config.address).unlink()
        async with AsyncExitStack() as stack:
            await app.start(config, stack, manager.next())
            await ApiClient(config.address).status()
            assert manager.receive()[2:] == ["FDSTOREREMOVE=1", "FDSTORE=1"]


async def test_root_that_the_dead_process_still_holds(
    config: Config, started: Started, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "LOCK_WAIT", 0.1)
    manager.kept["cachefiles"] = os.dup(started.device.fileno())
    tmp(config).mkdir()
    with (tmp(config) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        async with AsyncExitStack() as stack:
            with pytest.raises(InUseError, match="another lazyimg serves from it"):
                await app.start(config, stack, manager.next())
        monkeypatch.setattr(app, "LOCK_WAIT", 60.0)
        async with AsyncExitStack() as stack:
            starting = asyncio.create_task(app.start(config, stack, manager.next()))
            await asyncio.sleep(0.05)
            assert not starting.done()
            fcntl.flock(lock, fcntl.LOCK_UN)
            await starting


@pytest.mark.parametrize(
    ("failure", "code", "said"),
    [
        (StorageError("/root", "is full"), 74, "cannot take over: /root: is full"),
        (ValueError("odd"), 1, "cannot take over"),
    ],
)
def test_start_that_fails_undoes_nothing_while_readers_wait(
    config: Config,
    manager: Manager,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failure: Exception,
    code: int,
    said: str,
) -> None:
    codes: list[int] = []
    undone: list[str] = []

    class EndedError(BaseException):
        pass

    async def begin(_: Config, stack: AsyncExitStack, *__: object) -> None:
        stack.callback(lambda: undone.append("undone") if not codes else None)
        raise failure

    def end(number: int) -> None:
        codes.append(number)
        raise EndedError

    manager.kept["cachefiles"] = os.dup(0)
    monkeypatch.setattr(app, "start", begin)
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(EndedError):
        app.run(config, manager.next(), {})
    assert (codes, undone) == ([code], [])
    assert caplog.messages == [said]


def test_supervisor_that_ends_is_said(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = subprocess.Popen(["sleep", "60"])
    monkeypatch.setenv("LAZYIMG_SUPERVISOR_PID", str(supervisor.pid))
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)

    async def begin(_: Config, __: AsyncExitStack, manager: ServiceManager, ___: object) -> None:
        lose = manager.lose_supervisor

        def lost() -> None:
            lose()
            os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(manager, "lose_supervisor", lost)
        asyncio.get_running_loop().call_soon(supervisor.kill)

    monkeypatch.setattr(app, "start", begin)
    app.run(config, ServiceManager(os.environ), {})
    supervisor.wait()
    assert f"the supervisor, process {supervisor.pid}, is gone" in caplog.text


async def test_supervisor_that_has_ended_already(caplog: pytest.LogCaptureFixture) -> None:
    gone = await asyncio.create_subprocess_exec("true")
    await gone.wait()
    manager = ServiceManager({"LAZYIMG_SUPERVISOR_PID": str(gone.pid)})
    async with AsyncExitStack() as stack:
        app.watch_supervisor(manager, stack)
    assert manager.supervisor == 0
    assert "is gone" in caplog.text


async def test_credentials_outlive_a_process_that_died(
    config: Config, started: Started, manager: Manager, layer: LazyLayer
) -> None:
    async with run_registry() as registry:
        add_lazy_image(registry, "app", "1", [layer])
        registry.auth = "basic"
        registry.users["user"] = "never-on-disk"
        reference = f"{registry.host}/app:1"
        access = Access(username="user", password="never-on-disk")
        async with AsyncExitStack() as stack:
            await app.start(config, stack, manager.next())
            client = ApiClient(config.address)
            await client.mount(MountRequest(reference=reference, directory="/one", access=access))
            manager.receive()
            kept = ShownAccess(os.dup(manager.kept["shown"]))
        found = kept.find(f"{registry.host}/app")
        assert found is not None
        assert (found.username, found.password) == ("user", "never-on-disk")
        kept.close()
        manager.receive()
        assert manager.kept == {}


async def test_credentials_of_pulls_outlive_a_process_that_died(
    config: Config,
    started: Started,
    manager: Manager,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[GivenCredentials] = []

    def make(lifetime: float, fd: int | None) -> GivenCredentials:
        made.append(GivenCredentials(lifetime, fd))
        return made[-1]

    monkeypatch.setattr(app, "GivenCredentials", make)
    settings = ImageServiceSettings(address=str(tmp_path / "images"), keep=100.0)
    config = msgspec.structs.replace(config, image_service=settings)
    credential = Credential("user", "never-on-disk")
    async with AsyncExitStack() as stack:
        await app.start(config, stack, manager.next())
        made[0].end(made[0].begin("reg.test/app", credential), pulled=True)
        manager.receive()
        left = os.dup(manager.kept["given"])
    manager.receive()
    assert manager.kept == {}
    manager.kept["given"] = left
    async with AsyncExitStack() as stack:
        await app.start(config, stack, manager.next())
        assert made[1].find("reg.test/app") == credential
        manager.receive()
        assert os.path.sameopenfile(manager.kept["given"], left)
