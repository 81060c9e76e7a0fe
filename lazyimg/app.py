"""The daemon put together: what `lazyimg serve` runs.

Start, in this order: refuse what cannot work (no root, a root in use, own mounts underneath), open
the records, bind the kernel's cache, take away what a dead daemon left mounted, listen, say ready.
Stop: listen no more, finish what callers began, unmount while reads are still answered, give the
kernel its device back, close the rest. Everything that is imported is imported before ready.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aiohttp import web

from lazyimg.api.server import make_application
from lazyimg.daemon import LazyimgDaemon
from lazyimg.errors import InUseError, NotRootError, StorageError
from lazyimg.fill.engine import Engine
from lazyimg.host.own_mounts import refuse_own_mounts
from lazyimg.images.access import parse_access
from lazyimg.images.blob import RemoteBlob
from lazyimg.images.catalog import Catalog
from lazyimg.images.library import Library
from lazyimg.images.mounts import Mounts
from lazyimg.images.prefetching import Prefetcher
from lazyimg.images.service import Images
from lazyimg.registry.client import RegistryClient
from lazyimg.registry.resolve import open_source, parse_location
from lazyimg.registry.settings import apply_settings, retry_policy, transport_limits
from lazyimg.transports.cachefiles.space import CacheLimits
from lazyimg.transports.cachefiles.transport import CachefilesTransport

if TYPE_CHECKING:
    from lazyimg.config import Config
    from lazyimg.images.library import SourceRecord
    from lazyimg.registry.ports import Access, ImageSource
    from lazyimg_formats.oci.digest import Digest
    from lazyimg_formats.oci.reference import Location

_log = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT: Final = 2.0
"""Seconds that callers may take to read the last answers."""

_DIRECTORIES = ("content", "bootstraps", "tables", "mnt", "scratch")


def run(config: Config) -> None:
    """Serve until SIGTERM, SIGINT, or SIGHUP unless that is ignored (nohup).

    Raises:
        LazyimgError: the daemon cannot start.
    """
    asyncio.run(_serve(config))


async def _serve(config: Config) -> None:
    async with AsyncExitStack() as stack:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGHUP, stop.set)
        await start(config, stack)
        _log.info("ready: %s", config.address)
        _notify("READY=1")
        await stop.wait()
        _notify("STOPPING=1")
        _log.info("stopping")


async def start(config: Config, stack: AsyncExitStack) -> None:
    """Start everything; `stack` stops it, in reverse order.

    Raises:
        LazyimgError: the daemon cannot start; `stack` undoes what was begun.
    """
    if os.geteuid() != 0:
        raise NotRootError("lazyimg serve", "mounting needs root", "run it as root")
    root = Path(config.root)
    refuse_own_mounts(config.domain_id, [root, config.cache_directory])
    _prepare(root, config.cache_directory, stack)
    library = Library(root / "library.sqlite")
    stack.callback(library.close)

    client = RegistryClient(
        limits=transport_limits(config.registry), policy=retry_policy(config.registry)
    )
    stack.push_async_callback(client.close)
    engine = Engine(limits=config.fill.limits())
    stack.push_async_callback(engine.close)

    async def open_image(location: Location, access: Access) -> tuple[ImageSource, Digest | str]:
        return await open_source(
            location, client, apply_settings(access, location, config.registry)
        )

    async def open_blob(source: SourceRecord, access: Access | None) -> RemoteBlob:
        location = parse_location(source.repository)
        repository, _ = await open_image(location, access or parse_access(source.access))
        return RemoteBlob(repository, source)

    catalog = Catalog(root, library, engine, open_blob)
    catalog.load()
    transport = CachefilesTransport(catalog, domain_id=config.domain_id)
    catalog.use(transport)
    await transport.start(
        config.cache_directory, tag=config.cachefiles.tag, limits=_cache_limits(config)
    )
    stack.push_async_callback(transport.stop)

    mounts = Mounts(root, config.domain_id, config.mount.read_ahead, transport)
    await mounts.clean()
    stack.push_async_callback(mounts.close)
    images = Images(root, library, catalog, open_image)
    prefetcher = Prefetcher(root, mounts, catalog, engine, transport)
    daemon = LazyimgDaemon(
        config=config,
        images=images,
        mounts=mounts,
        prefetcher=prefetcher,
        engine=engine,
        transport=transport,
    )
    await _listen(config, daemon, stack)


def _prepare(root: Path, cache: Path, stack: AsyncExitStack) -> None:
    """Make the daemon's directories, take the root for this process, remove unfinished files."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InUseError(
                str(root), "another lazyimg serves from it", "stop it, or choose another --root"
            ) from error
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


async def _listen(config: Config, daemon: LazyimgDaemon, stack: AsyncExitStack) -> None:
    path = Path(config.address)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _remove_stale(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stack.callback(listener.close)
        mask = os.umask(0o177)  # the socket is root's from its first moment
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        stack.callback(path.unlink, missing_ok=True)
    except OSError as error:
        raise StorageError(
            str(path), f"cannot listen: {error.strerror or error}", "check --address"
        ) from error
    runner = web.AppRunner(
        make_application(daemon),
        access_log=None,
        handle_signals=False,
        handler_cancellation=True,
        shutdown_timeout=SHUTDOWN_TIMEOUT,
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.SockSite(runner, listener).start()


def _remove_stale(path: Path) -> None:
    """Remove the socket of a daemon that died; refuse one that answers."""
    if not path.is_socket():
        return  # bind says what is wrong with it
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise InUseError(str(path), "a daemon listens there", "stop it, or use --address")


def _cache_limits(config: Config) -> CacheLimits:
    settings = config.cachefiles
    return CacheLimits(
        brun=settings.brun,
        bcull=settings.bcull,
        bstop=settings.bstop,
        frun=settings.frun,
        fcull=settings.fcull,
        fstop=settings.fstop,
    )


def _notify(message: str) -> None:
    """Tell the service manager. Source: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.connect(address)
            channel.sendall(message.encode())
        except OSError as error:
            _log.warning("the service manager was not told %s: %s", message, error)
