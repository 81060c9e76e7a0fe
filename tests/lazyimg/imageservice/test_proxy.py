"""Calls passed on, between a real client and a real server of gRPC, and what is noted meanwhile."""

from __future__ import annotations

import asyncio
import stat
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from lazyimg.errors import StorageError, UsageError
from lazyimg.host.lasting_sockets import LastingSockets
from lazyimg.host.service_manager import ServiceManager
from lazyimg.images.given import GivenCredentials
from lazyimg.imageservice import proxy
from lazyimg.imageservice.proto import images_pb2 as pb
from lazyimg.imageservice.proxy import listen
from lazyimg.registry.auth import Credential

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    Context = grpc.aio.ServicerContext[bytes, bytes]

SERVICE = "/runtime.v1.ImageService"
ALICE = Credential("alice", "sesame")
BOB = Credential("bob", "b")
REPOSITORY = "reg.example/app"


def pull_request(credential: Credential | None, image: str = f"{REPOSITORY}:1") -> bytes:
    request = pb.PullImageRequest(image=pb.ImageSpec(image=image))
    if credential is not None:
        request.auth.username = credential.username
        request.auth.password = credential.password
    return request.SerializeToString()


class Runtime(grpc.GenericRpcHandler):
    """Something in containerd's place: takes any call and does what the test says.

    Attributes:
        calls: method, request and metadata of each call.
        answers: what each call is answered with.
        refusal: if set, each call fails with this status after the answers.
        meanwhile: is called while a call is answered.
        left: how much time the last caller gave, in seconds.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, bytes, dict[str, Any]]] = []
        self.answers = [b"answer"]
        self.refusal: tuple[grpc.StatusCode, str, tuple[tuple[str, Any], ...]] | None = None
        self.meanwhile: Callable[[], Any] = lambda: None
        self.left: float | None = None
        self.hangs = False
        self.called = asyncio.Event()
        self.cancelled = asyncio.Event()

    def service(self, call: grpc.HandlerCallDetails) -> Any:
        async def answer(request: bytes, context: Context) -> AsyncIterator[bytes]:
            metadata = dict(context.invocation_metadata() or ())
            self.calls.append((call.method, request, metadata))
            self.left = context.time_remaining()
            self.meanwhile()
            self.called.set()
            if self.hangs:
                try:
                    await asyncio.Event().wait()
                finally:
                    self.cancelled.set()
            await context.send_initial_metadata((("first", "1"),))
            for one in self.answers:
                yield one
            if self.refusal is not None:
                await context.abort(*self.refusal)
            context.set_trailing_metadata((("last", "2"),))

        return grpc.unary_stream_rpc_method_handler(answer)


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[Runtime]:
    """Something that answers on the socket `containerd`."""
    made = Runtime()
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 16 << 20)])
    server.add_generic_rpc_handlers((made,))
    server.add_insecure_port(f"unix:{tmp_path}/containerd")
    await server.start()
    yield made
    await server.stop(None)


@pytest.fixture
def given() -> GivenCredentials:
    return GivenCredentials(100.0)


def sockets() -> LastingSockets:
    return LastingSockets(ServiceManager({}), {})


@pytest.fixture
async def channel(tmp_path: Path, given: GivenCredentials) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the proxy in front of it."""
    path = tmp_path / "run" / "images.sock"
    async with AsyncExitStack() as stack:
        await listen(path, tmp_path / "containerd", given, sockets(), stack)
        options = [("grpc.max_receive_message_length", 16 << 20)]
        async with grpc.aio.insecure_channel(f"unix:{path}", options=options) as opened:
            yield opened
    assert not path.exists()
    given.close()


async def call(channel: grpc.aio.Channel, method: str, request: bytes, **options: Any) -> bytes:
    begin: Any = channel.unary_unary(f"{SERVICE}/{method}")
    answer: bytes = await begin(request, **options)
    return answer


async def refusal(channel: grpc.aio.Channel, method: str, request: bytes) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, method, request)
    return caught.value


async def test_socket_is_for_root_only(channel: grpc.aio.Channel, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "run" / "images.sock").stat().st_mode) == 0o600


async def test_bytes_and_metadata_go_through(channel: grpc.aio.Channel, runtime: Runtime) -> None:
    request = b"\xff not a message \0"
    begin: Any = channel.unary_unary("/runtime.v1alpha2.ImageService/ListImages")
    began = begin(request, metadata=(("traceparent", "00-1"), ("more-bin", b"\0\xff")))
    assert await began == b"answer"
    assert dict(await began.initial_metadata())["first"] == "1"
    assert dict(await began.trailing_metadata())["last"] == "2"
    ((method, seen, metadata),) = runtime.calls
    assert (method, seen) == ("/runtime.v1alpha2.ImageService/ListImages", request)
    assert metadata.items() >= {"traceparent": "00-1", "more-bin": b"\0\xff"}.items()
    assert runtime.left is None


async def test_method_that_comes_with_a_later_version(
    channel: grpc.aio.Channel, runtime: Runtime
) -> None:
    runtime.answers = [b"one", b"", b"three"]
    begin: Any = channel.unary_stream(f"{SERVICE}/StreamImages")
    assert [answer async for answer in begin(b"")] == runtime.answers


async def test_message_of_many_bytes(channel: grpc.aio.Channel, runtime: Runtime) -> None:
    runtime.answers = [bytes(6 << 20)]
    assert await call(channel, "ListImages", bytes(5 << 20)) == bytes(6 << 20)
    assert len(runtime.calls[0][1]) == 5 << 20


async def test_deadline_goes_through(channel: grpc.aio.Channel, runtime: Runtime) -> None:
    await call(channel, "ImageStatus", b"", timeout=1000)
    assert runtime.left is not None
    assert 900 < runtime.left < 1100  # gRPC rounds it up


async def test_refusal_goes_through_with_its_details(
    channel: grpc.aio.Channel, runtime: Runtime
) -> None:
    runtime.answers = []
    details = (("grpc-status-details-bin", b"\x08\x05"), ("reason", "none"))
    runtime.refusal = (grpc.StatusCode.NOT_FOUND, "no such image: \u00e9", details)
    error = await refusal(channel, "ImageStatus", b"")
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "no such image: \u00e9")
    assert dict(error.trailing_metadata()).items() >= dict(details).items()


async def test_caller_that_goes_away(channel: grpc.aio.Channel, runtime: Runtime) -> None:
    runtime.hangs = True
    caller = asyncio.create_task(call(channel, "PullImage", pull_request(ALICE)))
    await runtime.called.wait()
    caller.cancel()
    await runtime.cancelled.wait()
    await asyncio.wait([caller])


async def test_other_services_are_not_there(channel: grpc.aio.Channel, runtime: Runtime) -> None:
    for method in ("/runtime.v1.RuntimeService/Version", "/runtime.v1.ImageService", "/x"):
        begin: Any = channel.unary_unary(method)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await begin(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert runtime.calls == []


async def test_containerd_that_is_away(channel: grpc.aio.Channel, given: GivenCredentials) -> None:
    for method in ("ListImages", "PullImage"):
        error = await refusal(channel, method, pull_request(ALICE))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert given.find(REPOSITORY) is None


async def test_containerd_that_comes_later(channel: grpc.aio.Channel, tmp_path: Path) -> None:
    await refusal(channel, "ListImages", b"")
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Runtime(),))
    server.add_insecure_port(f"unix:{tmp_path}/containerd")
    await server.start()
    async with asyncio.timeout(30):
        while True:
            try:
                assert await call(channel, "ListImages", b"") == b"answer"
                break
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017
    await server.stop(None)


async def test_credential_counts_during_its_pull_and_afterwards(
    channel: grpc.aio.Channel, runtime: Runtime, given: GivenCredentials
) -> None:
    seen: list[Credential | None] = []
    runtime.meanwhile = lambda: seen.append(given.find(REPOSITORY))
    request = pull_request(ALICE)
    assert await call(channel, "PullImage", request) == b"answer"
    assert seen == [ALICE]
    assert given.find(REPOSITORY) == ALICE
    assert runtime.calls[0][1] == request


async def test_credential_of_a_pull_that_fails_is_forgotten(
    channel: grpc.aio.Channel, runtime: Runtime, given: GivenCredentials
) -> None:
    await call(channel, "PullImage", pull_request(ALICE))
    runtime.answers = []
    runtime.refusal = (grpc.StatusCode.UNKNOWN, "401", ())
    assert (await refusal(channel, "PullImage", pull_request(BOB))).details() == "401"
    assert given.find(REPOSITORY) == ALICE


async def test_pull_that_is_given_up_is_forgotten(
    channel: grpc.aio.Channel, runtime: Runtime, given: GivenCredentials
) -> None:
    runtime.hangs = True
    caller = asyncio.create_task(call(channel, "PullImage", pull_request(ALICE)))
    await runtime.called.wait()
    assert given.find(REPOSITORY) == ALICE
    caller.cancel()
    await runtime.cancelled.wait()
    async with asyncio.timeout(30):
        while given.find(REPOSITORY) is not None:  # noqa: ASYNC110 - it says nothing
            await asyncio.sleep(0.001)
    await asyncio.wait([caller])


@pytest.mark.parametrize("method", ["ListImages", "ImageStatus", "RemoveImage"])
async def test_other_calls_give_nothing(
    channel: grpc.aio.Channel, runtime: Runtime, given: GivenCredentials, method: str
) -> None:
    await call(channel, method, pull_request(ALICE))
    assert given.find(REPOSITORY) is None


@pytest.mark.parametrize(
    "request_bytes", [b"\xff", pull_request(None), pull_request(ALICE, "UPPER?")]
)
async def test_pull_without_a_credential_goes_through(
    channel: grpc.aio.Channel, runtime: Runtime, request_bytes: bytes
) -> None:
    assert await call(channel, "PullImage", request_bytes) == b"answer"
    assert runtime.calls[0][1] == request_bytes


async def test_log_has_no_secret(
    channel: grpc.aio.Channel, runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    await call(channel, "PullImage", pull_request(ALICE))
    await call(channel, "PullImage", pull_request(ALICE, "UPPER?"))
    ours = [record.getMessage() for record in caplog.records if record.name == proxy.__name__]
    assert ours[0] == f"what came with its pull is shown to {REPOSITORY} from now on"
    assert ours[1].startswith("a pull's credential is not kept: ")
    assert not any("sesame" in text for text in caplog.messages)


async def test_no_memory_for_a_credential(
    channel: grpc.aio.Channel,
    runtime: Runtime,
    given: GivenCredentials,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_line: bytes) -> None:
        raise StorageError("credentials", "cannot be kept in memory")

    monkeypatch.setattr(given._lines, "add", refuse)
    assert await call(channel, "PullImage", pull_request(ALICE)) == b"answer"
    assert given.find(REPOSITORY) == ALICE
    assert (
        "the next process will not know it: credentials: cannot be kept in memory"
        in caplog.messages
    )


async def test_its_own_socket_is_not_containerd_s(tmp_path: Path, given: GivenCredentials) -> None:
    path = tmp_path / "sock"
    async with AsyncExitStack() as stack:
        with pytest.raises(UsageError) as caught:
            await listen(path, path, given, sockets(), stack)
    assert str(caught.value) == (
        f"image_service.address: {path} is containerd's own; choose another one"
    )
    given.close()
