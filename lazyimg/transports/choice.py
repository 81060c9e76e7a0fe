"""The transport of this machine: chosen, started, or taken over from the process before this one.

What works is tried, not guessed: the first transport that starts is used. One that the kernel does
not have is passed over; one that somebody else has in use is not, since what is local is local to
one transport, nor one whose cache lies on the wrong file system, since no other could use that.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from lazyimg.cache.device_cache import DeviceCache
from lazyimg.cache.file_system import check_directory
from lazyimg.errors import KernelError, StorageError
from lazyimg.host.space import CacheLimits
from lazyimg.transports.cachefiles.transport import CachefilesTransport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from lazyimg.config import Config
    from lazyimg.host.service_manager import ServiceManager
    from lazyimg.transports.fanotify.transport import FanotifyTransport
    from lazyimg.transports.fuse.transport import FuseTransport
    from lazyimg.transports.ports import Filler, Transport

    Offered = CachefilesTransport | FuseTransport | FanotifyTransport
    Make = Callable[[Config, Filler, AsyncExitStack, ServiceManager], Awaitable["Offer"]]

_log = logging.getLogger(__name__)


class Offer(NamedTuple):
    """A transport that was made.

    Attributes:
        transport: that one.
        start: starts it, with the control fd of the process before this one, if there is one.
        cache: where its devices are; None if the kernel keeps them.
    """

    transport: Offered
    start: Callable[[int | None], Awaitable[None]]
    cache: DeviceCache | None


class Started(NamedTuple):
    """A transport that runs.

    Attributes:
        transport: that one.
        took_over: whether the mounts of the process before this one work on.
        cache: where its devices are; None if the kernel keeps them.
    """

    transport: Offered
    took_over: bool
    cache: DeviceCache | None


async def start_transport(
    config: Config,
    filler: Filler,
    use: Callable[[Transport], None],
    manager: ServiceManager,
    stack: AsyncExitStack,
) -> Started:
    """Start the first transport that works.

    Args:
        config: the effective configuration.
        filler: knows every object.
        use: is told of the transport before it starts.
        manager: keeps its control fd, and may have that of the process before this one.
        stack: stops it.

    Raises:
        LazyimgError: none can be started.
    """
    refusals: list[str] = []
    names = list_transports(config.transport, manager.names)
    await _give_up_others(names, manager)
    if "fuse" not in manager.names:
        await asyncio.to_thread(_clear_tree, _tree(config))
    for name in names:
        try:
            async with AsyncExitStack() as inner:
                offer = await MAKERS[name](config, filler, inner, manager)
                use(offer.transport)
                started = await _start(offer, manager, inner)
                stack.push_async_exit(inner.pop_all())
        except KernelError as error:
            if len(names) == 1:
                raise
            refusals.append(f"{name}: {error}")
        else:
            for refusal in refusals:
                _log.info("transport %s; not %s", name, refusal)
            return started
    raise KernelError(
        "transport", f"none works here: {'; '.join(refusals)}", "`lazyimg doctor` says more"
    )


def list_transports(wanted: str, kept: Collection[str]) -> Sequence[str]:
    """Give what is to be tried, in order.

    Args:
        wanted: a transport, or `AUTO`: any of those that are good for it.
        kept: names of fds that the service manager has: where one is a transport's, its mounts
            work on.
    """
    if wanted != AUTO:
        return [wanted]
    return [name for name in MAKERS if name in kept] or AUTOMATIC


async def _give_up_others(names: Sequence[str], manager: ServiceManager) -> None:
    """Let the kernel know that what other transports served is served no more."""
    others = [
        name
        for name in manager.names
        if name.partition("-")[0] in MAKERS and name.partition("-")[0] not in names
    ]
    for name in others:
        if name in MAKERS:
            _log.error("transport %s is not wanted any more; its mounts are mounted again", name)
        fd = manager.take(name)
        if fd is not None:
            os.close(fd)
        manager.forget(name)
    if others:
        await asyncio.to_thread(manager.wait_told)


def _tree(config: Config) -> Path:
    """Give where the tree of FUSE is."""
    return Path(config.root).resolve() / "fuse"


def _clear_tree(tree: Path) -> None:
    """Detach a tree that nobody serves any more, whatever is used now."""
    from lazyimg.transports.fuse.device import unmount_tree  # noqa: PLC0415  nobody waits

    unmount_tree(tree)


async def _start(offer: Offer, manager: ServiceManager, stack: AsyncExitStack) -> Started:
    transport, name = offer.transport, offer.transport.name
    kept = manager.take(name)
    if kept is not None:
        try:
            await offer.start(kept)
        except KernelError as error:
            _log.error("the mounts cannot be served on, they are mounted again: %s", error)
            manager.forget(name)
            await asyncio.to_thread(manager.wait_told)  # until it is closed, the kernel waits
        else:
            stack.push_async_callback(_stop, transport, manager)
            return Started(transport, took_over=True, cache=offer.cache)
    await offer.start(None)
    stack.push_async_callback(_stop, transport, manager)
    manager.keep(name, transport.control_fd)
    return Started(transport, took_over=False, cache=offer.cache)


async def _stop(transport: Transport, manager: ServiceManager) -> None:
    await transport.stop()
    manager.forget(transport.name)


async def _make_cachefiles(
    config: Config, filler: Filler, _: AsyncExitStack, __: ServiceManager
) -> Offer:
    transport = CachefilesTransport(filler, domain_id=config.domain_id)

    async def start(control_fd: int | None) -> None:
        await transport.start(
            config.cache_directory,
            tag=config.cachefiles.tag,
            limits=_limits(config),
            control_fd=control_fd,
        )

    return Offer(transport, start, cache=None)


async def _make_fuse(
    config: Config, filler: Filler, stack: AsyncExitStack, manager: ServiceManager
) -> Offer:
    from lazyimg.transports.fuse import taken  # noqa: PLC0415  not everywhere
    from lazyimg.transports.fuse.transport import FuseTransport  # noqa: PLC0415

    cache = await _open_cache(config, stack, manager)
    left = [fd for fd in [manager.take(taken.NAME)] if fd is not None]
    stack.callback(_close_all, left)

    def give_up() -> None:
        _log.critical("all mounts are dead; starting anew")
        _start_anew(manager, transport.name, taken.NAME)

    transport = FuseTransport(
        filler,
        cache,
        read_deadline=config.fill.read_deadline,
        passthrough=config.fuse.complete == "passthrough",
        ahead=config.fill.ahead,
        lost=give_up,
        keeper=manager,
    )
    tree = _tree(config)

    async def start(control_fd: int | None) -> None:
        if control_fd is None:
            from lazyimg.transports.trial import try_file_mount  # noqa: PLC0415  nobody waits

            await try_file_mount(tree.parent, config.fuse.mount)
        with suppress(FileExistsError):  # what is mounted there, if anything, is not looked at
            tree.mkdir()
        taken_fd = left.pop() if left and control_fd is not None else None
        await transport.start(tree, control_fd=control_fd, taken_fd=taken_fd)

    return Offer(transport, start, cache)


def _close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


async def _make_fanotify(
    config: Config, filler: Filler, stack: AsyncExitStack, manager: ServiceManager
) -> Offer:
    from lazyimg.transports.fanotify import guarding  # noqa: PLC0415  not everywhere
    from lazyimg.transports.fanotify.transport import FanotifyTransport  # noqa: PLC0415

    own = _fanotify_directory(config)
    with suppress(FileExistsError):
        own.mkdir()
    cache = await _open_cache(config, stack, manager)
    guards = [fd for fd in [manager.take(guarding.NAME)] if fd is not None]

    def give_up(problem: str, names: frozenset[str]) -> None:
        _log.critical("%d devices may show wrong data: %s; starting anew", len(names), problem)
        _start_anew(manager, transport.name, guarding.NAME)

    transport = FanotifyTransport(
        filler, cache, keeper=manager, lost=give_up, ahead=config.fill.ahead
    )

    async def start(control_fd: int | None) -> None:
        if control_fd is None:
            await _try_fanotify(cache.directory)
        guard = guards.pop() if guards else None
        await transport.start(own, control_fd=control_fd, guard_fd=guard)

    return Offer(transport, start, cache)


def _start_anew(manager: ServiceManager, *names: str) -> NoReturn:
    """End this worker, so that the next one takes nothing over, and mounts everything again."""
    for name in names:
        manager.forget(name)
    manager.wait_told()
    logging.shutdown()
    os._exit(KernelError.exit_code)


async def _try_fanotify(directory: Path) -> None:
    """Check in a new directory beside the cache that this kernel asks as it should."""
    from lazyimg.transports.trial import TrialImage, try_fanotify  # noqa: PLC0415  nobody waits

    with tempfile.TemporaryDirectory(prefix=".try-", dir=directory.parent) as aside:
        async with AsyncExitStack() as stack:
            await try_fanotify(TrialImage(), Path(aside), stack)


def _fanotify_directory(config: Config) -> Path:
    return Path(config.root).resolve() / "fanotify"


async def _open_cache(
    config: Config, stack: AsyncExitStack, manager: ServiceManager
) -> DeviceCache:
    """Open the cache of the transports that have no other."""
    directory = config.devices_directory
    if "fanotify" not in manager.names and _fanotify_directory(config).is_dir():
        from lazyimg.transports.fanotify.guarding import wait_for_guards  # noqa: PLC0415

        await wait_for_guards(_fanotify_directory(config))  # which cut files of the cache
    try:
        cache = await asyncio.to_thread(_load_cache, directory, _limits(config))
    except OSError as error:
        raise StorageError(str(directory), f"cannot be used: {error.strerror}") from error
    stack.push_async_callback(cache.close)
    return cache


def _load_cache(directory: Path, limits: CacheLimits) -> DeviceCache:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_directory(directory)
    cache = DeviceCache(directory, limits)
    cache.load()
    return cache


def _limits(config: Config) -> CacheLimits:
    settings = config.cachefiles
    return CacheLimits(
        brun=settings.brun,
        bcull=settings.bcull,
        bstop=settings.bstop,
        frun=settings.frun,
        fcull=settings.fcull,
        fstop=settings.fstop,
    )


AUTO: Final = "auto"
"""Wants the first that works of those that are good for it."""

AUTOMATIC: Final = ("cachefiles", "fuse")
"""What that may be: no transport whose readers could get zeros when all of lazyimg is killed."""

MAKERS: Final[dict[str, Make]] = {
    "cachefiles": _make_cachefiles,
    "fuse": _make_fuse,
    "fanotify": _make_fanotify,
}
"""How each transport is made; their names are those of their control fds."""
