"""The daemon put together: what `lazyimg serve` runs.

Start, in this order: refuse what cannot work (no root, a root in use, own mounts underneath), open
the records, bind the kernel's cache, have the service manager keep its fd, settle what the process
before this one left (`Mounts.recover`), answer callers, say ready. Stop: listen no more, finish
what callers began, unmount while reads are still answered, give the kernel its device back, close
the rest. Everything that is imported is imported before ready.

A process that died leaves fds with the service manager: with the one named as the transport is the
next one serves the mounts on, before it does anything slow, since readers wait; with "api" callers
have waited too, and with those of gRPC's sockets, which are greeted before anything else
(`lazyimg.host.waiting`). If that next one fails to start, it ends without undoing anything: whoever
waits, waits for another.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib
import logging
import os
import signal
import socket
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from lazyimg.errors import InUseError, LazyimgError, StorageError
from lazyimg.fill.engine import Engine
from lazyimg.host.allocator import HeapMemory, keep_freed_memory
from lazyimg.host.lasting_sockets import LastingSockets
from lazyimg.host.mounts import calls_known_by
from lazyimg.host.own_mounts import OwnMounts, refuse_own_mounts
from lazyimg.host.service_manager import ServiceManager
from lazyimg.host.sockets import remove_stale_socket
from lazyimg.host.user import require_root
from lazyimg.host.waiting import greet_callers
from lazyimg.images.access import parse_access
from lazyimg.images.blob import RemoteBlob
from lazyimg.images.catalog import Catalog
from lazyimg.images.given import GivenCredentials
from lazyimg.images.library import Library
from lazyimg.images.shown import ShownAccess
from lazyimg.transports.choice import MAKERS, start_transport

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lazyimg.cache.device_cache import DeviceCache
    from lazyimg.config import Config, RegistrySettings
    from lazyimg.daemon import LazyimgDaemon
    from lazyimg.host.waiting import Waiting
    from lazyimg.images.cached import CachedDevices
    from lazyimg.images.completion import Completer
    from lazyimg.images.library import SourceRecord
    from lazyimg.images.mounts import Mounts
    from lazyimg.images.ports import Staging, Way
    from lazyimg.images.prefetching import Prefetcher
    from lazyimg.images.publishing import Publisher
    from lazyimg.images.service import Images
    from lazyimg.images.sharing import Sharing
    from lazyimg.images.streaming import Streams
    from lazyimg.registry.auth import Credential
    from lazyimg.registry.client import RegistryClient
    from lazyimg.registry.ports import Access, ImageSource
    from lazyimg.snapshotter.beforehand import Beforehand
    from lazyimg.snapshotter.completion import Completion
    from lazyimg.snapshotter.service import Snapshotter
    from lazyimg.transports.choice import Offered, Started
    from lazyimg_formats.oci.digest import Digest
    from lazyimg_formats.oci.reference import Location

_log = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT: Final = 2.0
"""Seconds that callers may take to read the last answers."""

SHOWN: Final = "shown"
"""The name under which it keeps the file of memory with users' names and passwords."""

GIVEN: Final = "given"
"""The name under which it keeps the file of memory with the credentials of pulls."""

LISTENER: Final = "api"
"""The name under which it keeps the socket of the API."""

LOCK_WAIT: Final = 10.0
"""Seconds that the process before this one may take to let go of the root directory."""

BACKLOG: Final = 128
"""Callers that may wait while one process follows another."""

_LOCK_STEP: Final = 0.01  # seconds; a lock announces nothing

_DIRECTORIES = ("content", "bootstraps", "tables", "mnt", "scratch")


def run(config: Config, manager: ServiceManager, waiting: Mapping[str, Waiting]) -> None:
    """Serve until SIGTERM, SIGINT, or SIGHUP unless that is ignored (nohup).

    Args:
        config: the effective configuration.
        manager: has what a process before this one left.
        waiting: the callers that such a process left.

    Raises:
        LazyimgError: the daemon cannot start.
    """
    keep_freed_memory()
    asyncio.run(_serve(config, manager, waiting))


async def _serve(config: Config, manager: ServiceManager, waiting: Mapping[str, Waiting]) -> None:
    takes_over = not MAKERS.keys().isdisjoint(manager.names)
    async with AsyncExitStack() as stack:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGHUP, stop.set)
        try:
            await start(config, stack, manager, waiting)
            watch_supervisor(manager, stack)
        except BaseException as error:
            if takes_over:
                _end_at_once(error)
            raise
        _log.info("ready: %s", config.address)
        manager.notify("READY=1")
        await stop.wait()
        manager.notify("STOPPING=1")
        _log.info("stopping")


def _end_at_once(error: BaseException) -> NoReturn:
    """End without undoing anything: what is undone would fail for those who wait."""
    if isinstance(error, LazyimgError):
        _log.error("cannot take over: %s", error)
    else:
        _log.critical("cannot take over", exc_info=error)
    logging.shutdown()
    os._exit(getattr(error, "exit_code", 1))


async def start(
    config: Config,
    stack: AsyncExitStack,
    manager: ServiceManager | None = None,
    waiting: Mapping[str, Waiting] | None = None,
) -> None:
    """Start everything; `stack` stops it, in reverse order.

    Args:
        config: the effective configuration.
        stack: takes what is to be done at the end.
        manager: has what a process before this one left; None: nothing.
        waiting: the callers that it left; None: whoever calls a socket that the manager has.

    Raises:
        LazyimgError: the daemon cannot start; `stack` undoes what was begun.
    """
    manager = manager or ServiceManager({})
    sockets = LastingSockets(manager, greet_callers(manager) if waiting is None else waiting)
    stack.callback(sockets.close_others)
    require_root("lazyimg serve")
    root = Path(config.root)
    own = OwnMounts(root.resolve(), config.domain_id)
    refuse_own_mounts(own, [root, config.cache_directory])
    await _prepare(root, config.cache_directory, stack, patient=bool(manager.names))
    library = Library(root / "library.sqlite")
    stack.callback(library.close)

    given = _keep_given(config, manager, stack)
    registries = _Registries(config.registry, root / "spool", config.fill.read_deadline, given.find)
    stack.push_async_callback(registries.close)
    engine = Engine(limits=config.fill.limits(), memory=HeapMemory())
    stack.push_async_callback(engine.close)
    was_shown = SHOWN in manager.names
    shown = ShownAccess(manager.take(SHOWN))
    stack.callback(shown.close)
    catalog = Catalog(root, library, engine, registries.open_blob, shown)
    catalog.load()
    started = await start_transport(config, catalog, catalog.use, manager, stack)
    transport = started.transport
    if not was_shown:
        manager.keep(SHOWN, shown.fd)
    stack.callback(manager.forget, SHOWN)

    await registries.start()
    for name in ("lazyimg.images.service", "lazyimg.api.server"):
        await asyncio.to_thread(importlib.import_module, name)  # the loop fills meanwhile
    from lazyimg.daemon import LazyimgDaemon  # noqa: PLC0415  readers come first
    from lazyimg.images.indexes import Indexes  # noqa: PLC0415
    from lazyimg.images.prefetching import Prefetcher  # noqa: PLC0415
    from lazyimg.images.validation import Validator  # noqa: PLC0415

    listener = _bind(Path(config.address), manager, stack)
    await stack.enter_async_context(calls_known_by(root / "calls"))
    mounts = _make_mounts(config, own, transport, library, catalog)
    streams = await _open_streams(config, library, started)
    images = _make_images(config, library, catalog, registries, streams)
    snapshots = _Snapshots(config, images, mounts)
    await mounts.recover(served=started.took_over, kept=await snapshots.open(stack))
    stack.push_async_callback(mounts.close)
    cached = _look_after(started.cache, catalog, library)
    prefetcher = _follow_hints(
        config, mounts, Prefetcher(root, mounts, catalog, engine, transport), stack
    )
    if config.completion.bytes_per_second:
        from lazyimg.images.completion import Completer  # noqa: PLC0415  readers come first

        snapshots.complete_with(
            Completer(
                images=images,
                mounts=mounts,
                prefetcher=prefetcher,
                catalog=catalog,
                engine=engine,
                presence=transport,
                library=library,
                limits=config.build.limits(),
                rate=config.completion.bytes_per_second,
            )
        )
    daemon = LazyimgDaemon(
        config=config,
        images=images,
        indexes=Indexes(root, library, images, config.build.limits()),
        publisher=_make_publisher(root, library, images),
        validator=Validator(
            root, library, registries.open_image, config.build.limits(), config.indexes.referrers
        ),
        mounts=mounts,
        prefetcher=prefetcher,
        engine=engine,
        transport=transport,
        manager=manager,
        client=registries.client,
        streams=streams,
        snapshotter=snapshots.snapshotter,
        completion=snapshots.completion,
        cached=cached,
        sharing=_share(config, library, images, stack),
    )
    await _listen(listener, daemon, stack)
    await snapshots.start(sockets, stack)
    await _pass_pulls_on(config, given, sockets, stack)
    sockets.close_others()


def _make_publisher(root: Path, library: Library, images: Images) -> Publisher:
    from lazyimg.images.publishing import Publisher  # noqa: PLC0415  readers come first

    return Publisher(root, library, images)


def _share(
    config: Config, library: Library, images: Images, stack: AsyncExitStack
) -> Sharing | None:
    """Have indexes of first uses pushed, if the configuration says so."""
    if config.indexes.push == "off":
        return None
    from lazyimg.images.sharing import Sharing  # noqa: PLC0415  readers come first

    sharing = Sharing(_make_publisher(Path(config.root), library, images))
    stack.push_async_callback(sharing.close)
    return sharing


def _make_mounts(
    config: Config, own: OwnMounts, transport: Offered, library: Library, catalog: Catalog
) -> Mounts:
    """Give what mounts images, in the way that goes with the transport."""
    from lazyimg.images.cache_mounts import CacheMounts  # noqa: PLC0415  readers come first
    from lazyimg.images.file_mounts import FileMounts  # noqa: PLC0415
    from lazyimg.images.mounts import Mounts  # noqa: PLC0415

    way: Way
    if transport.name == "cachefiles":
        way = CacheMounts(own.root, config.domain_id, config.mount.read_ahead, transport)
    elif transport.name == "fuse":
        switched = config.fuse.complete == "file" and config.fuse.mount != "file"
        tree = own.root / "fuse" if switched else None
        way = FileMounts(own.root, transport, config.fuse.mount, tree=tree)
    else:  # the kernel asks for no page of a file that a loop device reads
        way = FileMounts(own.root, transport)
    return Mounts(own, way, library, readers=catalog.readers)


def _follow_hints(
    config: Config, mounts: Mounts, prefetcher: Prefetcher, stack: AsyncExitStack
) -> Prefetcher:
    """Have what images want first fetched when they are mounted; gives the same prefetcher."""
    from lazyimg.images.hints import Hints  # noqa: PLC0415  readers come first

    hints = Hints(prefetcher, config.fill.first)
    mounts.used, mounts.unused = hints.begin, hints.end
    stack.push_async_callback(hints.close)
    return prefetcher


async def _open_streams(config: Config, library: Library, started: Started) -> Streams:
    """Give what reads layers without an index: their devices are for whichever cache there is."""
    from lazyimg.images.streaming import Streams  # noqa: PLC0415  readers come first

    staging: Staging
    if started.cache is not None:
        staging = started.cache
    else:
        assert started.transport.name == "cachefiles"  # noqa: S101 - the others have a cache
        assert started.transport.staged is not None  # noqa: S101 - it was started
        staging = started.transport.staged
        await asyncio.to_thread(started.transport.staged.clear)
    return Streams(Path(config.root), library, config.build.limits(), staging)


def _make_images(
    config: Config, library: Library, catalog: Catalog, registries: _Registries, streams: Streams
) -> Images:
    from lazyimg.images.service import Images  # noqa: PLC0415  readers come first

    return Images(
        Path(config.root),
        library,
        catalog,
        registries.open_image,
        limits=config.build.limits(),
        referrers=config.indexes.referrers,
        streams=streams,
    )


def _look_after(
    cache: DeviceCache | None, catalog: Catalog, library: Library
) -> CachedDevices | None:
    """Have our own cache looked after, if there is one: all that is mounted is known now."""
    if cache is None:
        return None
    from lazyimg.images.cached import CachedDevices  # noqa: PLC0415  readers come first

    cache.start_culling()
    return CachedDevices(cache, catalog, library)


def _keep_given(config: Config, manager: ServiceManager, stack: AsyncExitStack) -> GivenCredentials:
    """Give what keeps the credentials of pulls, those that are known among them."""
    was_given = GIVEN in manager.names
    given = GivenCredentials(config.image_service.keep, manager.take(GIVEN))
    stack.callback(given.close)
    if config.image_service.address:  # otherwise it stays empty
        if not was_given:
            manager.keep(GIVEN, given.fd)
        stack.callback(manager.forget, GIVEN)
    return given


async def _pass_pulls_on(
    config: Config, given: GivenCredentials, sockets: LastingSockets, stack: AsyncExitStack
) -> None:
    """Answer the kubelet, if the configuration says so."""
    settings = config.image_service
    if not settings.address:
        return
    await asyncio.to_thread(importlib.import_module, "lazyimg.imageservice.proxy")
    from lazyimg.imageservice.proxy import listen  # noqa: PLC0415  readers come first

    address, containerd = Path(settings.address), Path(settings.containerd)
    await listen(address, containerd, given, sockets, stack)


class _Snapshots:
    """The snapshotter, if the configuration has one."""

    def __init__(self, config: Config, images: Images, mounts: Mounts) -> None:
        self._config = config
        self._images = images
        self._mounts = mounts
        self.snapshotter: Snapshotter | None = None
        self.completion: Completion | None = None
        self._beforehand: Beforehand | None = None

    async def open(self, stack: AsyncExitStack) -> set[str]:
        """Open the records; gives the fsids that snapshots need."""
        if not self._config.snapshotter.address:
            return set()
        # Children of the daemon are started by exec, without gRPC; it need not watch over forks.
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
        await asyncio.to_thread(importlib.import_module, "lazyimg.snapshotter.grpc_server")
        from lazyimg.snapshotter.beforehand import Beforehand  # noqa: PLC0415  readers come first
        from lazyimg.snapshotter.overlay import list_options  # noqa: PLC0415
        from lazyimg.snapshotter.remote import RemoteLayers  # noqa: PLC0415
        from lazyimg.snapshotter.service import Snapshotter  # noqa: PLC0415

        settings = self._config.snapshotter
        stream = settings.unindexed == "stream"
        remote = RemoteLayers(self._images, self._mounts, settings.lazy, stream=stream)
        root = self._config.snapshotter_directory
        self.snapshotter = Snapshotter(root, remote, list_options())
        stack.push_async_callback(self.snapshotter.close)
        self._beforehand = Beforehand(remote, self.snapshotter.records.pulled)
        remote.pulled = self._beforehand.add
        return await remote.fsids(await self.snapshotter.remote_layers())

    async def start(self, sockets: LastingSockets, stack: AsyncExitStack) -> None:
        """Mount what snapshots need, and answer containerd."""
        if self.snapshotter is None or self._beforehand is None:
            return
        from lazyimg.snapshotter.grpc_server import listen  # noqa: PLC0415  readers come first

        await self.snapshotter.start()
        address = Path(self._config.snapshotter.address)
        await listen(address, self.snapshotter, sockets, stack)
        for worker in (self._beforehand, self.completion):
            if worker is not None:
                stack.push_async_callback(_cancel, asyncio.create_task(worker.run()))

    def complete_with(self, completer: Completer) -> None:
        """Have the images of containers completed, from `start` on."""
        if self.snapshotter is None:
            return
        from lazyimg.snapshotter.completion import Completion  # noqa: PLC0415

        self.completion = Completion(self.snapshotter.records, completer)
        self.snapshotter.changed = self.completion.look


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


class _Registries:
    """Opens images and blobs. What that needs is imported by `start`; until then, callers wait."""

    def __init__(
        self,
        settings: RegistrySettings,
        spool: Path,
        patience: float | None,
        given: Callable[[str], Credential | None],
    ) -> None:
        self._settings = settings
        self._given = given
        self._patience = patience
        self._spool = spool
        self._client: asyncio.Future[RegistryClient] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        await asyncio.to_thread(importlib.import_module, "lazyimg.registry.settings")
        from lazyimg.registry.settings import make_client  # noqa: PLC0415  readers come first

        client = make_client(
            self._settings, spool=self._spool, patience=self._patience, given=self._given
        )
        self._client.set_result(client)

    @property
    def client(self) -> RegistryClient:
        return self._client.result()

    async def close(self) -> None:
        if self._client.done():
            await self._client.result().close()
        self._client.cancel()

    async def open_image(
        self, location: Location, access: Access
    ) -> tuple[ImageSource, Digest | str]:
        client = await asyncio.shield(self._client)
        from lazyimg.registry.resolve import open_source  # noqa: PLC0415  readers come first
        from lazyimg.registry.settings import apply_settings  # noqa: PLC0415

        return await open_source(location, client, apply_settings(access, location, self._settings))

    async def open_blob(self, source: SourceRecord, access: Access | None) -> RemoteBlob:
        await asyncio.shield(self._client)
        from lazyimg.registry.resolve import parse_location  # noqa: PLC0415  readers come first

        location = parse_location(source.repository)
        repository, _ = await self.open_image(location, access or parse_access(source.access))
        return RemoteBlob(repository, source)


def watch_supervisor(manager: ServiceManager, stack: AsyncExitStack) -> None:
    """Say it when the supervisor is gone: this process goes on, but nothing replaces it."""
    if not manager.supervisor or not hasattr(os, "pidfd_open"):
        return
    try:
        fd = os.pidfd_open(manager.supervisor)
    except OSError:
        manager.lose_supervisor()
        return
    stack.callback(os.close, fd)
    loop = asyncio.get_running_loop()

    def lost() -> None:
        loop.remove_reader(fd)
        manager.lose_supervisor()

    loop.add_reader(fd, lost)
    stack.callback(loop.remove_reader, fd)


async def _prepare(root: Path, cache: Path, stack: AsyncExitStack, *, patient: bool) -> None:
    """Make the daemon's directories, take the root for this process, remove unfinished files."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, lock)
        await _lock(lock, root, LOCK_WAIT if patient else 0.0)
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in _DIRECTORIES:
            (root / name).mkdir(mode=0o700, exist_ok=True)
        for name in ("content", "bootstraps", "tables"):
            for unfinished in (root / name).glob(".*"):
                unfinished.unlink()
    except OSError as error:
        raise StorageError(
            str(error.filename or root), f"cannot be used: {error.strerror}", "check --root"
        ) from error


async def _lock(fd: int, root: Path, wait: float) -> None:
    """Lock an open file, within `wait` seconds.

    A process that died may leave the lock to a child that it was just starting, until that execs.
    """
    end = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= end:
                raise InUseError(
                    str(root), "another lazyimg serves from it", "stop it, or choose another --root"
                ) from error
        else:
            return
        await asyncio.sleep(_LOCK_STEP)


def _bind(path: Path, manager: ServiceManager, stack: AsyncExitStack) -> socket.socket:
    """Give the listening socket: the one that was kept, or a new one, which is kept then."""
    kept = manager.take(LISTENER)
    try:
        if kept is not None:
            listener = socket.socket(fileno=kept)
            if listener.getsockname() == str(path) and path.is_socket():
                stack.callback(_unbind, path, manager)
                stack.callback(listener.close)
                return listener
            listener.close()
            manager.forget(LISTENER)
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        remove_stale_socket(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stack.callback(listener.close)
        mask = os.umask(0o177)  # the socket is root's from its first moment
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        stack.callback(_unbind, path, manager)
        listener.listen(BACKLOG)
    except OSError as error:
        raise StorageError(
            str(path), f"cannot listen: {error.strerror or error}", "check --address"
        ) from error
    manager.keep(LISTENER, listener.fileno())
    return listener


def _unbind(path: Path, manager: ServiceManager) -> None:
    manager.forget(LISTENER)
    path.unlink(missing_ok=True)


async def _listen(listener: socket.socket, daemon: LazyimgDaemon, stack: AsyncExitStack) -> None:
    from aiohttp import web  # noqa: PLC0415  readers come first

    from lazyimg.api.server import make_application  # noqa: PLC0415

    runner = web.AppRunner(
        make_application(daemon),
        access_log=None,
        handle_signals=False,
        handler_cancellation=True,
        shutdown_timeout=SHUTDOWN_TIMEOUT,
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.SockSite(runner, listener, backlog=BACKLOG).start()
