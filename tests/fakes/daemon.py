"""A daemon that knows one image: the local API, over a real unix socket, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from lazyimg.api.messages import (
    ErrorReply,
    FsidReply,
    ImageRequest,
    InspectReply,
    InspectRequest,
    LayerReport,
    MountReply,
    MountReport,
    MountRequest,
    PrefetchEvent,
    PrefetchRequest,
    StatusReply,
    UnmountReply,
    UnmountRequest,
)
from lazyimg.errors import InUseError, LazyimgError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IMAGE = "registry.test/app:1"
DIGEST = "sha256:" + "d" * 64
FSID = "f" * 64
MIB = 1 << 20


class FakeDaemon:
    """Mounts IMAGE anywhere, once for each directory; every other image is not found.

    Attributes:
        requests: what it was asked, in order.
        mounts: what is mounted, by directory.
    """

    def __init__(self) -> None:
        self.requests: list[msgspec.Struct] = []
        self.mounts: dict[str, MountReport] = {}

    def application(self) -> web.Application:
        """Give the routes."""
        application = web.Application()
        for path, kind, method in (
            ("/v1/mount", MountRequest, self._mount),
            ("/v1/unmount", UnmountRequest, self._unmount),
            ("/v1/fsid", ImageRequest, self._fsid),
            ("/v1/inspect", InspectRequest, self._inspect),
        ):
            application.router.add_post(path, self._handler(kind, method))
        application.router.add_post("/v1/prefetch", self._prefetch)
        application.router.add_get("/v1/status", self._status)
        return application

    def _handler(self, kind: Any, method: Any) -> Any:
        async def handle(request: web.Request) -> web.Response:
            message = msgspec.json.decode(await request.read(), type=kind)
            self.requests.append(message)
            try:
                return _response(200, method(message))
            except LazyimgError as error:
                return _response(500, error_reply(error))

        return handle

    def _mount(self, request: MountRequest) -> MountReply:
        _check(request.reference)
        if request.directory in self.mounts:
            raise InUseError(request.directory, f"has {IMAGE} mounted on it", "unmount it first")
        self.mounts[request.directory] = MountReport(
            reference=IMAGE,
            digest=DIGEST,
            fsid=FSID,
            directory=request.directory,
            read_write=request.read_write,
            size=100 * MIB,
            present=25 * MIB,
        )
        return MountReply(reference=IMAGE, digest=DIGEST, fsid=FSID, directory=request.directory)

    def _unmount(self, request: UnmountRequest) -> UnmountReply:
        if self.mounts.pop(request.directory, None) is None:
            raise NotFoundError(request.directory, "nothing is mounted there by lazyimg")
        return UnmountReply(reference=IMAGE, directory=request.directory)

    def _fsid(self, request: ImageRequest) -> FsidReply:
        _check(request.reference)
        command = f"mount -t erofs none -o fsid={FSID},domain_id=lazyimg DIR"
        return FsidReply(
            reference=IMAGE, digest=DIGEST, fsid=FSID, domain_id="lazyimg", command=command
        )

    def _inspect(self, request: InspectRequest) -> InspectReply:
        if request.reference:
            _check(request.reference)
        layer = LayerReport(
            digest=DIGEST,
            media_type="application/vnd.oci.image.layer.v1.tar+zstd",
            format="zstd:chunked",
            size=40 * MIB,
            device="e" * 64,
            device_size=100 * MIB,
            present=25 * MIB,
        )
        return InspectReply(
            reference=IMAGE,
            digest=DIGEST,
            platform="linux/amd64",
            fsid=FSID,
            bootstrap_size=MIB,
            layers=[layer],
        )

    async def _prefetch(self, request: web.Request) -> web.StreamResponse:
        message = msgspec.json.decode(await request.read(), type=PrefetchRequest)
        self.requests.append(message)
        response = web.StreamResponse()
        await response.prepare(request)
        for reference in message.references:
            for event in _prefetch_events(reference):
                await response.write(msgspec.json.encode(event) + b"\n")
        return response

    async def _status(self, _: web.Request) -> web.Response:
        reply = StatusReply(
            version="0.1.0",
            pid=42,
            transport="cachefiles",
            root="/var/lib/lazyimg",
            uptime=3725.0,
            mounts=list(self.mounts.values()),
            reads=1000,
            reads_failed=1,
            fetched=12 * MIB,
            fetches=30,
        )
        return _response(200, reply)


def _check(reference: str) -> None:
    if reference != IMAGE:
        raise NotFoundError(reference, "the registry has no such image")


def _prefetch_events(reference: str) -> Iterator[PrefetchEvent]:
    try:
        _check(reference)
    except NotFoundError as error:
        yield PrefetchEvent(reference=reference, error=error_reply(error))
        return
    for quarter in range(1, 5):
        yield PrefetchEvent(
            reference=reference,
            present=25 * quarter * MIB,
            total=100 * MIB,
            fetched=10 * quarter * MIB,
            done=quarter == 4,
        )


def error_reply(error: LazyimgError) -> ErrorReply:
    """Give what the API says of an error."""
    return ErrorReply(
        kind=error.kind,
        what=error.what,
        problem=error.problem,
        remedy=error.remedy,
        exit_code=error.exit_code,
    )


def _response(status: int, reply: msgspec.Struct) -> web.Response:
    body = msgspec.json.encode(reply)
    return web.Response(status=status, body=body, content_type="application/json")


@contextmanager
def serve_in_thread(daemon: FakeDaemon, address: Path) -> Iterator[FakeDaemon]:
    """Serve a daemon's API on a socket until the block ends."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(daemon.application())

    async def start() -> None:
        await runner.setup()
        await web.UnixSite(runner, str(address)).start()

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield daemon
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(runner.cleanup())
        loop.close()
