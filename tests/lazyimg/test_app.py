"""The daemon put together: start, the socket, the lock, the service manager, the end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from lazyimg import app
from lazyimg.api.client import Client
from lazyimg.api.messages import Access, ImageRequest, MountRequest, PrefetchRequest
from lazyimg.config import CachefilesSettings, Config, RegistrySettings
from lazyimg.errors import (
    DaemonUnavailableError,
    InUseError,
    KernelBusyError,
    NotRootError,
    RegistryError,
    StorageError,
)
from lazyimg.images import mounts as mounts_module
from lazyimg.images.library import Library
from lazyimg.transports.cachefiles.space import CacheLimits
from tests.fakes.host_mounts import FakeMounts
from tests.fakes.lazy_image import LazyLayer, add_lazy_image, make_lazy_layer
from tests.fakes.node import DIRECTORIES, MemoryTransport
from tests.fakes.registry import run_registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


class Started:
    """A daemon over a stand-in for the kernel.

    Attributes:
        events: what was done to the transport, and the end of each mount, in order.
    """

    def __init__(self, host: FakeMounts) -> None:
        self.host = host
        self.events: list[Any] = []
        self.failure: Exception | None = None

    def transport(self, filler: Any, *, domain_id: str) -> MemoryTransport:
        started = self

        class Transport(MemoryTransport):
            async def start(self, directory: Path, *, tag: str, limits: CacheLimits) -> None:
                assert directory.is_dir()
                started.events.append(("start", directory, tag, limits, domain_id))
                if started.failure is not None:
                    raise started.failure

            async def stop(self) -> None:
                started.events.append(("stop", list(started.host.points)))

        return Transport(self.host)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    started = Started(FakeMounts())
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(mounts_module, "host", started.host)
    monkeypatch.setattr(app, "CachefilesTransport", started.transport)
    return started


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(root=str(tmp_path / "root"), address=str(tmp_path / "run" / "sock"))


@pytest.fixture(scope="module")
def layer() -> LazyLayer:
    return asyncio.run(make_lazy_layer({"bin/tool": bytes(range(256)) * 200}))


@asynccontextmanager
async def start(config: Config) -> AsyncIterator[Client]:
    async with AsyncExitStack() as stack:
        await app.start(config, stack)
        yield Client(config.address)


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
        await Client(config.address).status()
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
            f"{config.address}: a daemon listens there; stop it, or use --address"
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

    async def begin(_: Config, stack: AsyncExitStack) -> None:
        happened.append("started")
        stack.callback(happened.append, "stopped")
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), number)

    monkeypatch.setattr(app, "start", begin)
    app.run(config)
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
