"""The transport of this machine: chosen, started, or taken over from the process before this one.

What works is tried, not guessed: the first transport that starts is used. One that the kernel or
the file system has no room for is passed over; one that somebody else has in use is not, since what
is local is local to one transport.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final, NamedTuple

from lazyimg.errors import CacheUnsuitableError, KernelError
from lazyimg.host.space import CacheLimits
from lazyimg.transports.cachefiles.transport import CachefilesTransport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from lazyimg.config import Config
    from lazyimg.host.service_manager import ServiceManager
    from lazyimg.transports.ports import Filler, Transport

    Offered = CachefilesTransport
    Make = Callable[[Config, Filler, AsyncExitStack], Awaitable["Offer"]]

_log = logging.getLogger(__name__)


class Offer(NamedTuple):
    """A transport that was made.

    Attributes:
        transport: that one.
        start: starts it, with the control fd of the process before this one, if there is one.
    """

    transport: Offered
    start: Callable[[int | None], Awaitable[None]]


class Started(NamedTuple):
    """A transport that runs.

    Attributes:
        transport: that one.
        took_over: whether the mounts of the process before this one work on.
    """

    transport: Offered
    took_over: bool


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
    names = list_transports(manager.names)
    for name in names:
        try:
            async with AsyncExitStack() as inner:
                offer = await MAKERS[name](config, filler, inner)
                use(offer.transport)
                started = await _start(offer, manager, inner)
                stack.push_async_exit(inner.pop_all())
        except (KernelError, CacheUnsuitableError) as error:
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


def list_transports(kept: Sequence[str]) -> list[str]:
    """Give what is to be tried, in order.

    Args:
        kept: names of fds that the service manager has; one may be a transport's, which is used.
    """
    return [name for name in MAKERS if name in kept] or list(MAKERS)


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
            return Started(transport, took_over=True)
    await offer.start(None)
    stack.push_async_callback(_stop, transport, manager)
    manager.keep(name, transport.control_fd)
    return Started(transport, took_over=False)


async def _stop(transport: Transport, manager: ServiceManager) -> None:
    await transport.stop()
    manager.forget(transport.name)


async def _make_cachefiles(config: Config, filler: Filler, _: AsyncExitStack) -> Offer:
    transport = CachefilesTransport(filler, domain_id=config.domain_id)
    settings = config.cachefiles
    limits = CacheLimits(
        brun=settings.brun,
        bcull=settings.bcull,
        bstop=settings.bstop,
        frun=settings.frun,
        fcull=settings.fcull,
        fstop=settings.fstop,
    )

    async def start(control_fd: int | None) -> None:
        directory, tag = config.cache_directory, settings.tag
        await transport.start(directory, tag=tag, limits=limits, control_fd=control_fd)

    return Offer(transport, start)


MAKERS: Final[dict[str, Make]] = {"cachefiles": _make_cachefiles}
"""How each transport is made, the best first; their names are those of their control fds."""
