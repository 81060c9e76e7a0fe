"""A whole node but for its kernel.

Real images, catalog, engine and records over a registry in memory; mounts and the transport are
small stand-ins that hold the rules.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lazyimg.errors import KernelError, StorageError
from lazyimg.fill.engine import Engine
from lazyimg.host.own_mounts import OwnMounts
from lazyimg.host.space import CacheLimits, CacheSpace
from lazyimg.images import nydus_making, service
from lazyimg.images.access import parse_access
from lazyimg.images.blob import RemoteBlob
from lazyimg.images.build import BuildReply, BuildRequest, build
from lazyimg.images.cache_mounts import CacheMounts
from lazyimg.images.catalog import Catalog
from lazyimg.images.indexes import Indexes
from lazyimg.images.indexing import IndexMaker, IndexReply, IndexRequest, index
from lazyimg.images.library import Library
from lazyimg.images.mounts import Mounts
from lazyimg.images.prefetching import Prefetcher
from lazyimg.images.publishing import Publisher
from lazyimg.images.service import Images
from lazyimg.images.shown import ShownAccess
from lazyimg.images.streaming import Streams
from lazyimg.images.validation import Validator
from lazyimg.limits import BuildLimits, FillLimits
from lazyimg.registry.client import RegistryClient
from lazyimg.registry.resolve import open_source, parse_location
from lazyimg.registry.retry import RetryPolicy
from lazyimg.transports.cachefiles.staging import StagedDevices
from lazyimg.transports.counters import Counters
from lazyimg_formats.device_table import BLOCK_SIZE
from tests.fakes.devices import MemorySink
from tests.fakes.host_mounts import FakeMounts
from tests.fakes.registry import FakeRegistry, run_registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    import pytest

    from lazyimg.images.library import SourceRecord
    from lazyimg.registry.ports import Access, ImageSource
    from lazyimg_formats.oci.digest import Digest
    from lazyimg_formats.oci.reference import Location

DIRECTORIES = ("content", "bootstraps", "tables", "mnt", "scratch")


class MemoryTransport:
    """Stands for the cachefiles transport: an object is open while an image is mounted.

    Attributes:
        sinks: of the objects that were opened.
        closed: whether no object is open now, and what is present is on disk only.
        failures: raised when what is present of an object is asked for.
        staged: devices that were made here whole.
        tight: answers whether the cache has little room, one after the other.
        counters: as the transport's.
    """

    def __init__(self, host: FakeMounts, root: Path) -> None:
        self.name = "cachefiles"
        self._host = host
        self.sinks: dict[str, MemorySink] = {}
        self.failures: dict[str, Exception] = {}
        self.tight: list[bool | OSError] = []
        self.staged = StagedDevices(CacheSpace(root, CacheLimits(bstop=0, fstop=0), root))
        self.counters = Counters()
        self.control_fd = -1

    async def stop(self) -> None:
        """Do nothing."""

    def linked(self, cookies: Iterable[str]) -> set[str]:
        return set(cookies)

    def use_domain(self, domain_id: str) -> None:
        pass

    def strays(self, _: Iterable[str]) -> set[str]:
        return set()

    def move_strays(self, cookies: Iterable[str]) -> None:
        assert set(cookies) == set()

    async def bring_staged(self, cookies: Iterable[str]) -> None:
        for cookie in cookies:
            if self.staged.has(cookie):
                sink = await self.opened(cookie)
                await self.staged.copy(cookie, sink, self._present(cookie) or [])

    def is_tight(self) -> bool:
        answer = self.tight.pop(0) if self.tight else False
        if isinstance(answer, OSError):
            raise answer
        return answer

    def shortage(self) -> StorageError | None:
        return None

    @property
    def closed(self) -> bool:
        return not self._host.table

    async def opened(self, cookie: str) -> MemorySink:
        if self.closed:
            raise KernelError(cookie, "was not opened by the kernel")
        return self.sinks.setdefault(cookie, MemorySink())

    def present(self, cookie: str) -> list[range] | None:
        if cookie in self.failures:
            raise self.failures.pop(cookie)
        return None if self.closed else self._present(cookie)

    def present_on_disk(self, cookie: str) -> list[range] | None:
        if cookie in self.failures:
            raise self.failures.pop(cookie)
        return self._present(cookie)

    def _present(self, cookie: str) -> list[range] | None:
        if cookie not in self.sinks:
            return None
        blocks = sorted(self.sinks[cookie].blocks)
        return [range(block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE) for block in blocks]


@dataclass
class Node:
    """The parts; `builds` are the builds that were asked for."""

    root: Path
    registry: FakeRegistry
    client: RegistryClient
    host: FakeMounts
    builds: list[BuildRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in DIRECTORIES:
            (self.root / name).mkdir(exist_ok=True)
        self.library = Library(self.root / "library.sqlite")
        limits = FillLimits(min_fetch=0, merge_gap=0, prefetch_piece=1 << 16)
        self.engine = Engine(limits=limits)
        self.shown = ShownAccess()
        self.catalog = Catalog(self.root, self.library, self.engine, self.open_blob, self.shown)
        self.catalog.load()
        self.transport = MemoryTransport(self.host, self.root)
        self.catalog.use(self.transport)
        staged = self.transport.staged
        self.streams = Streams(self.root, self.library, BuildLimits(), staged)
        self.images = Images(
            self.root, self.library, self.catalog, self.open_source, streams=self.streams
        )
        self.publisher = Publisher(self.root, self.library, self.images)
        self.indexes = Indexes(self.root, self.library, self.images, BuildLimits())
        self.validator = Validator(self.root, self.library, self.open_source, BuildLimits())
        way = CacheMounts(self.root, "lazyimg", 1 << 20, self.transport)
        own = OwnMounts(self.root, "lazyimg")
        self.mounts = Mounts(own, way, self.library, readers=self.catalog.readers)
        self.prefetcher = Prefetcher(
            self.root,
            self.mounts,
            self.catalog,
            self.engine,
            self.transport,
        )

    @property
    def reference(self) -> str:
        """The image ``app:1`` of the registry."""
        return f"{self.registry.host}/app:1"

    async def open_source(
        self, location: Location, access: Access
    ) -> tuple[ImageSource, Digest | str]:
        return await open_source(location, self.client, access)

    async def open_blob(self, record: SourceRecord, access: Access | None) -> RemoteBlob:
        location = parse_location(record.repository)
        source, _ = await self.open_source(location, access or parse_access(record.access))
        return RemoteBlob(source, record)

    async def close(self) -> None:
        await self.engine.close()
        self.library.close()
        self.shown.close()


@asynccontextmanager
async def run_node(root: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    """Run a registry and a node whose builds run in a thread."""
    host = FakeMounts().install(monkeypatch)
    async with (
        run_registry() as registry,
        RegistryClient(environ={}, policy=RetryPolicy(attempts=1)) as client,
    ):
        node = Node(root, registry, client, host)

        async def build_here(_: str, request: BuildRequest) -> BuildReply:
            node.builds.append(request)
            return await asyncio.to_thread(build, request)

        async def index_here(
            _: IndexMaker, __: str, request: IndexRequest, pieces: AsyncIterator[bytes]
        ) -> IndexReply:
            blob = [piece async for piece in pieces]
            return await asyncio.to_thread(index, request, iter(blob))

        monkeypatch.setattr(service, "build_image", build_here)
        monkeypatch.setattr(nydus_making, "build_image", build_here)
        monkeypatch.setattr(IndexMaker, "make", index_here)
        try:
            yield node
        finally:
            await node.close()
