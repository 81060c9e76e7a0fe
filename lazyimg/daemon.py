"""What the daemon does for its callers: one method for each request of the local API."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from lazyimg import __version__
from lazyimg.api.messages import (
    CacheCheckReply,
    CacheCheckRequest,
    CachedReport,
    CacheReply,
    CompletionReport,
    ErrorReply,
    FsidReply,
    HeldReport,
    ImageRequest,
    IndexReply,
    IndexReport,
    InspectReply,
    InspectRequest,
    LayerReport,
    MountReply,
    MountReport,
    MountRequest,
    PrefetchEvent,
    PushIndexReply,
    PushIndexRequest,
    QuarantineReport,
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
from lazyimg.errors import LazyimgError, UsageError
from lazyimg.host.own_mounts import refuse_covering
from lazyimg.layers.locate import PLAIN
from lazyimg.registry.ports import Access

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence

    from lazyimg.api import messages
    from lazyimg.api.messages import PrefetchRequest
    from lazyimg.config import Config
    from lazyimg.fill.engine import Engine
    from lazyimg.host.service_manager import ServiceManager
    from lazyimg.images.cached import CachedDevices
    from lazyimg.images.image import Image
    from lazyimg.images.indexes import IndexedLayer, Indexes
    from lazyimg.images.library import ChainRecord, LayerRecord, OwnIndex
    from lazyimg.images.mounted import Mounted
    from lazyimg.images.mounts import Mounts
    from lazyimg.images.prefetching import Prefetcher, Progress
    from lazyimg.images.publishing import LayerIndexes, Publisher
    from lazyimg.images.service import Images
    from lazyimg.images.sharing import Sharing
    from lazyimg.images.streaming import Streams
    from lazyimg.images.validation import Validator
    from lazyimg.registry.client import RegistryClient
    from lazyimg.snapshotter.completion import Completion
    from lazyimg.snapshotter.service import Snapshotter
    from lazyimg.transports.ports import Transport

_log = logging.getLogger(__name__)

_Event = TypeVar("_Event")


class LazyimgDaemon:
    """Answers the local API; implements `lazyimg.api.server.Daemon`.

    Args:
        config: the effective configuration.
        images: makes images ready.
        indexes: makes those that layers lack.
        publisher: pushes these.
        validator: reads images whole, and checks them.
        mounts: mounts them.
        prefetcher: makes them local.
        engine: fills devices; asked for its counters.
        transport: serves the kernel; asked what is present.
        manager: started this process.
        client: talks to registries; asked for its counters.
        streams: reads layers that have no index; asked for what it reads.
        snapshotter: containerd's, if there is one; asked for what it has.
        completion: of its images; asked for what it does.
        cached: looks after the cache, if it is our own.
        sharing: pushes the indexes that a first use has made, if that is wanted.
    """

    def __init__(
        self,
        *,
        config: Config,
        images: Images,
        indexes: Indexes,
        publisher: Publisher,
        validator: Validator,
        mounts: Mounts,
        prefetcher: Prefetcher,
        engine: Engine,
        transport: Transport,
        manager: ServiceManager,
        client: RegistryClient,
        streams: Streams,
        snapshotter: Snapshotter | None = None,
        completion: Completion | None = None,
        cached: CachedDevices | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        self._config = config
        self._images = images
        self._indexes = indexes
        self._publisher = publisher
        self._validator = validator
        self._mounts = mounts
        self._prefetcher = prefetcher
        self._engine = engine
        self._transport = transport
        self._manager = manager
        self._client = client
        self._snapshotter = snapshotter
        self._completion = completion
        self._cached = cached
        self._sharing = sharing
        self._streams = streams
        self._started = time.monotonic()

    async def mount(self, request: MountRequest) -> MountReply:
        """Mount an image on a directory."""
        _check_directory(request.directory)
        config = self._config
        needed = [Path(config.root), config.cache_directory, Path(config.address)]
        more = (config.snapshotter.address, config.image_service.address)
        needed += [Path(address) for address in more if address]
        await asyncio.to_thread(refuse_covering, request.directory, needed)
        image = await self._open(request)
        await self._mounts.mount(image, request.directory, read_write=request.read_write)
        return MountReply(
            reference=image.reference,
            digest=image.digest,
            fsid=image.chain.fsid,
            directory=request.directory,
            streamed=image.streamed,
        )

    async def unmount(self, request: UnmountRequest) -> UnmountReply:
        """Take an image off a directory."""
        mounted = await self._mounts.unmount(request.directory, lazy=request.lazy)
        return UnmountReply(reference=mounted.image.reference, directory=mounted.directory)

    async def fsid(self, request: ImageRequest) -> FsidReply:
        """Make an image ready to be mounted by hand."""
        image = await self._open(request)
        fsid, domain = image.chain.fsid, await self._mounts.prepare(image)
        return FsidReply(
            reference=image.reference,
            digest=image.digest,
            fsid=fsid,
            domain_id=domain,
            command=f"mount -t erofs none -o fsid={fsid},domain_id={domain} DIR",
        )

    async def prefetch(self, request: PrefetchRequest) -> AsyncGenerator[PrefetchEvent]:
        """Make images local, one after the other; stops when nobody listens any more."""
        for reference in request.references:
            one = ImageRequest(
                reference=reference, platform=request.platform, access=request.access
            )
            async with aclosing(
                _events(partial(self._prefetch, one, request.paths), _ends_prefetch)
            ) as events:
                async for event in events:
                    yield event

    async def _prefetch(
        self,
        request: ImageRequest,
        paths: list[str],
        report: Callable[[PrefetchEvent], None],
    ) -> None:
        def event(progress: Progress, *, done: bool = False) -> PrefetchEvent:
            return PrefetchEvent(
                reference=request.reference,
                present=progress.present,
                total=progress.total,
                fetched=progress.fetched,
                done=done,
            )

        try:
            image = await self._open(request)
            end = await self._prefetcher.prefetch(image, paths, lambda now: report(event(now)))
        except LazyimgError as error:
            report(PrefetchEvent(reference=request.reference, error=ErrorReply.of(error)))
        except Exception:
            _log.exception("prefetch of %s failed", request.reference)
            failure = LazyimgError("daemon", "an error of its own; its log has the details")
            report(PrefetchEvent(reference=request.reference, error=ErrorReply.of(failure)))
        else:
            report(event(end, done=True))

    async def validate(self, request: ImageRequest) -> AsyncGenerator[ValidateEvent]:
        """Read an image whole, and check it; stops when nobody listens any more."""
        async with aclosing(_events(partial(self._validate, request), _ends_validation)) as events:
            async for event in events:
                yield event

    async def _validate(
        self, request: ImageRequest, report: Callable[[ValidateEvent], None]
    ) -> None:
        try:
            found = await self._validator.validate(
                request.reference,
                request.platform,
                _registry_access(request.access),
                lambda read, total: report(ValidateEvent(read=read, total=total)),
            )
        except LazyimgError as error:
            report(ValidateEvent(error=ErrorReply.of(error)))
        except Exception:
            _log.exception("validation of %s failed", request.reference)
            failure = LazyimgError("daemon", "an error of its own; its log has the details")
            report(ValidateEvent(error=ErrorReply.of(failure)))
        else:
            report(ValidateEvent(reply=ValidateReply.of(found)))

    async def inspect(self, request: InspectRequest) -> InspectReply:
        """Describe an image, and how much of it is local."""
        if request.directory:
            image = self._mounts.find(request.directory).image
            return await self._inspect(image.reference, image.digest, image.platform, image.chain)
        access = _registry_access(request.access)
        known = await self._images.describe(request.reference, request.platform, access)
        if known.chain is not None:
            return await self._inspect(
                known.reference, known.digest, known.platform, known.chain, known.indexes
            )
        return InspectReply(
            reference=known.reference,
            digest=known.digest,
            platform=known.platform,
            fsid="",
            bootstrap_size=0,
            layers=[
                LayerReport(
                    digest=str(layer.digest),
                    media_type=layer.media_type,
                    format=kind,
                    size=layer.size,
                    index=place,
                )
                for layer, kind, place in zip(
                    known.layers, known.formats, known.indexes, strict=True
                )
            ],
        )

    async def create_index(self, request: ImageRequest) -> IndexReply:
        """Make an index of each layer of an image that has none."""
        access = _registry_access(request.access)
        name, layers = await self._indexes.create(request.reference, request.platform, access)
        return IndexReply(
            reference=name,
            layers=[msgspec.structs.replace(_report_layer(one), made=one.made) for one in layers],
        )

    async def find_indexes(self, request: ImageRequest) -> IndexReply:
        """Say where there are indexes of an image's layers."""
        access = _registry_access(request.access)
        name, layers = await self._publisher.find(request.reference, request.platform, access)
        return IndexReply(
            reference=name,
            layers=[
                msgspec.structs.replace(
                    _report_layer(one), committed=one.committed, pushed=list(one.pushed)
                )
                for one in layers
            ],
        )

    async def push_index(self, request: PushIndexRequest) -> PushIndexReply:
        """Push the indexes that were made of an image's layers."""
        done = await self._publisher.push(
            request.reference, request.platform, _registry_access(request.access), request.tag
        )
        return PushIndexReply(
            reference=done.reference,
            tagged=done.tagged,
            digest=done.digest,
            artifact=done.artifact,
            layers=[str(layer) for layer in done.layers],
        )

    async def unpush_index(self, request: ImageRequest) -> UnpushIndexReply:
        """Remove the indexes that were pushed for an image."""
        artifacts, problems = await self._publisher.remove(
            request.reference, request.platform, _registry_access(request.access)
        )
        return UnpushIndexReply(artifacts=artifacts, problems=problems)

    async def remove_index(self, request: ImageRequest) -> IndexReply:
        """Remove the indexes that were made of an image's layers, or of one layer."""
        access = _registry_access(request.access)
        removed = await self._indexes.remove(request.reference, request.platform, access)
        return IndexReply(reference=request.reference, layers=_report_indexes(removed))

    async def indexes(self) -> IndexReply:
        """List the indexes that were made here."""
        return IndexReply(layers=_report_indexes(await self._indexes.kept()))

    async def cache(self) -> CacheReply:
        """Describe what is in the cache."""
        devices = await self._own_cache().describe()
        return CacheReply(
            devices=[
                CachedReport(device=one.name, size=one.size, present=one.present, used=one.used)
                for one in devices
            ]
        )

    async def check_cache(self, request: CacheCheckRequest) -> CacheCheckReply:
        """Compare what is local of a device with what its image says, and repair it."""
        verdict = await self._own_cache().check(request.device, repair=request.repair)
        return CacheCheckReply(
            device=request.device,
            checked=verdict.checked,
            unchecked=verdict.unchecked,
            wrong=verdict.wrong,
            repaired=verdict.repaired,
            problem=verdict.problem,
        )

    def _own_cache(self) -> CachedDevices:
        if self._cached is None:
            name = self._transport.name
            raise UsageError("cache", f"with {name} it is the kernel's, which is not checked here")
        return self._cached

    async def status(self) -> StatusReply:
        """Describe the daemon and its mounts."""
        mounts = await self._report_mounts()
        counters, kernel = self._engine.counters, self._transport.counters
        return StatusReply(
            version=__version__,
            pid=os.getpid(),
            supervisor=self._manager.supervisor,
            restarts=self._manager.restarts,
            transport=self._transport.name,
            root=self._config.root,
            uptime=time.monotonic() - self._started,
            mounts=mounts,
            reads=kernel.reads,
            reads_failed=kernel.reads_failed,
            failure=kernel.failure,
            fetched=counters.fetched,
            fetches=counters.fetches,
            registries=[
                RegistryReport(
                    host=host,
                    requests=traffic.requests,
                    failures=traffic.failures,
                    received=traffic.received,
                    rests=self._client.cools(host),
                )
                for host, traffic in sorted(self._client.traffic().items())
            ],
            streams=[
                StreamReport(
                    layer=str(one.wanted.layer.digest),
                    image=one.wanted.what,
                    size=one.wanted.layer.size,
                    done=one.done,
                )
                for one in self._streams.running()
            ],
            snapshotter=await self._report_snapshotter(),
        )

    async def _report_snapshotter(self) -> SnapshotterReport | None:
        if self._snapshotter is None:
            return None
        return SnapshotterReport(
            images=[
                HeldReport(
                    name=held.name,
                    digest=held.digest,
                    lazy=held.lazy,
                    unpacked=held.unpacked,
                    containers=held.containers,
                    reason=held.why.reason if held.why else "",
                    problem=held.why.problem if held.why else "",
                )
                for held in await self._snapshotter.images()
            ],
            lazy=self._snapshotter.lazy,
            unpacked=dict(self._snapshotter.unpacked),
            quarantined=[
                QuarantineReport(
                    reference=one.layer.reference, chain=one.layer.chain, problem=one.problem
                )
                for one in await self._snapshotter.quarantined()
            ],
            completion=await self._report_completion(),
        )

    async def _report_completion(self) -> CompletionReport | None:
        completion = self._completion
        if completion is None:
            return None
        counters = completion.completer.counters
        waiting = await completion.waiting()
        return CompletionReport(
            current=completion.current.reference if completion.current else "",
            waiting=waiting,
            layers=counters.layers,
            lies=counters.lies,
            fetched=counters.fetched,
            tight=completion.completer.tight,
            failures=dict(completion.failures),
        )

    async def _open(self, request: ImageRequest) -> Image:
        access = _registry_access(request.access)
        stream = self._config.mount.unindexed == "stream"
        image = await self._images.open(request.reference, request.platform, access, stream=stream)
        if image.streamed and self._sharing is not None:
            self._sharing.begin(image, access)
        return image

    async def _report_mounts(self) -> list[MountReport]:
        await self._mounts.reconcile()
        dead = await self._mounts.dead()
        every = [(mounted, "") for mounted in self._mounts.list()]
        every += [(lost.mounted, lost.problem) for lost in self._mounts.lost()]
        return [
            msgspec.structs.replace(
                await self._report(mounted),
                problem=problem,
                dead=mounted.image.chain.fsid in dead,
            )
            for mounted, problem in every
        ]

    async def _report(self, mounted: Mounted) -> MountReport:
        image = mounted.image
        layers = await asyncio.to_thread(self._layers, image.chain)
        devices = {layer.device: layer for layer in layers}.values()  # a layer may be there twice
        return MountReport(
            reference=image.reference,
            digest=image.digest,
            fsid=image.chain.fsid,
            directory=mounted.directory,
            read_write=mounted.scratch is not None,
            size=sum(layer.device_size for layer in devices),
            present=sum(layer.present for layer in devices),
        )

    async def _inspect(
        self,
        reference: str,
        digest: str,
        platform: str,
        chain: ChainRecord,
        places: Sequence[str] = (),
    ) -> InspectReply:
        if not places:  # the registry was not asked
            own = {one.digest.partition(":")[2] for one in await self._indexes.kept()}
            places = [_place_of(layer, own) for layer in chain.layers]
        layers = await asyncio.to_thread(self._layers, chain)
        return InspectReply(
            reference=reference,
            digest=digest,
            platform=platform,
            fsid=chain.fsid,
            bootstrap_size=chain.size,
            layers=[
                msgspec.structs.replace(layer, index=place)
                for layer, place in zip(layers, places, strict=True)
            ],
        )

    def _layers(self, chain: ChainRecord) -> list[LayerReport]:
        return [
            LayerReport(
                digest=layer.blob,
                media_type=layer.media_type,
                format=layer.format,
                size=layer.blob_size,
                device=layer.device,
                device_size=layer.device_size,
                present=self._present(layer.device),
            )
            for layer in chain.layers
        ]

    def _present(self, device: str) -> int:
        """Give the bytes of a device that are local; 0 when that cannot be learned."""
        try:
            ranges = self._transport.present(device)
            if ranges is None:
                ranges = self._transport.present_on_disk(device)
        except (LazyimgError, OSError) as error:
            _log.warning("what is present of %s is not known: %s", device, error)
            return 0
        return sum(map(len, ranges or []))


async def _events(
    work: Callable[[Callable[[_Event], None]], Coroutine[None, None, None]],
    is_last: Callable[[_Event], bool],
) -> AsyncGenerator[_Event]:
    """Do work, and give the events that it reports, up to the last one; ends it when closed."""
    events: asyncio.Queue[_Event] = asyncio.Queue()
    task = asyncio.create_task(work(events.put_nowait))
    try:
        while True:
            event = await events.get()
            yield event
            if is_last(event):
                break
        await task
    finally:
        task.cancel()
        await asyncio.wait([task])


def _ends_prefetch(event: PrefetchEvent) -> bool:
    return event.done or event.error is not None


def _ends_validation(event: ValidateEvent) -> bool:
    return event.reply is not None or event.error is not None


def _place_of(layer: LayerRecord, own: set[str]) -> str:
    """Say where the index is that a layer was made ready with, as far as this node knows."""
    if layer.format in PLAIN:
        return "node" if layer.table in own else ""
    return "layer"


def _report_layer(one: IndexedLayer | LayerIndexes) -> IndexReport:
    """Say which layer it is, and which index of it this node has."""
    return IndexReport(
        layer=str(one.layer.digest),
        size=one.layer.size,
        format=one.format,
        index=one.own.digest if one.own else "",
        index_size=one.own.size if one.own else 0,
    )


def _report_indexes(indexes: list[OwnIndex]) -> list[IndexReport]:
    return [
        IndexReport(layer=one.blob, size=one.blob_size, index=one.digest, index_size=one.size)
        for one in indexes
    ]


def _check_directory(directory: str) -> None:
    plain = os.path.normpath(directory) == directory and "\0" not in directory
    if not plain or not directory.startswith("/") or directory.startswith("//"):
        raise UsageError(
            directory,
            "a directory to mount on is given by its absolute path, without links and dots",
            "give what `realpath` says of it",
        )


def _registry_access(access: messages.Access) -> Access:
    return Access(
        authfile=Path(access.authfile) if access.authfile else None,
        username=access.username,
        password=access.password,
        plain_http=access.plain_http,
        insecure=access.insecure,
        ca_file=Path(access.ca_file) if access.ca_file else None,
        hosts_dir=Path(access.hosts_dir) if access.hosts_dir else None,
    )
