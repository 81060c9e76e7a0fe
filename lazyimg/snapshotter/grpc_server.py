"""The service `containerd.services.snapshots.v1.Snapshots` on a unix socket.

Errors become the statuses that containerd's own snapshotters answer with (package errdefs); what
is unexpected is logged with its traceback and answered with INTERNAL.

What changes something is finished even if its caller goes away: containerd removes what it does not
know, and a Remove that stopped half-way would leave a mount that nobody can name any more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from lazyimg.errors import (
    AccessDeniedError,
    InUseError,
    LazyimgError,
    NotFoundError,
    RegistryError,
    StorageError,
    UsageError,
)
from lazyimg.snapshotter.lifecycle import AlreadyExistsError, WrongStateError, check_key
from lazyimg.snapshotter.proto import snapshots_pb2 as pb
from lazyimg_formats.containerd.filters import parse_filter
from lazyimg_formats.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from contextlib import AsyncExitStack
    from pathlib import Path

    from lazyimg.host.lasting_sockets import LastingSockets
    from lazyimg.snapshotter.lifecycle import Snapshot
    from lazyimg.snapshotter.overlay import Mount
    from lazyimg.snapshotter.service import Snapshotter

    Context = grpc.aio.ServicerContext[Any, Any]

M = TypeVar("M", bound=Message)

_log = logging.getLogger(__name__)

SERVICE: Final = "containerd.services.snapshots.v1.Snapshots"

NAME: Final = "snapshotter"
"""What its socket is for."""

MAX_MESSAGE: Final = 16 << 20
"""Bytes of a request or an answer, as containerd has it."""

MAX_DETAILS: Final = 512
"""Characters of what a status says: with up to 12 bytes each, they go into 8 KiB of headers."""

STOP_GRACE: Final = 5.0
"""Seconds that calls under way may still take when the server stops."""

_FINISHED: Final = frozenset({"Prepare", "View", "Commit", "Remove"})
"""Calls that go on without their caller."""

_STATUS: Final[dict[type[LazyimgError], grpc.StatusCode]] = {
    AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    WrongStateError: grpc.StatusCode.FAILED_PRECONDITION,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    UsageError: grpc.StatusCode.INVALID_ARGUMENT,
    InUseError: grpc.StatusCode.FAILED_PRECONDITION,
    AccessDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    RegistryError: grpc.StatusCode.UNAVAILABLE,
    StorageError: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


def status_of(error: LazyimgError) -> grpc.StatusCode:
    """Give the gRPC status that an error becomes; UNKNOWN when it has none of its own."""
    for kind in type(error).__mro__:
        if kind in _STATUS:
            return _STATUS[kind]
    return grpc.StatusCode.UNKNOWN


async def listen(
    path: Path, snapshotter: Snapshotter, sockets: LastingSockets, stack: AsyncExitStack
) -> None:
    """Answer calls until `stack` is left, on a socket that only root can reach.

    Raises:
        LazyimgError: as `LastingSockets.start`.
    """
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.max_send_message_length", MAX_MESSAGE),
        ]
    )
    begun: set[asyncio.Task[Any]] = set()
    server.add_generic_rpc_handlers((make_handler(snapshotter, begun),))
    stack.push_async_callback(snapshotter.finish)
    stack.push_async_callback(_finish, begun)
    stack.push_async_callback(server.stop, STOP_GRACE)
    await sockets.start(server, path, NAME, stack)


async def _finish(begun: set[asyncio.Task[Any]]) -> None:
    """Wait for the calls whose callers are gone; what takes too long is undone."""
    if begun:
        await asyncio.wait(begun, timeout=STOP_GRACE)
    running = list(begun)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


def make_handler(snapshotter: Snapshotter, begun: set[asyncio.Task[Any]]) -> grpc.GenericRpcHandler:
    """Give the handler of all calls of the service; `begun` has those that go on by themselves."""
    calls = _Calls(snapshotter)
    unary: dict[str, tuple[Callable[[Any], Coroutine[Any, Any, Message]], type[Message]]] = {
        "Prepare": (calls.prepare, pb.PrepareSnapshotRequest),
        "View": (calls.view, pb.ViewSnapshotRequest),
        "Mounts": (calls.mounts, pb.MountsRequest),
        "Commit": (calls.commit, pb.CommitSnapshotRequest),
        "Remove": (calls.remove, pb.RemoveSnapshotRequest),
        "Stat": (calls.stat, pb.StatSnapshotRequest),
        "Update": (calls.update, pb.UpdateSnapshotRequest),
        "Usage": (calls.usage, pb.UsageRequest),
        "Cleanup": (calls.cleanup, pb.CleanupRequest),
    }
    handlers: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(
            _answer(name, call, request, begun), None, _serialize
        )
        for name, (call, request) in unary.items()
    }
    handlers["List"] = grpc.unary_stream_rpc_method_handler(calls.list, None, _serialize)
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _parse(kind: type[M], data: bytes) -> M:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise UsageError("request", f"is no {kind.DESCRIPTOR.name}") from error


def _answer(
    name: str,
    call: Callable[[Any], Coroutine[Any, Any, Message]],
    kind: type[Message],
    begun: set[asyncio.Task[Any]],
) -> Any:
    async def answer(data: bytes, context: Context) -> Message:
        begin = time.monotonic()
        try:
            request = _parse(kind, data)
            if name in _FINISHED:
                return await _begin(name, call(request), begun)
            return await call(request)
        except Exception as error:
            code, text = _explain(name, error)
        finally:
            _log.debug("%s: %.3f s", name, time.monotonic() - begin)
        await context.abort(code, text)
        raise AssertionError  # abort raises

    return answer


async def _begin(
    name: str, call: Coroutine[Any, Any, Message], begun: set[asyncio.Task[Any]]
) -> Message:
    """Wait for a call, which goes on when this is cancelled."""
    task = asyncio.create_task(call)
    begun.add(task)
    task.add_done_callback(begun.discard)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(lambda done: _say_end(name, done))
        raise


def _say_end(name: str, task: asyncio.Task[Any]) -> None:
    """Log the failure of a call that nobody waits for any more."""
    if not task.cancelled() and isinstance(error := task.exception(), Exception):
        _explain(name, error)


def _explain(name: str, error: Exception) -> tuple[grpc.StatusCode, str]:
    if isinstance(error, FormatError):
        return grpc.StatusCode.INVALID_ARGUMENT, str(error)[:MAX_DETAILS]
    if not isinstance(error, LazyimgError):
        _log.error("%s failed", name, exc_info=error)
        return grpc.StatusCode.INTERNAL, "lazyimg: an error of its own; its log has the details"
    code = status_of(error)
    level = logging.DEBUG if code in _EXPECTED else logging.WARNING
    _log.log(level, "%s: %s", name, error)
    return code, str(error)[:MAX_DETAILS]


_EXPECTED: Final = frozenset(
    {
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
    }
)


class _Calls:
    """One method for each call: messages in, messages out."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshotter = snapshotter

    async def prepare(self, request: pb.PrepareSnapshotRequest) -> Message:
        mounts = await self._snapshotter.prepare(request.key, request.parent, request.labels)
        return pb.PrepareSnapshotResponse(mounts=map(_mount, mounts))

    async def view(self, request: pb.ViewSnapshotRequest) -> Message:
        mounts = await self._snapshotter.view(request.key, request.parent, request.labels)
        return pb.ViewSnapshotResponse(mounts=map(_mount, mounts))

    async def mounts(self, request: pb.MountsRequest) -> Message:
        return pb.MountsResponse(mounts=map(_mount, await self._snapshotter.mounts(request.key)))

    async def commit(self, request: pb.CommitSnapshotRequest) -> Message:
        await self._snapshotter.commit(request.name, request.key, request.parent, request.labels)
        return Empty()

    async def remove(self, request: pb.RemoveSnapshotRequest) -> Message:
        await self._snapshotter.remove(request.key)
        return Empty()

    async def stat(self, request: pb.StatSnapshotRequest) -> Message:
        return pb.StatSnapshotResponse(info=_info(await self._snapshotter.stat(request.key)))

    async def update(self, request: pb.UpdateSnapshotRequest) -> Message:
        check_key(request.info.name)
        changed = await self._snapshotter.update(
            request.info.name, request.info.labels, request.update_mask.paths
        )
        return pb.UpdateSnapshotResponse(info=_info(changed))

    async def usage(self, request: pb.UsageRequest) -> Message:
        size, inodes = await self._snapshotter.usage(request.key)
        return pb.UsageResponse(size=size, inodes=inodes)

    async def cleanup(self, request: pb.CleanupRequest) -> Message:  # noqa: ARG002 - has no fields
        await self._snapshotter.cleanup()
        return Empty()

    async def list(self, data: bytes, context: Context) -> AsyncIterator[Message]:
        try:
            request = _parse(pb.ListSnapshotsRequest, data)
            filters = [parse_filter(text) for text in request.filters]
            async for page in self._snapshotter.select(filters):
                yield pb.ListSnapshotsResponse(info=map(_info, page))
        except Exception as error:
            failure = _explain("List", error)
        else:
            return
        await context.abort(*failure)


def _mount(mount: Mount) -> pb.Mount:
    return pb.Mount(type=mount.type, source=mount.source, options=mount.options)


def _info(snapshot: Snapshot) -> pb.Info:
    return pb.Info(
        name=snapshot.key,
        parent=snapshot.parent,
        kind=int(snapshot.kind),  # type: ignore[arg-type]  # the numbers are the protocol's
        created_at=_timestamp(snapshot.created),
        updated_at=_timestamp(snapshot.updated),
        labels=snapshot.labels,
    )


def _timestamp(nanoseconds: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(nanoseconds)
    return stamp
