"""Calls of the image service, passed on to containerd as the bytes that they are."""

from __future__ import annotations

import logging
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import grpc

from lazyimg.errors import StorageError, UsageError
from lazyimg.imageservice.pull import parse_pull
from lazyimg_formats.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable
    from contextlib import AsyncExitStack
    from pathlib import Path

    from lazyimg.host.lasting_sockets import LastingSockets
    from lazyimg.images.given import GivenCredentials, Offer

    Context = grpc.aio.ServicerContext[bytes, bytes]
    Forward = Callable[[str, bytes, Context], AsyncGenerator[bytes]]

_log = logging.getLogger(__name__)

NAME: Final = "image-service"
"""What its socket is for."""

SERVICES: Final = frozenset({"runtime.v1.ImageService", "runtime.v1alpha2.ImageService"})
"""What is passed on. containerd before 2.0 has both; kubelets before 1.26 may call the older."""

STOP_GRACE: Final = 5.0
"""Seconds that calls under way may still take when the proxy stops."""

RECONNECT: Final = 1000
"""Milliseconds between two tries to reach a containerd that is away, at most."""

_NOT_LIMITED: Final = [  # the two ends have limits, which may be set there
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]


async def listen(
    path: Path,
    containerd: Path,
    given: GivenCredentials,
    sockets: LastingSockets,
    stack: AsyncExitStack,
) -> None:
    """Pass calls on until `stack` is left, on a socket that only root can reach.

    Args:
        path: of the socket that the kubelet calls.
        containerd: its socket. It need not be there yet.
        given: takes the credentials of pulls.
        sockets: has the socket.
        stack: see above.

    Raises:
        UsageError: both are the same.
        LazyimgError: as `LastingSockets.start`.
    """
    if path == containerd:
        raise UsageError(
            "image_service.address", f"{path} is containerd's own", "choose another one"
        )
    channel = grpc.aio.insecure_channel(
        f"unix:{containerd}",
        options=[
            *_NOT_LIMITED,
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", 0),
            ("grpc.default_authority", "localhost"),  # Go refuses a path in its place
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", RECONNECT),
        ],
    )
    stack.push_async_callback(channel.close)
    server = grpc.aio.server(options=_NOT_LIMITED)
    server.add_generic_rpc_handlers((_Calls(channel, given),))
    stack.push_async_callback(server.stop, STOP_GRACE)
    await sockets.start(server, path, NAME, stack)
    _log.info("pulls are passed on from %s to %s", path, containerd)


class _Calls(grpc.GenericRpcHandler):
    """Finds what answers a call: for every method of `SERVICES`, containerd.

    A call has one request. Whether it has one answer or several is all the same.
    """

    def __init__(self, channel: grpc.aio.Channel, given: GivenCredentials) -> None:
        self._channel = channel
        self._given = given

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        service, _, method = call.method.removeprefix("/").rpartition("/")
        if service not in SERVICES:
            return None
        forward = self._pull if method == "PullImage" else self._pass_on
        return grpc.unary_stream_rpc_method_handler(partial(self._answer, forward, call.method))

    async def _answer(
        self, forward: Forward, method: str, request: bytes, context: Context
    ) -> AsyncIterator[bytes]:
        try:
            async with aclosing(forward(method, request, context)) as answers:
                async for answer in answers:
                    yield answer
        except grpc.aio.AioRpcError as error:
            failure = error
        else:
            return
        await context.abort(
            failure.code(), failure.details() or "", tuple(failure.trailing_metadata())
        )

    async def _pull(self, method: str, request: bytes, context: Context) -> AsyncGenerator[bytes]:
        """Pass a pull on, and use the credential that comes with it."""
        try:
            pull = parse_pull(request)
        except FormatError as error:
            _log.warning("a pull's credential is not kept: %s", error)
            pull = None
        async with aclosing(self._pass_on(method, request, context)) as answers:
            if pull is None:
                async for answer in answers:
                    yield answer
                return
            offer = self._given.begin(pull.repository, pull.credential)
            pulled = False
            try:
                async for answer in answers:
                    yield answer
                pulled = True
            finally:
                self._end(offer, pulled=pulled)

    def _end(self, offer: Offer, *, pulled: bool) -> None:
        try:
            self._given.end(offer, pulled=pulled)
        except StorageError as error:
            _log.warning("the next process will not know it: %s", error)
        if pulled:
            _log.info("what came with its pull is shown to %s from now on", offer.repository)

    async def _pass_on(
        self, method: str, request: bytes, context: Context
    ) -> AsyncGenerator[bytes]:
        """Give containerd's answers; raises AioRpcError with its refusal."""
        begin: Any = self._channel.unary_stream(method)  # with bytes, as without serializers
        call = begin(request, timeout=context.time_remaining(), metadata=_metadata(context))
        try:
            await context.send_initial_metadata(tuple(await call.initial_metadata()))
            async for answer in call:
                yield answer
            context.set_trailing_metadata(tuple(await call.trailing_metadata()))
        finally:
            call.cancel()


def _metadata(context: Context) -> tuple[tuple[str, str | bytes], ...]:
    """Give what the caller says beside the request, without what names its program."""
    return tuple(
        (key, value) for key, value in context.invocation_metadata() or () if key != "user-agent"
    )
