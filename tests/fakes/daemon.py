"""A daemon that knows one image: the local API, over a real unix socket, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aiohttp import web
from msgspec.structs import replace

from lazyimg.api.messages import (
    CacheCheckReply,
    CacheCheckRequest,
    CachedReport,
    CacheReply,
    ErrorReply,
    FsidReply,
    ImageRequest,
    IndexReply,
    IndexReport,
    InspectReply,
    InspectRequest,
    LayerReport,
    LayerVerdict,
    MountReply,
    MountReport,
    MountRequest,
    PrefetchEvent,
    PrefetchRequest,
    PushIndexReply,
    PushIndexRequest,
    RegistryReport,
    SnapshotterReport,
    StatusReply,
    StreamReport,
    UnmountReply,
    UnmountRequest,
    UnpushIndexReply,
    ValidateEvent,
    ValidateReply,
)
from lazyimg.api.server import make_application
from lazyimg.errors import InUseError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

    import msgspec

IMAGE = "registry.test/app:1"
PLAIN = "registry.test/plain:1"
DIGEST = "sha256:" + "d" * 64
FSID = "f" * 64
MIB = 1 << 20


class FakeDaemon:
    """Mounts IMAGE anywhere, once for each directory.

    PLAIN cannot be loaded lazily; no other image is found.

    Attributes:
        requests: what it was asked, in order.
        mounts: what is mounted, by directory.
        supervisor: what status says of it.
        restarts: likewise.
        registries: likewise.
        failure: likewise.
        streamed: what a mount says of it.
        streams: what status says of them.
        snapshotter: likewise.
        verdicts: of the devices in the cache, by name; another one is removed meanwhile.
        artifact: what is pushed; "" for nothing.
    """

    def __init__(self) -> None:
        self.requests: list[msgspec.Struct] = []
        self.mounts: dict[str, MountReport] = {}
        self.supervisor = 41
        self.restarts = 3
        self.registries: list[RegistryReport] = []
        self.failure = ""
        self.streamed = 0
        self.streams: list[StreamReport] = []
        self.snapshotter: SnapshotterReport | None = None
        self.verdicts: dict[str, CacheCheckReply] = {}
        self.artifact = "sha256:2"

    async def mount(self, request: MountRequest) -> MountReply:
        """Mount IMAGE."""
        self.requests.append(request)
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
        return MountReply(
            reference=IMAGE,
            digest=DIGEST,
            fsid=FSID,
            directory=request.directory,
            streamed=self.streamed,
        )

    async def unmount(self, request: UnmountRequest) -> UnmountReply:
        """Unmount it."""
        self.requests.append(request)
        if self.mounts.pop(request.directory, None) is None:
            raise NotFoundError(request.directory, "nothing is mounted there by lazyimg")
        return UnmountReply(reference=IMAGE, directory=request.directory)

    async def fsid(self, request: ImageRequest) -> FsidReply:
        """Give its fsid."""
        self.requests.append(request)
        _check(request.reference)
        command = f"mount -t erofs none -o fsid={FSID},domain_id=lazyimg DIR"
        return FsidReply(
            reference=IMAGE, digest=DIGEST, fsid=FSID, domain_id="lazyimg", command=command
        )

    async def inspect(self, request: InspectRequest) -> InspectReply:
        """Describe it: a quarter of it is local."""
        self.requests.append(request)
        if request.reference == PLAIN:
            return InspectReply(
                reference=PLAIN,
                digest=DIGEST,
                platform="linux/amd64",
                fsid="",
                bootstrap_size=0,
                layers=[LayerReport(digest=DIGEST, media_type="", format="gzip", size=MIB)],
            )
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
            index="layer",
        )
        return InspectReply(
            reference=IMAGE,
            digest=DIGEST,
            platform="linux/amd64",
            fsid=FSID,
            bootstrap_size=MIB,
            layers=[layer],
        )

    async def prefetch(self, request: PrefetchRequest) -> AsyncGenerator[PrefetchEvent]:
        """Make images local, in four steps."""
        self.requests.append(request)
        for reference in request.references:
            for event in _prefetch_events(reference):
                yield event

    async def validate(self, request: ImageRequest) -> AsyncGenerator[ValidateEvent]:
        """Read IMAGE: its lower layer is what it says, its upper one is not; PLAIN has one."""
        self.requests.append(request)
        right = LayerVerdict(digest=DIGEST, format="zstd:chunked", size=MIB, index=DIGEST)
        wrong = LayerVerdict(digest="sha256:" + "b" * 64, format="gzip", size=MIB, problem="lies")
        known = {IMAGE: [right, wrong], PLAIN: [right]}
        yield ValidateEvent(read=MIB, total=2 * MIB)
        if request.reference not in known:
            error = NotFoundError(request.reference, "the registry has no such image")
            yield ValidateEvent(error=ErrorReply.of(error))
            return
        yield ValidateEvent(
            reply=ValidateReply(
                reference=request.reference,
                digest=DIGEST,
                platform="linux/amd64",
                layers=known[request.reference],
            )
        )

    async def create_index(self, request: ImageRequest) -> IndexReply:
        """Make the index of the lower layer; the upper one has its own."""
        self.requests.append(request)
        _check(request.reference)
        made = IndexReport(
            layer=DIGEST, size=40 * MIB, format="gzip", index="sha256:1", index_size=MIB, made=True
        )
        own = IndexReport(layer=DIGEST, size=MIB, format="zstd:chunked")
        return IndexReply(reference=IMAGE, layers=[made, replace(made, made=False), own])

    async def find_indexes(self, request: ImageRequest) -> IndexReply:
        """Say that the lower layer has one everywhere, the upper one nowhere."""
        self.requests.append(request)
        found = IndexReport(
            layer=DIGEST, size=40 * MIB, format="gzip", index="sha256:1", index_size=MIB,
            committed="sha256:1", pushed=["sha256:2", "sha256:3"],
        )  # fmt: skip
        return IndexReply(
            reference=IMAGE,
            layers=[found, IndexReport(layer=DIGEST, size=MIB, format="gzip")],
        )

    async def push_index(self, request: PushIndexRequest) -> PushIndexReply:
        """Push the index of a layer, but for an image whose layers have their own."""
        self.requests.append(request)
        _check(request.reference)
        return PushIndexReply(
            reference=IMAGE,
            tagged=f"registry.example/app:{request.tag}" if request.tag else "",
            digest=DIGEST,
            artifact=self.artifact,
            layers=[DIGEST] if self.artifact else [],
        )

    async def unpush_index(self, request: ImageRequest) -> UnpushIndexReply:
        """Remove two, one of which stays."""
        self.requests.append(request)
        return UnpushIndexReply(
            artifacts=["sha256:2", "sha256:3"], problems=["the registry answers 405"]
        )

    async def remove_index(self, request: ImageRequest) -> IndexReply:
        """Remove one."""
        self.requests.append(request)
        return IndexReply(layers=[IndexReport(layer=DIGEST, size=MIB)])

    async def indexes(self) -> IndexReply:
        """List one."""
        report = IndexReport(layer=DIGEST, size=40 * MIB, index="sha256:1", index_size=MIB)
        return IndexReply(layers=[report])

    async def cache(self) -> CacheReply:
        """Describe the devices of the verdicts, and one that is removed before it is checked."""
        return CacheReply(
            devices=[
                CachedReport(device=name, size=2 * MIB, present=MIB, used=False)
                for name in [*self.verdicts, "gone"]
            ]
        )

    async def check_cache(self, request: CacheCheckRequest) -> CacheCheckReply:
        """Give the verdict."""
        self.requests.append(request)
        if request.device not in self.verdicts:
            raise NotFoundError(request.device, "is not in the cache")
        return self.verdicts[request.device]

    async def status(self) -> StatusReply:
        """Describe the mounts."""
        return StatusReply(
            version="0.1.0",
            pid=42,
            supervisor=self.supervisor,
            restarts=self.restarts,
            transport="cachefiles",
            root="/var/lib/lazyimg",
            uptime=3725.0,
            mounts=list(self.mounts.values()),
            streams=self.streams,
            reads=1000,
            reads_failed=1,
            fetched=12 * MIB,
            fetches=30,
            registries=self.registries,
            failure=self.failure,
            snapshotter=self.snapshotter,
        )


def _check(reference: str) -> None:
    if reference != IMAGE:
        raise NotFoundError(reference, "the registry has no such image")


def _prefetch_events(reference: str) -> Iterator[PrefetchEvent]:
    try:
        _check(reference)
    except NotFoundError as error:
        yield PrefetchEvent(reference=reference, error=ErrorReply.of(error))
        return
    for quarter in range(1, 5):
        yield PrefetchEvent(
            reference=reference,
            present=25 * quarter * MIB,
            total=100 * MIB,
            fetched=10 * quarter * MIB,
            done=quarter == 4,
        )


@contextmanager
def serve_in_thread(daemon: FakeDaemon, address: Path) -> Iterator[FakeDaemon]:
    """Serve a daemon's API on a socket until the block ends."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(make_application(daemon))

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
