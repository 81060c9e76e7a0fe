"""What the daemon does for its callers, with all its parts but the kernel."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec
import pytest

from lazyimg import __version__
from lazyimg.api.messages import (
    Access,
    CacheCheckRequest,
    CachedReport,
    CompletionReport,
    HeldReport,
    ImageRequest,
    InspectRequest,
    MountRequest,
    PrefetchRequest,
    PushIndexRequest,
    QuarantineReport,
    SnapshotterReport,
    UnmountRequest,
    ValidateEvent,
)
from lazyimg.cache.device_cache import DeviceCache
from lazyimg.config import Config, ImageServiceSettings, MountSettings, SnapshotterSettings
from lazyimg.daemon import LazyimgDaemon
from lazyimg.errors import (
    AccessDeniedError,
    BadReferenceError,
    InUseError,
    KernelError,
    LazyimgError,
    NotFoundError,
    NotLazyError,
    UsageError,
)
from lazyimg.host.service_manager import ServiceManager
from lazyimg.host.space import CacheLimits
from lazyimg.images import streaming
from lazyimg.images.cached import CachedDevices
from lazyimg.images.completion import Counters, Lie
from lazyimg.images.mounted import Mounted
from lazyimg.registry.ports import Access as RegistryAccess
from lazyimg.registry.resolve import local_platform
from lazyimg.snapshotter.completion import Completion
from lazyimg.snapshotter.lifecycle import REF, AlreadyExistsError
from lazyimg.snapshotter.service import Snapshotter
from lazyimg_formats.device_table import BLOCK_SIZE
from lazyimg_formats.oci.digest import Digest
from tests.fakes.devices import MemorySink
from tests.fakes.gzip_layer import make_layer, make_tar
from tests.fakes.lazy_image import LazyLayer, add_lazy_image, make_lazy_layer
from tests.fakes.lazy_images import FakeLazyImages
from tests.fakes.node import Node, run_node

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from pathlib import Path

    from lazyimg.api.messages import PrefetchEvent
    from lazyimg.images.image import Image
    from lazyimg.images.streaming import Stream

NOISE = os.urandom(100_000)


@pytest.fixture(scope="module")
def layers() -> list[LazyLayer]:
    files: list[dict[str, bytes]] = [
        {"etc/name": b"lazyimg\n", "bin/tool": NOISE},
        {"etc/.wh.name": b""},
    ]
    return [asyncio.run(make_lazy_layer(each)) for each in files]


@pytest.fixture
async def node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: list[LazyLayer]
) -> AsyncIterator[Node]:
    async with run_node(tmp_path, monkeypatch) as node:
        add_lazy_image(node.registry, "app", "1", layers)
        yield node


@pytest.fixture
def daemon(node: Node) -> LazyimgDaemon:
    return make_daemon(node)


def make_daemon(
    node: Node,
    snapshotter: Snapshotter | None = None,
    completion: Completion | None = None,
    cached: CachedDevices | None = None,
) -> LazyimgDaemon:
    return LazyimgDaemon(
        config=Config(
            root=str(node.root),
            snapshotter=SnapshotterSettings(address="/srv/sockets/snapshotter.sock"),
            image_service=ImageServiceSettings(address="/srv/others/images.sock"),
        ),
        images=node.images,
        indexes=node.indexes,
        publisher=node.publisher,
        validator=node.validator,
        mounts=node.mounts,
        prefetcher=node.prefetcher,
        engine=node.engine,
        transport=node.transport,
        manager=ServiceManager({"LAZYIMG_SUPERVISOR_PID": "41", "LAZYIMG_WORKER_RESTARTS": "3"}),
        client=node.client,
        streams=node.streams,
        snapshotter=snapshotter,
        completion=completion,
        cached=cached,
    )


async def collect(
    daemon: LazyimgDaemon, *references: str, paths: tuple[str, ...] = ()
) -> list[PrefetchEvent]:
    request = PrefetchRequest(references=list(references), paths=list(paths))
    async with aclosing(daemon.prefetch(request)) as events:
        return [event async for event in events]


async def validate(daemon: LazyimgDaemon, reference: str) -> list[ValidateEvent]:
    async with aclosing(daemon.validate(ImageRequest(reference=reference))) as events:
        return [event async for event in events]


async def test_validation(node: Node, daemon: LazyimgDaemon, layers: list[LazyLayer]) -> None:
    *events, last = await validate(daemon, node.reference)
    total = sum(len(layer.blob) for layer in layers)
    assert [(event.read, event.total) for event in (events[0], events[-1])] == [
        (0, total),
        (total, total),
    ]
    assert last.reply is not None
    assert last.reply.reference == node.reference
    assert [layer.problem for layer in last.reply.layers] == ["", ""]


async def test_validation_that_fails(
    node: Node,
    daemon: LazyimgDaemon,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (event,) = await validate(daemon, f"{node.registry.host}/app:2")
    assert event.error is not None
    assert event.error.kind == "not-found"
    monkeypatch.setattr(node.validator, "validate", None)
    (event,) = await validate(daemon, node.reference)
    assert event.error is not None
    assert event.error.problem == "an error of its own; its log has the details"
    assert f"validation of {node.reference} failed" in caplog.text


async def test_mount_on_what_the_daemon_needs(node: Node, daemon: LazyimgDaemon) -> None:
    places = ("/srv/sockets", "/srv/others", str(node.root), str(node.root / "mnt"))
    for directory in ("/", "/etc", *places):
        with pytest.raises(UsageError, match=r"which the daemon needs itself"):
            await daemon.mount(MountRequest(reference=node.reference, directory=directory))
    assert node.host.points == []


async def test_mount_and_unmount(node: Node, daemon: LazyimgDaemon) -> None:
    reply = await daemon.mount(MountRequest(reference=node.reference, directory="/one"))
    image = await node.images.open(node.reference, "", RegistryAccess())
    assert (reply.reference, reply.digest) == (node.reference, image.digest)
    assert (reply.fsid, reply.directory) == (image.chain.fsid, "/one")
    assert node.host.points[1:] == ["/one"]
    gone = await daemon.unmount(UnmountRequest(directory="/one"))
    assert (gone.reference, gone.directory) == (node.reference, "/one")
    assert node.host.points == []


async def test_mount_read_write_is_reported_as_such(
    node: Node, daemon: LazyimgDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "chown", lambda *_: None)  # the image's root is root's
    request = MountRequest(reference=node.reference, directory="/one", read_write=True)
    await daemon.mount(request)
    (report,) = (await daemon.status()).mounts
    assert (report.directory, report.read_write) == ("/one", True)


async def test_lazy_unmount(node: Node, daemon: LazyimgDaemon) -> None:
    await daemon.mount(MountRequest(reference=node.reference, directory="/one"))
    node.host.busy.add("/one")
    with pytest.raises(InUseError):
        await daemon.unmount(UnmountRequest(directory="/one"))
    await daemon.unmount(UnmountRequest(directory="/one", lazy=True))
    assert (await daemon.status()).mounts == []


@pytest.mark.parametrize("directory", ["", "relative", "/a/../b", "/a/", "//a", "/./a", "/a\0b"])
async def test_directory_that_is_not_absolute_and_plain(
    node: Node, daemon: LazyimgDaemon, directory: str
) -> None:
    with pytest.raises(UsageError, match="without links and dots; give what `realpath` says"):
        await daemon.mount(MountRequest(reference=node.reference, directory=directory))
    assert node.registry.asked == []


async def test_bad_reference(daemon: LazyimgDaemon) -> None:
    with pytest.raises(BadReferenceError):
        await daemon.mount(MountRequest(reference="reg/UPPER", directory="/one"))


async def test_fsid_gives_the_line_for_mount(node: Node, daemon: LazyimgDaemon) -> None:
    reply = await daemon.fsid(ImageRequest(reference=node.reference))
    assert reply.domain_id == "lazyimg"
    assert reply.command == f"mount -t erofs none -o fsid={reply.fsid},domain_id=lazyimg DIR"
    assert node.catalog.size(reply.fsid) == (node.root / "bootstraps" / reply.fsid).stat().st_size
    assert node.host.calls == []


async def test_access_of_a_request_reaches_the_registry(node: Node, daemon: LazyimgDaemon) -> None:
    node.registry.auth = "basic"
    node.registry.users["user"] = "right"
    with pytest.raises(AccessDeniedError):
        await daemon.fsid(ImageRequest(reference=node.reference))
    access = Access(username="user", password="right")
    assert (await daemon.fsid(ImageRequest(reference=node.reference, access=access))).fsid


async def test_files_of_a_request_reach_the_registry_client(
    node: Node, daemon: LazyimgDaemon, tmp_path: Path
) -> None:
    node.registry.auth = "basic"
    node.registry.users["user"] = "right"
    authfile = tmp_path / "auth.json"
    credentials = {"auths": {node.registry.host: {"auth": "dXNlcjpyaWdodA=="}}}
    authfile.write_text(json.dumps(credentials))
    access = Access(authfile=str(authfile), ca_file="/none", plain_http=True, insecure=True)
    assert (await daemon.fsid(ImageRequest(reference=node.reference, access=access))).fsid
    (record, *_) = node.library.sources(next(iter(node.library.devices())))
    assert b"auth.json" in record.access


async def test_prefetch_of_several_images(node: Node, daemon: LazyimgDaemon) -> None:
    missing = f"{node.registry.host}/missing:1"
    events = await collect(daemon, node.reference, missing, node.reference)
    ends = [event for event in events if event.done or event.error]
    assert [event.reference for event in ends] == [node.reference, missing, node.reference]
    assert ends[0].done
    assert ends[0].present == ends[0].total > len(NOISE)
    assert ends[0].fetched > len(NOISE)
    assert ends[1].error is not None
    assert ends[1].error.kind == "not-found"
    assert (ends[2].done, ends[2].fetched) == (True, 0)
    assert events[0] == type(events[0])(reference=node.reference, total=ends[0].total)
    assert node.host.table == []


async def test_prefetch_of_some_files(node: Node, daemon: LazyimgDaemon) -> None:
    (*_, end) = await collect(daemon, node.reference, paths=("/bin/*",))
    assert end.present == end.total == -(-len(NOISE) // BLOCK_SIZE) * BLOCK_SIZE


async def test_prefetch_of_nothing(daemon: LazyimgDaemon) -> None:
    assert await collect(daemon) == []


async def test_prefetch_nobody_listens_to_ends(node: Node, daemon: LazyimgDaemon) -> None:
    image = PrefetchRequest(references=[node.reference])
    await daemon.fsid(ImageRequest(reference=node.reference))
    node.registry.fail("hang", times=100)
    async with aclosing(daemon.prefetch(image)) as events:
        assert (await anext(events)).present == 0
        assert node.host.points != []
    assert node.host.points == []
    assert not [task for task in asyncio.all_tasks() if "._prefetch" in repr(task.get_coro())]


async def test_own_error_concerns_one_image_and_is_logged(
    node: Node,
    daemon: LazyimgDaemon,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures: list[Exception] = [KeyError("secret")]
    prefetch = node.prefetcher.prefetch

    async def broken(*args: object) -> object:
        if failures:
            raise failures.pop()
        return await prefetch(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(node.prefetcher, "prefetch", broken)
    first, *_, last = await collect(daemon, node.reference, node.reference)
    assert first.error is not None
    assert first.error.problem == "an error of its own; its log has the details"
    assert "KeyError: 'secret'" in caplog.text
    assert last.done


async def test_inspect_before_the_image_is_ready(
    node: Node, daemon: LazyimgDaemon, layers: list[LazyLayer]
) -> None:
    reply = await daemon.inspect(InspectRequest(reference=node.reference))
    assert (reply.fsid, reply.bootstrap_size) == ("", 0)
    assert reply.platform == str(local_platform())
    assert [(one.digest, one.format, one.size) for one in reply.layers] == [
        (str(layer.descriptor.digest), "zstd:chunked", len(layer.blob)) for layer in layers
    ]
    assert [(one.device, one.device_size, one.present) for one in reply.layers] == [("", 0, 0)] * 2


async def test_inspect_of_what_is_not_lazy(node: Node, daemon: LazyimgDaemon) -> None:
    node.registry.add_image("app", "1", make_layer(), local_platform().architecture)
    reply = await daemon.inspect(InspectRequest(reference=node.reference))
    assert [one.format for one in reply.layers] == ["tar"]


async def test_inspect_says_where_indexes_are(
    node: Node, daemon: LazyimgDaemon, layers: list[LazyLayer]
) -> None:
    tar = make_tar({"name": b"text"})
    node.registry.add_image("app", "1", {gzip.compress(tar): tar})
    request = InspectRequest(reference=node.reference)
    assert [layer.index for layer in (await daemon.inspect(request)).layers] == [""]
    await daemon.create_index(ImageRequest(reference=node.reference))
    assert [layer.index for layer in (await daemon.inspect(request)).layers] == ["node"]
    await daemon.mount(MountRequest(reference=node.reference, directory="/one"))
    mounted = InspectRequest(directory="/one")
    for each in (request, mounted):
        assert [layer.index for layer in (await daemon.inspect(each)).layers] == ["node"]
    node.library.remove_own_index(node.library.own_indexes()[0])
    assert [layer.index for layer in (await daemon.inspect(mounted)).layers] == [""]
    add_lazy_image(node.registry, "app", "1", layers)
    assert [layer.index for layer in (await daemon.inspect(request)).layers] == ["layer"] * 2
    await daemon.mount(MountRequest(reference=node.reference, directory="/two"))
    mounted = InspectRequest(directory="/two")
    assert [layer.index for layer in (await daemon.inspect(mounted)).layers] == ["layer"] * 2


async def test_inspect_by_reference_and_by_directory(node: Node, daemon: LazyimgDaemon) -> None:
    await daemon.mount(MountRequest(reference=node.reference, directory="/one"))
    by_reference = await daemon.inspect(InspectRequest(reference=node.reference))
    by_directory = await daemon.inspect(InspectRequest(directory="/one"))
    assert by_reference == by_directory
    assert by_directory.fsid
    assert by_directory.bootstrap_size == node.catalog.size(by_directory.fsid)
    assert [one.device_size for one in by_directory.layers] == [26 * BLOCK_SIZE, 0]
    with pytest.raises(NotFoundError):
        await daemon.inspect(InspectRequest(directory="/two"))


async def test_what_is_local_while_it_is_open_and_after(node: Node, daemon: LazyimgDaemon) -> None:
    await daemon.mount(MountRequest(reference=node.reference, directory="/one"))
    assert [mount.present for mount in (await daemon.status()).mounts] == [0]
    await collect(daemon, node.reference, paths=("/bin/tool",))
    (report,) = (await daemon.status()).mounts
    assert (report.present, report.size) == (25 * BLOCK_SIZE, 26 * BLOCK_SIZE)
    await daemon.unmount(UnmountRequest(directory="/one"))
    reply = await daemon.inspect(InspectRequest(reference=node.reference))
    assert [one.present for one in reply.layers] == [25 * BLOCK_SIZE, 0]


async def test_layer_that_is_there_twice_counts_once(
    node: Node, daemon: LazyimgDaemon, layers: list[LazyLayer]
) -> None:
    add_lazy_image(node.registry, "app", "1", [layers[0], layers[0]])
    await daemon.mount(MountRequest(reference=node.reference, directory="/one"))
    (report,) = (await daemon.status()).mounts
    assert report.size == 26 * BLOCK_SIZE


@pytest.mark.parametrize(
    "failure",
    [KernelError("device", "the kernel has closed this object"), PermissionError(13, "denied")],
)
async def test_status_when_what_is_local_cannot_be_learned(
    node: Node, daemon: LazyimgDaemon, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    reply = await daemon.mount(MountRequest(reference=node.reference, directory="/one"))
    image = node.mounts.find("/one").image
    device = image.chain.layers[0].device
    node.transport.sinks[device] = MemorySink(blocks={0, 1})
    node.transport.failures[device] = failure
    (report,) = (await daemon.status()).mounts
    assert (report.fsid, report.present) == (reply.fsid, 0)
    assert f"what is present of {device} is not known" in caplog.text
    (report,) = (await daemon.status()).mounts
    assert report.present == 2 * BLOCK_SIZE


async def test_status_of_lost_and_dead_mounts(node: Node, daemon: LazyimgDaemon) -> None:
    await daemon.mount(MountRequest(reference=node.reference, directory="/gone"))
    await daemon.mount(MountRequest(reference=node.reference, directory="/one"))
    image = node.mounts.find("/one").image
    node.host.table.pop(1)
    node.host.detached.append(("lazyimg-2", image.chain.fsid))
    lost = Mounted(image, "/two", None)
    node.mounts._lost.add(lost, LazyimgError("/two", "is gone"))
    reports = (await daemon.status()).mounts
    assert [(one.directory, one.problem, one.dead) for one in reports] == [
        ("/one", "", True),
        ("/two", "/two: is gone", True),
    ]
    await node.mounts.close()


async def test_status_counts(node: Node, daemon: LazyimgDaemon) -> None:
    node.transport.counters.reads = 10
    node.transport.counters.reads_failed = 1
    node.transport.counters.failure = "device: why"
    node.engine.counters.reads = 99
    await collect(daemon, node.reference)
    status = await daemon.status()
    assert (status.reads, status.reads_failed, status.failure) == (10, 1, "device: why")
    assert (status.fetched, status.fetches) == (
        node.engine.counters.fetched,
        node.engine.counters.fetches,
    )
    assert status.fetched > len(NOISE)
    assert (status.version, status.pid, status.root) == (__version__, os.getpid(), str(node.root))
    assert (status.supervisor, status.restarts) == (41, 3)
    assert status.transport == "cachefiles"
    assert status.uptime > 0
    (registry,) = status.registries
    assert registry.host == node.registry.host
    assert registry.received > len(NOISE)
    assert registry.requests > 3
    assert (registry.failures, registry.rests) == (0, 0.0)
    assert status.snapshotter is None


class Idle:
    """A completer that does nothing."""

    counters = Counters(layers=3, lies=1, fetched=4096)
    tight = False

    async def complete(self, _reference: str, _platform: str, _depth: int) -> Lie | None:
        return None


async def test_status_of_completion(node: Node, tmp_path: Path) -> None:
    snapshotter = Snapshotter(tmp_path / "snapshotter", FakeLazyImages("chain"))
    with pytest.raises(AlreadyExistsError):
        await snapshotter.prepare("extract", "", {REF: "chain"})
    await snapshotter.prepare("container", "chain extract", {})
    (pending,) = snapshotter.records.pending()
    completion = Completion(snapshotter.records, Idle())
    completion.current = pending
    completion.failures["image"] = "is away"
    daemon = make_daemon(node, snapshotter, completion)
    status = (await daemon.status()).snapshotter
    assert status is not None
    expected = CompletionReport(
        current="image",
        waiting=1,
        layers=3,
        lies=1,
        fetched=4096,
        tight=False,
        failures={"image": "is away"},
    )
    assert (status.completion, status.quarantined) == (expected, [])
    snapshotter.records.quarantine(pending, 1, "is another")
    completion.current = None
    status = (await daemon.status()).snapshotter
    assert status is not None
    assert status.completion is not None
    assert status.completion.current == ""
    assert status.quarantined == [
        QuarantineReport(reference="image", chain="chain", problem="is another")
    ]
    await snapshotter.close()


async def test_status_of_the_snapshotter(node: Node, tmp_path: Path) -> None:
    snapshotter = Snapshotter(tmp_path / "snapshotter", FakeLazyImages())
    with pytest.raises(NotFoundError):
        await snapshotter.prepare("extract", "none", {REF: "chain"})
    await snapshotter.prepare("extract", "", {REF: "chain"})
    await snapshotter.commit("chain", "extract", "", {})
    await snapshotter.prepare("container", "chain", {})
    status = await make_daemon(node, snapshotter).status()
    assert status.snapshotter == SnapshotterReport(
        images=[
            HeldReport(
                name="image",
                digest="",
                lazy=0,
                unpacked=1,
                containers=1,
                reason="format",
                problem="cannot be loaded lazily",
            )
        ],
        lazy=0,
        unpacked={"format": 1},
    )
    await snapshotter.close()


async def test_cache_of_the_kernel_is_not_checked(daemon: LazyimgDaemon) -> None:
    for call in (daemon.cache(), daemon.check_cache(CacheCheckRequest(device="d"))):
        with pytest.raises(UsageError) as raised:
            await call
        assert str(raised.value) == (
            "cache: with cachefiles it is the kernel's, which is not checked here"
        )


async def test_own_cache_is_checked(node: Node, tmp_path: Path) -> None:
    (tmp_path / "devices").mkdir()
    cache = DeviceCache(tmp_path / "devices", CacheLimits(bstop=0, fstop=0))
    daemon = make_daemon(node, cached=CachedDevices(cache, node.catalog, node.library))
    reply = await daemon.fsid(ImageRequest(reference=node.reference))
    (device, *_) = node.library.devices()
    size = node.library.devices()[device]
    assert reply.fsid
    cache.open(device, size).write_now(0, [memoryview(b"x" * size)])
    assert (await daemon.cache()).devices == [
        CachedReport(device=device, size=size, present=size, used=True)
    ]
    found = await daemon.check_cache(CacheCheckRequest(device=device))
    assert (found.device, found.wrong, found.repaired) == (device, size, 0)
    await cache.close()


async def test_indexes_are_made_listed_and_removed(
    node: Node, daemon: LazyimgDaemon, layers: list[LazyLayer]
) -> None:
    layer = make_layer()
    ((blob, _),) = layer.items()
    node.registry.add_image("app", "1", layer)
    request = ImageRequest(reference=node.reference)
    made = await daemon.create_index(request)
    assert made.reference == node.reference
    (report,) = made.layers
    assert (report.layer, report.size, report.format) == (str(Digest.of(blob)), len(blob), "tar")
    assert report.made
    assert report.index_size > 0
    expected = [msgspec.structs.replace(report, made=False, format="")]
    assert (await daemon.indexes()).layers == expected
    push = PushIndexRequest(reference=node.reference, tag="2")
    pushed = await daemon.push_index(push)
    assert pushed.tagged == f"{node.registry.host}/app:2"
    assert pushed.layers == [report.layer]
    embedded = ImageRequest(reference=pushed.tagged)
    (found,) = (await daemon.find_indexes(embedded)).layers
    assert found == msgspec.structs.replace(
        report, made=False, committed=report.index, pushed=[pushed.artifact]
    )
    assert (await daemon.unpush_index(embedded)).artifacts == [pushed.artifact]
    assert (await daemon.remove_index(request)).layers == expected
    assert (await daemon.indexes()).layers == []
    add_lazy_image(node.registry, "app", "1", layers)
    own = (await daemon.create_index(request)).layers
    assert [(one.format, one.index, one.index_size) for one in own] == [
        ("zstd:chunked", "", 0)
    ] * len(layers)


async def test_image_without_an_index(
    node: Node, daemon: LazyimgDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = make_tar()
    blob = gzip.compress(tar, mtime=0)
    node.registry.add_image("app", "1", {blob: tar})
    request = MountRequest(reference=node.reference, directory="/one")
    with monkeypatch.context() as patch:
        patch.setattr(daemon, "_config", Config(mount=MountSettings(unindexed="refuse")))
        with pytest.raises(NotLazyError):
            await daemon.mount(request)
    gate, begun = asyncio.Event(), asyncio.Event()
    count = streaming._count

    async def hold(pieces: AsyncIterator[bytes], stream: Stream) -> AsyncGenerator[bytes]:
        async for piece in count(pieces, stream):
            begun.set()
            await gate.wait()
            yield piece

    monkeypatch.setattr(streaming, "_count", hold)
    mounting = asyncio.create_task(daemon.mount(request))
    await asyncio.wait_for(begun.wait(), 60)
    (report,) = (await daemon.status()).streams
    assert (report.size, report.done) == (len(blob), len(blob))
    assert report.image == f"{node.reference}: layer 1 of 1"
    gate.set()
    assert (await mounting).streamed == len(blob)
    status = await daemon.status()
    assert status.streams == []
    assert status.mounts[0].present == status.mounts[0].size > 0


async def test_index_of_a_first_use_is_shared_if_that_is_wanted(
    node: Node, daemon: LazyimgDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    class Shared:
        def begin(self, image: Image, access: RegistryAccess) -> None:
            begun.append((image.streamed, access))

    monkeypatch.setattr(daemon, "_sharing", Shared())
    await daemon.mount(MountRequest(reference=node.reference, directory="/lazy"))
    assert begun == []
    layer = make_layer()
    node.registry.add_image("app", "2", layer)
    reference = f"{node.registry.host}/app:2"
    for directory in ("/one", "/two"):
        await daemon.mount(MountRequest(reference=reference, directory=directory))
    assert begun == [(len(next(iter(layer))), RegistryAccess())]
