"""The local API over HTTP on a unix socket: messages in, calls of the daemon, messages out.

A call that was begun is finished, or undone, whether or not its caller still waits; only a
prefetch ends with its caller. When the application ends, prefetches end at once; other calls have
`grace` to finish, and are cancelled, that is undone, after it.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import msgspec
from aiohttp import web

from lazyimg.api.messages import (
    CacheCheckReply,
    CacheCheckRequest,
    CacheReply,
    ErrorReply,
    FsidReply,
    ImageRequest,
    IndexReply,
    InspectReply,
    InspectRequest,
    MountReply,
    MountRequest,
    PrefetchEvent,
    PrefetchRequest,
    PushIndexReply,
    PushIndexRequest,
    StatusReply,
    UnmountReply,
    UnmountRequest,
    UnpushIndexReply,
    ValidateEvent,
)
from lazyimg.errors import DaemonUnavailableError, LazyimgError, NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable

_log = logging.getLogger(__name__)

MAX_REQUEST: Final = 1 << 20
"""Bytes of a request's body."""

GRACE: Final = 5.0
"""Seconds that calls may take to finish when the application ends."""

_Request = TypeVar("_Request", bound=msgspec.Struct)


class Daemon(Protocol):
    """What the API calls. Every method raises LazyimgError."""

    async def mount(self, request: MountRequest) -> MountReply:
        """Mount an image."""
        ...

    async def unmount(self, request: UnmountRequest) -> UnmountReply:
        """Unmount it."""
        ...

    async def fsid(self, request: ImageRequest) -> FsidReply:
        """Make an image ready to be mounted by hand."""
        ...

    def prefetch(self, request: PrefetchRequest) -> AsyncGenerator[PrefetchEvent]:
        """Make images local; each image ends in an event with `done` or `error`."""
        ...

    def validate(self, request: ImageRequest) -> AsyncGenerator[ValidateEvent]:
        """Read an image whole, and check it; ends in an event with `reply` or `error`."""
        ...

    async def inspect(self, request: InspectRequest) -> InspectReply:
        """Describe an image."""
        ...

    async def create_index(self, request: ImageRequest) -> IndexReply:
        """Make an index of each layer that has none."""
        ...

    async def find_indexes(self, request: ImageRequest) -> IndexReply:
        """Say where there are indexes of an image's layers."""
        ...

    async def push_index(self, request: PushIndexRequest) -> PushIndexReply:
        """Push those that were made."""
        ...

    async def unpush_index(self, request: ImageRequest) -> UnpushIndexReply:
        """Remove what was pushed."""
        ...

    async def remove_index(self, request: ImageRequest) -> IndexReply:
        """Remove them."""
        ...

    async def indexes(self) -> IndexReply:
        """List them."""
        ...

    async def cache(self) -> CacheReply:
        """Describe the cache."""
        ...

    async def check_cache(self, request: CacheCheckRequest) -> CacheCheckReply:
        """Check a device in the cache."""
        ...

    async def status(self) -> StatusReply:
        """Describe the daemon."""
        ...


def make_application(daemon: Daemon, *, grace: float = GRACE) -> web.Application:
    """Give the application that serves `lazyimg.api.messages`.

    Args:
        daemon: does what is asked.
        grace: seconds that calls may take to finish when the application ends.

    Its runner is to have `handler_cancellation`, or callers that are gone are noticed late.
    """
    begun: set[asyncio.Task[msgspec.Struct]] = set()
    streams: set[asyncio.Task[Any]] = set()
    application = web.Application(client_max_size=MAX_REQUEST, middlewares=[_report_failures])
    application.add_routes(
        [
            web.post("/v1/mount", _handler(MountRequest, daemon.mount, begun)),
            web.post("/v1/unmount", _handler(UnmountRequest, daemon.unmount, begun)),
            web.post("/v1/fsid", _handler(ImageRequest, daemon.fsid, begun)),
            web.post("/v1/inspect", _handler(InspectRequest, daemon.inspect, begun)),
            web.post("/v1/prefetch", _stream_handler(PrefetchRequest, daemon.prefetch, streams)),
            web.post("/v1/validate", _stream_handler(ImageRequest, daemon.validate, streams)),
            web.post("/v1/index", _handler(ImageRequest, daemon.create_index, begun)),
            web.post("/v1/index/find", _handler(ImageRequest, daemon.find_indexes, begun)),
            web.post("/v1/index/push", _handler(PushIndexRequest, daemon.push_index, begun)),
            web.post("/v1/index/unpush", _handler(ImageRequest, daemon.unpush_index, begun)),
            web.post("/v1/index/remove", _handler(ImageRequest, daemon.remove_index, begun)),
            web.get("/v1/index", _question(daemon.indexes)),
            web.post("/v1/cache/check", _handler(CacheCheckRequest, daemon.check_cache, begun)),
            web.get("/v1/cache", _question(daemon.cache)),
            web.get("/v1/status", _question(daemon.status)),
        ]
    )

    async def end_calls(_: web.Application) -> None:
        await _cancel(streams)
        if begun:
            await asyncio.wait(begun, timeout=grace)
        await _cancel(begun)

    async def end_late_calls(_: web.Application) -> None:
        await _cancel(begun)

    application.on_shutdown.append(end_calls)
    application.on_cleanup.append(end_late_calls)
    return application


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    running = list(tasks)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


def _handler(
    kind: type[_Request],
    call: Callable[[_Request], Coroutine[Any, Any, msgspec.Struct]],
    begun: set[asyncio.Task[msgspec.Struct]],
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        message = await read_request(request, kind)
        task = asyncio.create_task(call(message))
        begun.add(task)
        task.add_done_callback(begun.discard)
        try:
            return _reply(await asyncio.shield(task))
        except asyncio.CancelledError:
            task.add_done_callback(lambda done: _say_end(request.path, done))
            if not task.cancelled():
                raise  # it is the caller who is gone
            raise DaemonUnavailableError(
                "daemon", "is stopping; what was begun is undone", "try again when it runs"
            ) from None

    return handle


def _say_end(path: str, task: asyncio.Task[msgspec.Struct]) -> None:
    """Log how a call ended that nobody waits for any more."""
    if task.cancelled():
        _log.warning("%s: was undone, the daemon is stopping", path)
    elif error := task.exception():
        _log.warning("%s: failed when its caller was gone: %s", path, error)
    else:
        _log.info("%s: was finished when its caller was gone", path)


def _question(
    call: Callable[[], Awaitable[msgspec.Struct]],
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(_: web.Request) -> web.StreamResponse:
        return _reply(await call())

    return handle


def _stream_handler(
    kind: type[_Request],
    call: Callable[[_Request], AsyncGenerator[msgspec.Struct]],
    streams: set[asyncio.Task[Any]],
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def send(message: _Request, response: web.StreamResponse) -> None:
        async with aclosing(call(message)) as events:  # ends with its caller
            async for event in events:
                await response.write(msgspec.json.encode(event) + b"\n")

    async def handle(request: web.Request) -> web.StreamResponse:
        message = await read_request(request, kind)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker: a handler runs in one
        streams.add(task)
        try:
            await send(message, response)
        except ConnectionError:
            _log.info("%s: its caller is gone", request.path)
        except Exception:  # the head is sent: all that can be said is an end that is too early
            _log.exception("%s failed", request.path)
        finally:
            streams.discard(task)
        return response

    return handle


async def read_request(request: web.Request, kind: type[_Request]) -> _Request:
    """Give the message in a request's body; raises UsageError."""
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except (ValueError, RecursionError) as error:  # ValueError: also of what is no UTF-8
        raise UsageError(request.path, f"the request cannot be read: {error}") from error


def _reply(message: msgspec.Struct, status: int = HTTPStatus.OK) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(message), status=status, content_type="application/json"
    )


@web.middleware
async def _report_failures(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except LazyimgError as error:
        _log.info("%s %s: %s", request.method, request.path, error)
        return _reply(ErrorReply.of(error), _status(error))
    except web.HTTPException as error:
        refusal = UsageError(request.path, f"{request.method} is not served: {error.reason}")
        return _reply(ErrorReply.of(refusal), error.status)
    except Exception:
        _log.exception("%s %s failed", request.method, request.path)
        failure = LazyimgError("daemon", "an error of its own; its log has the details")
        return _reply(ErrorReply.of(failure), HTTPStatus.INTERNAL_SERVER_ERROR)


def _status(error: LazyimgError) -> int:
    if isinstance(error, NotFoundError):
        return HTTPStatus.NOT_FOUND
    return HTTPStatus.BAD_REQUEST if isinstance(error, UsageError) else HTTPStatus.CONFLICT
