"""The local API: a scripted daemon behind a real socket, asked by the real client."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from lazyimg.api.messages import (
    Access,
    CacheCheckReply,
    CacheCheckRequest,
    CacheReply,
    ErrorReply,
    FsidReply,
    ImageRequest,
    IndexReply,
    IndexReport,
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
    ValidateReply,
)
from lazyimg.api.server import MAX_REQUEST, make_application
from lazyimg.errors import (
    DaemonUnavailableError,
    InUseError,
    LazyimgError,
    NotFoundError,
    RegistryError,
    UsageError,
)
from tests.fakes.api_client import ApiClient

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from pathlib import Path

PUSHED = PushIndexReply(reference="r", tagged="t", digest="d", artifact="a", layers=["l"])
INDEXED = IndexReply(reference="r", layers=[IndexReport(layer="l", size=1, made=True)])
CHECKED = CacheCheckReply(device="d", checked=1, unchecked=2, wrong=3, repaired=4)
MOUNTED = MountReply(reference="reg/app:1", digest="sha256:aa", fsid="ff", directory="/mnt")
STATUS = StatusReply(
    version="1", pid=2, transport="cachefiles", root="/r", uptime=3.5, mounts=[], reads=4,
    reads_failed=5, fetched=6, fetches=7,
)  # fmt: skip
EVENTS = [
    PrefetchEvent(reference="a", present=1, total=2),
    PrefetchEvent(reference="a", present=2, total=2, fetched=1, done=True),
    PrefetchEvent(
        reference="b",
        error=ErrorReply(kind="not-found", what="b", problem="none", remedy="", exit_code=2),
    ),
]


VALIDATED = ValidateReply(reference="r", digest="d", platform="p", layers=[])


class ScriptedDaemon:
    """Answers everything with what a test gives it.

    Attributes:
        asked: every request.
        error: raised by every call but `prefetch`.
        gate: calls, and each event of a prefetch but the first, wait for it.
        events: of a prefetch; an exception is raised.
        ended: calls and prefetches that ended, however they did.
    """

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.started = asyncio.Event()
        self.events: list[PrefetchEvent | Exception] = [*EVENTS]
        self.ended: list[str] = []

    async def _answer(self, request: object, reply: Any) -> Any:
        self.asked.append(request)
        self.started.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.ended.append("undone")
            raise
        self.ended.append("done")
        if self.error is not None:
            raise self.error
        return reply

    async def mount(self, request: MountRequest) -> MountReply:
        reply: MountReply = await self._answer(request, MOUNTED)
        return reply

    async def unmount(self, request: UnmountRequest) -> UnmountReply:
        reply: UnmountReply = await self._answer(
            request, UnmountReply(reference="reg/app:1", directory=request.directory)
        )
        return reply

    async def fsid(self, request: ImageRequest) -> FsidReply:
        reply: FsidReply = await self._answer(
            request,
            FsidReply(reference="r", digest="d", fsid="f", domain_id="lazyimg", command="mount"),
        )
        return reply

    async def inspect(self, request: InspectRequest) -> InspectReply:
        reply: InspectReply = await self._answer(
            request,
            InspectReply(
                reference="r", digest="d", platform="p", fsid="f", bootstrap_size=1, layers=[]
            ),
        )
        return reply

    async def create_index(self, request: ImageRequest) -> IndexReply:
        reply: IndexReply = await self._answer(request, INDEXED)
        return reply

    async def remove_index(self, request: ImageRequest) -> IndexReply:
        reply: IndexReply = await self._answer(request, IndexReply(layers=[]))
        return reply

    async def find_indexes(self, request: ImageRequest) -> IndexReply:
        reply: IndexReply = await self._answer(request, INDEXED)
        return reply

    async def push_index(self, request: PushIndexRequest) -> PushIndexReply:
        reply: PushIndexReply = await self._answer(request, PUSHED)
        return reply

    async def unpush_index(self, request: ImageRequest) -> UnpushIndexReply:
        reply: UnpushIndexReply = await self._answer(request, UnpushIndexReply(artifacts=["a"]))
        return reply

    async def indexes(self) -> IndexReply:
        reply: IndexReply = await self._answer("indexes", IndexReply(layers=[]))
        return reply

    async def cache(self) -> CacheReply:
        reply: CacheReply = await self._answer("cache", CacheReply(devices=[]))
        return reply

    async def check_cache(self, request: CacheCheckRequest) -> CacheCheckReply:
        reply: CacheCheckReply = await self._answer(request, CHECKED)
        return reply

    async def status(self) -> StatusReply:
        reply: StatusReply = await self._answer(None, STATUS)
        return reply

    async def prefetch(self, request: PrefetchRequest) -> AsyncGenerator[PrefetchEvent]:
        self.asked.append(request)
        try:
            for number, event in enumerate(self.events):
                if number:
                    self.started.set()
                    await self.gate.wait()
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.ended.append("prefetch")

    async def validate(self, request: ImageRequest) -> AsyncGenerator[ValidateEvent]:
        self.asked.append(request)
        yield ValidateEvent(read=1, total=2)
        yield ValidateEvent(reply=VALIDATED)


@asynccontextmanager
async def serve(
    daemon: ScriptedDaemon, address: Path, grace: float = 5.0
) -> AsyncIterator[ApiClient]:
    runner = web.AppRunner(
        make_application(daemon, grace=grace), handler_cancellation=True, shutdown_timeout=5
    )
    await runner.setup()
    await web.UnixSite(runner, str(address)).start()
    try:
        yield ApiClient(str(address))
    finally:
        await runner.cleanup()


@pytest.fixture
def daemon() -> ScriptedDaemon:
    return ScriptedDaemon()


@pytest.fixture
def address(tmp_path: Path) -> Path:
    return tmp_path / "sock"


@pytest.fixture
async def client(daemon: ScriptedDaemon, address: Path) -> AsyncIterator[ApiClient]:
    async with serve(daemon, address) as client:
        yield client


async def ask(address: Path, head: str, body: bytes = b"") -> bytes:
    """Give the raw answer to a raw request."""
    reader, writer = await asyncio.open_unix_connection(str(address))
    writer.write(f"{head} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def collect(client: ApiClient, *references: str) -> list[PrefetchEvent]:
    request = PrefetchRequest(references=list(references))
    async with aclosing(client.prefetch(request)) as events:  # type: ignore[type-var]
        return [event async for event in events]


async def test_every_call_reaches_the_daemon_whole(
    daemon: ScriptedDaemon, client: ApiClient
) -> None:
    access = Access(authfile="/a", username="u", password="p", plain_http=True, ca_file="/c")
    mount = MountRequest(
        reference="r", platform="linux/arm64", access=access, directory="/mnt", read_write=True
    )
    image = ImageRequest(reference="r", platform="linux/arm64", access=access)
    inspect = InspectRequest(directory="/mnt", access=access)
    unmount = UnmountRequest(directory="/mnt", lazy=True)
    assert await client.mount(mount) == MOUNTED
    assert (await client.fsid(image)).command == "mount"
    assert (await client.inspect(inspect)).platform == "p"
    assert (await client.unmount(unmount)).directory == "/mnt"
    assert await client.status() == STATUS
    check = CacheCheckRequest(device="d", repair=True)
    assert await client.check_cache(check) == CHECKED
    assert await client.cache() == CacheReply(devices=[])
    assert await client.validate(image, lambda *_: None) == VALIDATED
    assert await client.create_index(image) == INDEXED
    assert await client.remove_index(image) == await client.indexes() == IndexReply(layers=[])
    push = PushIndexRequest(reference="r", access=access, tag="t")
    assert await client.find_indexes(image) == INDEXED
    assert await client.push_index(push) == PUSHED
    assert await client.unpush_index(image) == UnpushIndexReply(artifacts=["a"])
    assert daemon.asked == [
        mount, image, inspect, unmount, None, check, "cache", image, image, image, "indexes",
        image, push, image,
    ]  # fmt: skip
    assert daemon.asked[0].access.password == "p"


async def test_prefetch_gives_every_event(daemon: ScriptedDaemon, client: ApiClient) -> None:
    assert await collect(client, "a", "b") == EVENTS
    assert daemon.asked == [PrefetchRequest(references=["a", "b"])]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotFoundError("image", "is not there", "look again"), 404),
        (UsageError("image", "makes no sense"), 400),
        (InUseError("/mnt", "is in use", "unmount it"), 409),
        (RegistryError("registry", "is away", status=503, retryable=True), 409),
    ],
)
async def test_error_of_the_daemon(
    daemon: ScriptedDaemon, client: ApiClient, address: Path, error: LazyimgError, status: int
) -> None:
    daemon.error = error
    with pytest.raises(type(error)) as caught:
        await client.fsid(ImageRequest(reference="r"))
    assert str(caught.value) == str(error)
    answer = await ask(address, "GET /v1/status")
    assert answer.startswith(f"HTTP/1.0 {status} ".encode())


async def test_own_error_is_logged_and_not_told(
    daemon: ScriptedDaemon, client: ApiClient, caplog: pytest.LogCaptureFixture
) -> None:
    daemon.error = KeyError("password=secret")
    with pytest.raises(LazyimgError) as caught:
        await client.status()
    assert str(caught.value) == "daemon: an error of its own; its log has the details"
    assert "KeyError: 'password=secret'" in caplog.text
    daemon.error = None
    assert await client.status() == STATUS


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "the request cannot be read: Input data was truncated"),
        (b"\xff", "the request cannot be read: JSON is malformed: invalid character (byte 0)"),
        (b'{"reference": "\xff"}', "the request cannot be read: 'utf-8' codec can't decode"),
        (b'{"x":' + b"[" * 9999, "the request cannot be read: maximum recursion depth exceeded"),
        (b"[]", "the request cannot be read: Expected `object`, got `array`"),
        (b"{}", "the request cannot be read: Object missing required field `reference`"),
        (
            b'{"reference": 1}',
            "the request cannot be read: Expected `str`, got `int` - at `$.reference`",
        ),
    ],
)
@pytest.mark.usefixtures("client")
async def test_request_that_cannot_be_read(
    daemon: ScriptedDaemon, address: Path, body: bytes, problem: str
) -> None:
    head, _, answer = (await ask(address, "POST /v1/fsid", body)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 400 ")
    assert problem.encode() in answer
    assert b'"exit_code":64' in answer
    assert daemon.asked == []


@pytest.mark.parametrize(
    ("head", "status", "problem"),
    [
        ("GET /v1/none", 404, "GET is not served: Not Found"),
        ("GET /v1/mount", 405, "GET is not served: Method Not Allowed"),
        ("POST /v1/status", 405, "POST is not served: Method Not Allowed"),
    ],
)
@pytest.mark.usefixtures("client")
async def test_what_is_not_served(address: Path, head: str, status: int, problem: str) -> None:
    answer = await ask(address, head)
    assert answer.startswith(f"HTTP/1.0 {status} ".encode())
    assert problem.encode() in answer
    assert b'"kind":"usage"' in answer


@pytest.mark.usefixtures("client")
async def test_request_over_the_limit(daemon: ScriptedDaemon, address: Path) -> None:
    body = b'{"reference": "' + b"r" * MAX_REQUEST + b'"}'
    answer = await ask(address, "POST /v1/fsid", body)
    assert answer.startswith(b"HTTP/1.0 413 ")
    assert daemon.asked == []


async def test_call_is_finished_when_its_caller_is_gone(
    daemon: ScriptedDaemon, client: ApiClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    daemon.gate.clear()
    call = asyncio.create_task(client.unmount(UnmountRequest(directory="/mnt")))
    await daemon.started.wait()
    call.cancel()
    await asyncio.wait([call])
    await settle(lambda: client_gone(daemon))
    daemon.gate.set()
    await settle(lambda: "was finished when its caller was gone" in caplog.text)
    assert daemon.ended == ["done"]


async def test_call_that_fails_when_its_caller_is_gone_is_logged(
    daemon: ScriptedDaemon, client: ApiClient, caplog: pytest.LogCaptureFixture
) -> None:
    daemon.gate.clear()
    daemon.error = InUseError("/mnt", "is in use")
    call = asyncio.create_task(client.unmount(UnmountRequest(directory="/mnt")))
    await daemon.started.wait()
    call.cancel()
    await asyncio.wait([call])
    await settle(lambda: client_gone(daemon))
    daemon.gate.set()
    expected = "/v1/unmount: failed when its caller was gone: /mnt: is in use"
    await settle(lambda: expected in caplog.text)


async def test_prefetch_ends_with_its_caller(daemon: ScriptedDaemon, client: ApiClient) -> None:
    daemon.gate.clear()
    events = client.prefetch(PrefetchRequest(references=["a", "b"]))
    async with aclosing(events):  # type: ignore[type-var]
        assert await anext(events) == EVENTS[0]
        await daemon.started.wait()
    await settle(lambda: daemon.ended == ["prefetch"])


async def test_prefetch_of_a_caller_that_does_not_read_ends_too(
    daemon: ScriptedDaemon, address: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    daemon.events = [PrefetchEvent(reference="r" * 100_000)] * 500
    async with serve(daemon, address):
        _, writer = await asyncio.open_unix_connection(str(address))
        body = b'{"references": ["a"]}'
        writer.write(b"POST /v1/prefetch HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await daemon.started.wait()
        writer.transport.abort()
        await settle(lambda: daemon.ended == ["prefetch"])


async def test_prefetch_whose_connection_breaks_is_no_error_of_ours(
    daemon: ScriptedDaemon, client: ApiClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    daemon.events = [EVENTS[0], ConnectionResetError("Cannot write to closing transport")]
    with pytest.raises(DaemonUnavailableError):
        await collect(client, "a")
    assert "/v1/prefetch: its caller is gone" in caplog.text
    assert "Traceback" not in caplog.text


async def test_own_error_in_the_middle_of_a_prefetch(
    daemon: ScriptedDaemon, client: ApiClient, caplog: pytest.LogCaptureFixture
) -> None:
    daemon.events = [EVENTS[0], KeyError("oops")]
    with pytest.raises(DaemonUnavailableError, match="in the middle of its answer; see its log"):
        await collect(client, "a")
    assert "KeyError: 'oops'" in caplog.text
    assert daemon.ended == ["prefetch"]


async def test_end_of_the_daemon_waits_for_calls(daemon: ScriptedDaemon, address: Path) -> None:
    daemon.gate.clear()
    async with serve(daemon, address) as client:
        call = asyncio.create_task(client.mount(MountRequest(reference="r", directory="/mnt")))
        await daemon.started.wait()
        asyncio.get_running_loop().call_later(0.01, daemon.gate.set)
    assert await call == MOUNTED


async def test_end_of_the_daemon_undoes_calls_that_take_too_long(
    daemon: ScriptedDaemon, address: Path, caplog: pytest.LogCaptureFixture
) -> None:
    daemon.gate.clear()
    async with serve(daemon, address, grace=0.01) as client:
        call = asyncio.create_task(client.mount(MountRequest(reference="r", directory="/mnt")))
        await daemon.started.wait()
        ending = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - ending < 1
    assert daemon.ended == ["undone"]
    assert "/v1/mount: was undone, the daemon is stopping" in caplog.text
    with pytest.raises(DaemonUnavailableError) as raised:
        await call
    assert str(raised.value) == (
        "daemon: is stopping; what was begun is undone; try again when it runs"
    )


async def test_end_of_the_daemon_ends_prefetches_at_once(
    daemon: ScriptedDaemon, address: Path
) -> None:
    daemon.gate.clear()
    async with asyncio.timeout(3), serve(daemon, address, grace=60) as client:
        call = asyncio.create_task(collect(client, "a"))
        await daemon.started.wait()
    assert daemon.ended == ["prefetch"]
    with pytest.raises(DaemonUnavailableError, match="in the middle"):
        await call


def client_gone(daemon: ScriptedDaemon) -> bool:
    """Whether the only thing left of a call is the call itself, not the handler that waits."""
    names = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]  # type: ignore[union-attr]
    return daemon.started.is_set() and not any("RequestHandler.start" in name for name in names)


async def settle(condition: Any) -> None:
    """Let the event loop run until a condition holds."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - of a server that tells nobody
            await asyncio.sleep(0)
