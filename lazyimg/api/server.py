"""The local API over HTTP on a unix socket: messages in, calls of the daemon, messages out."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import msgspec
from aiohttp import web

from lazyimg.api.messages import (
    ErrorReply,
    FsidReply,
    ImageRequest,
    InspectReply,
    InspectRequest,
    MountReply,
    MountRequest,
    PrefetchEvent,
    PrefetchRequest,
    StatusReply,
    UnmountReply,
    UnmountRequest,
)
from lazyimg.errors import LazyimgError, NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

_log = logging.getLogger(__name__)

MAX_REQUEST: Final = 1 << 20
"""Bytes of a request's body."""

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

    def prefetch(self, request: PrefetchRequest) -> AsyncIterator[PrefetchEvent]:
        """Make images local; each image ends in an event with `done` or `error`."""
        ...

    async def inspect(self, request: InspectRequest) -> InspectReply:
        """Describe an image."""
        ...

    async def status(self) -> StatusReply:
        """Describe the daemon."""
        ...


def make_application(daemon: Daemon) -> web.Application:
    """Give the application that serves `lazyimg.api.messages`."""
    application = web.Application(client_max_size=MAX_REQUEST, middlewares=[_report_failures])
    application.add_routes(
        [
            web.post("/v1/mount", _handler(MountRequest, daemon.mount)),
            web.post("/v1/unmount", _handler(UnmountRequest, daemon.unmount)),
            web.post("/v1/fsid", _handler(ImageRequest, daemon.fsid)),
            web.post("/v1/inspect", _handler(InspectRequest, daemon.inspect)),
            web.post("/v1/prefetch", _prefetch_handler(daemon)),
            web.get("/v1/status", _status_handler(daemon)),
        ]
    )
    return application


def _handler(
    kind: type[_Request], call: Callable[[_Request], Awaitable[msgspec.Struct]]
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        message = await _read(request, kind)
        # What was begun is finished, or undone, whether or not the caller still waits.
        return _reply(await asyncio.shield(asyncio.ensure_future(call(message))))

    return handle


def _status_handler(
    daemon: Daemon,
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(_: web.Request) -> web.StreamResponse:
        return _reply(await daemon.status())

    return handle


def _prefetch_handler(
    daemon: Daemon,
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        message = await _read(request, PrefetchRequest)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        async for event in daemon.prefetch(message):  # ends with its caller
            await response.write(msgspec.json.encode(event) + b"\n")
        await response.write_eof()
        return response

    return handle


async def _read(request: web.Request, kind: type[_Request]) -> _Request:
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except msgspec.DecodeError as error:
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
