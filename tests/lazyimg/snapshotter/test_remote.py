"""Layers that were not downloaded: images in a registry, built for real, mounted by a fake."""

from __future__ import annotations

import asyncio
import gzip
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from lazyimg.errors import NotFoundError, RegistryError
from lazyimg.fill.engine import Engine
from lazyimg.host.own_mounts import OwnMounts
from lazyimg.host.space import CacheLimits, CacheSpace
from lazyimg.images import service
from lazyimg.images.access import parse_access
from lazyimg.images.build import BuildReply, BuildRequest, build
from lazyimg.images.cache_mounts import CacheMounts
from lazyimg.images.catalog import Catalog
from lazyimg.images.library import LayerClaim, Library
from lazyimg.images.mounts import Mounts
from lazyimg.images.service import Images
from lazyimg.images.shown import ShownAccess
from lazyimg.images.streaming import Streams
from lazyimg.limits import BuildLimits, FillLimits
from lazyimg.registry.auth import Credential
from lazyimg.registry.client import RegistryClient
from lazyimg.registry.ports import Access
from lazyimg.registry.resolve import local_platform, open_source
from lazyimg.registry.retry import RetryPolicy
from lazyimg.snapshotter.lifecycle import RemoteLayer, Unpacked
from lazyimg.snapshotter.remote import KEPT, RemoteLayers
from lazyimg.transports.cachefiles.staging import StagedDevices
from lazyimg_formats.containerd.labels import REFERENCE, serialize_image_labels
from lazyimg_formats.oci.chain import chain_ids
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import Manifest, parse_document
from lazyimg_formats.soci.manifest import INDEX_DIGEST
from tests.fakes import stored_index
from tests.fakes.devices import MemoryBlob
from tests.fakes.gzip_layer import make_tar
from tests.fakes.host_mounts import FakeMounts
from tests.fakes.image_mounts import Cache
from tests.fakes.lazy_image import LazyLayer, add_lazy_image, lying_layer, make_lazy_layer
from tests.fakes.registry import FakeRegistry, run_registry
from tests.fakes.soci_layer import SociLayer, make_soci_index
from tests.fakes.stargz_layer import StargzLayer
from tests.fakes.stored_index import add_plain_image

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from lazyimg.images.library import SourceRecord
    from lazyimg.registry.ports import ImageSource
    from lazyimg_formats.oci.documents import Descriptor
    from lazyimg_formats.oci.reference import Location

BASE = {"etc/name": b"lazyimg\n", "bin/tool": bytes(range(256)) * 100}
TOP = {"etc/.wh.name": b"", "etc/other": b"other"}


class Node:
    """Images of a registry, and a table of mounts that stands for the kernel's."""

    def __init__(self, root: Path, registry: FakeRegistry, client: RegistryClient) -> None:
        for name in ("content", "bootstraps", "tables", "mnt", "scratch"):
            (root / name).mkdir()
        self.root = root
        self.registry = registry
        self.client = client
        self.library = Library(root / "library.sqlite")
        self.engine = Engine(limits=FillLimits())
        self.shown = ShownAccess()
        self.catalog = Catalog(root, self.library, self.engine, self.open_blob, self.shown)
        staged = StagedDevices(CacheSpace(root, CacheLimits(bstop=0, fstop=0), root))
        self.streams = Streams(root, self.library, BuildLimits(), staged)
        self.images = Images(
            root, self.library, self.catalog, self.open_source, streams=self.streams
        )

    async def open_source(
        self, location: Location, access: Access
    ) -> tuple[ImageSource, Digest | str]:
        return await open_source(location, self.client, access)

    async def open_blob(self, record: SourceRecord, access: Access | None) -> MemoryBlob:
        return MemoryBlob(self.registry.blobs["app"][record.blob])

    async def close(self) -> None:
        await self.engine.close()
        self.library.close()
        self.shown.close()

    def add(self, layers: Sequence[LazyLayer | StargzLayer]) -> Image:
        return Image(self.registry.host, add_lazy_image(self.registry, "app", "1", layers), layers)


class Image:
    """An image in the registry: its reference, and the chains and labels of its layers."""

    def __init__(
        self, host: str, manifest: Descriptor, layers: Sequence[LazyLayer | StargzLayer]
    ) -> None:
        self.tagged = f"{host}/app:1"
        self.digest = manifest.digest
        self.reference = f"{host}/app@{manifest.digest}"
        self.chains = [str(chain) for chain in chain_ids(layer.diff_id for layer in layers)]
        self.labels = [
            serialize_image_labels(self.tagged, manifest.digest, layer.descriptor.digest)
            for layer in layers
        ]

    def remote(self, depth: int) -> RemoteLayer:
        chain = self.chains[depth - 1]
        return RemoteLayer(chain, self.reference, str(local_platform()), depth)


@pytest.fixture(scope="module")
def layers() -> list[LazyLayer]:
    return [asyncio.run(make_lazy_layer(files)) for files in (BASE, TOP)]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> FakeMounts:
    return FakeMounts().install(monkeypatch)


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    async def build_here(_: str, request: BuildRequest) -> BuildReply:
        return await asyncio.to_thread(build, request)

    monkeypatch.setattr(service, "build_image", build_here)
    async with (
        run_registry() as registry,
        RegistryClient(environ={}, policy=RetryPolicy(attempts=1)) as client,
    ):
        node = Node(tmp_path, registry, client)
        yield node
        await node.close()


def remote_layers(
    node: Node, host: FakeMounts, *patterns: str, stream: bool = False
) -> RemoteLayers:
    way = CacheMounts(node.root, "lazyimg", 1 << 20, Cache(host))
    own = OwnMounts(node.root, "lazyimg")
    mounts = Mounts(own, way, node.library, readers=node.catalog.readers)
    return RemoteLayers(node.images, mounts, patterns, stream=stream)


@pytest.fixture
def remote(node: Node, host: FakeMounts) -> RemoteLayers:
    return remote_layers(node, host)


async def test_layers_of_an_image(
    remote: RemoteLayers, node: Node, layers: list[LazyLayer]
) -> None:
    image = node.add(layers)
    first = await remote.find(image.chains[0], image.labels[0], None)
    assert first == image.remote(1)
    assert await remote.find(image.chains[1], image.labels[1], first) == image.remote(2)
    manifests = [one for one in node.registry.asked if "/manifests/" in one.path]
    assert len(manifests) == 1


async def test_image_that_was_pulled_is_ready(
    remote: RemoteLayers,
    node: Node,
    host: FakeMounts,
    layers: list[LazyLayer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image, pulled = node.add(layers), list[RemoteLayer]()
    remote.pulled = pulled.append
    first = await remote.find(image.chains[0], image.labels[0], None)
    assert pulled == []
    await remote.find(image.chains[1], image.labels[1], image.remote(1))
    assert pulled == [image.remote(2)]
    assert first == image.remote(1)
    await remote.make_ready(image.remote(2))
    assert host.table == []
    asked = len(node.registry.asked)
    await remote.make_ready(image.remote(2))
    assert len(node.registry.asked) == asked

    async def fail(what: str, _: BuildRequest) -> BuildReply:
        raise AssertionError(what)

    monkeypatch.setattr(service, "build_image", fail)
    await remote.mount(image.remote(2), 7)
    await remote.release(7)


async def test_image_whose_upper_layers_are_unpacked_is_ready(
    remote: RemoteLayers, node: Node, layers: list[LazyLayer]
) -> None:
    plain = PlainLayer(layers[1].blob, layers[1].diff_id, layers[1].toc)
    image, pulled = node.add([layers[0], plain]), list[RemoteLayer]()
    remote.pulled = pulled.append
    assert await remote.find(image.chains[0], image.labels[0], None) == image.remote(1)
    assert await reason(remote, image.chains[1], image.labels[1], image.remote(1)) == "format"
    assert pulled == [image.remote(1)]


async def test_image_is_built_once_by_who_comes_first(
    remote: RemoteLayers, node: Node, layers: list[LazyLayer], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, built = node.add(layers), list[str]()

    async def count(what: str, request: BuildRequest) -> BuildReply:
        built.append(what)
        return await asyncio.to_thread(build, request)

    monkeypatch.setattr(service, "build_image", count)
    both = image.remote(2)
    await asyncio.gather(remote.mount(both, 7), remote.make_ready(both), remote.mount(both, 8))
    assert len(built) == 1
    for user in (7, 8):
        await remote.release(user)


async def test_manifest_that_no_label_names(
    remote: RemoteLayers, node: Node, layers: list[LazyLayer]
) -> None:
    image = node.add(layers)
    assert await remote.find(image.chains[0], {REFERENCE: image.tagged}, None) == image.remote(1)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


async def test_image_is_read_with_what_came_with_its_pull(
    remote: RemoteLayers,
    node: Node,
    layers: list[LazyLayer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    node.registry.auth, node.registry.users = "basic", {"alice": "a"}
    image = node.add(layers)
    refused = await remote.find(image.chains[0], image.labels[0], None)
    assert isinstance(refused, Unpacked)
    assert refused.reason == "access-denied"
    assert "have it pulled again through lazyimg's image service" in caplog.messages[-1]
    given = {f"{node.registry.host}/app": Credential("alice", "a")}
    monkeypatch.setattr(node.client, "_given", given.get)
    layer = await remote.find(image.chains[0], image.labels[0], None)
    assert isinstance(layer, RemoteLayer)
    path = await remote.mount(layer, 1)
    chain = await node.images.find_part(layer.reference, 1)
    assert chain is not None
    assert path == node.root / "mnt" / chain.fsid
    sources = node.library.sources(chain.layers[0].device)
    assert [parse_access(one.access) for one in sources] == [Access(node=True)]


@pytest.mark.parametrize(
    ("labels", "why", "text"),
    [
        (
            {},
            Unpacked("", "", "no-labels", "no label names the image"),
            "sha256:chain: no label names the image",
        ),
        (
            {REFERENCE: "oci:/layout:1"},
            Unpacked("oci:/layout:1", "", "no-registry", "is in no registry"),
            "oci:/layout:1: is in no registry",
        ),
    ],
)
async def test_image_that_nobody_can_find(
    remote: RemoteLayers,
    caplog: pytest.LogCaptureFixture,
    labels: dict[str, str],
    why: Unpacked,
    text: str,
) -> None:
    caplog.set_level("INFO", "lazyimg.snapshotter")
    assert await remote.find("sha256:chain", labels, None) == why
    assert said(caplog) == [f"from layer sha256:chain on it is unpacked as usual: {text}"]


async def reason(
    remote: RemoteLayers, chain: str, labels: dict[str, str], below: RemoteLayer | None = None
) -> str:
    found = await remote.find(chain, labels, below)
    assert isinstance(found, Unpacked)
    return found.reason


async def test_name_that_is_none(remote: RemoteLayers) -> None:
    assert await reason(remote, "sha256:chain", {REFERENCE: "?"}) == "bad-reference"


async def test_labels_that_make_no_sense(
    remote: RemoteLayers, node: Node, layers: list[LazyLayer]
) -> None:
    image = node.add(layers)
    labels = image.labels[0] | {name: "x" for name in image.labels[0] if "manifest" in name}
    assert await reason(remote, image.chains[0], labels) == "labels"


async def test_chain_of_another_image(
    remote: RemoteLayers, node: Node, layers: list[LazyLayer]
) -> None:
    image = node.add(layers)
    assert await remote.find("sha256:other", image.labels[0], None) == Unpacked(
        image.tagged, str(image.digest), "chain", "has no layers that make the chain sha256:other"
    )


async def test_layer_that_does_not_follow_the_one_below(
    remote: RemoteLayers, node: Node, layers: list[LazyLayer]
) -> None:
    image = node.add(layers)
    assert await reason(remote, image.chains[1], image.labels[1]) == "order"


class PlainLayer(LazyLayer):
    """A layer that says nothing of its table of contents."""

    @property
    def descriptor(self) -> Descriptor:
        return replace(super().descriptor, annotations={})


async def test_layer_of_another_format(
    remote: RemoteLayers, node: Node, layers: list[LazyLayer]
) -> None:
    image = node.add([PlainLayer(layers[0].blob, layers[0].diff_id, layers[0].toc)])
    found = await remote.find(image.chains[0], image.labels[0], None)
    assert isinstance(found, Unpacked)
    assert (found.name, found.digest) == (image.tagged, str(image.digest))
    assert found.reason == "format"
    assert found.problem == (
        "a layer of format zstd cannot be loaded lazily, only estargz, zstd:chunked, zstd:chunked"
        " (stargz)"
    )


async def test_layers_of_stargz_snapshotter(remote: RemoteLayers, node: Node) -> None:
    """Whether one is lazy, its blob says: an index that is not there is not promised."""
    image = node.add(
        [StargzLayer(BASE), StargzLayer(TOP, zstd=True), StargzLayer(TOP, external=True)]
    )
    below = None
    for depth in (1, 2):
        found = await remote.find(image.chains[depth - 1], image.labels[depth - 1], below)
        below = image.remote(depth)
        assert found == below
    found = await remote.find(image.chains[2], image.labels[2], below)
    assert isinstance(found, Unpacked)
    assert found.reason == "format"
    assert found.problem == "an eStargz layer whose table of contents is in another image"


@pytest.mark.parametrize("zstd", [False, True])
async def test_layer_whose_index_has_lost_a_name(
    remote: RemoteLayers, node: Node, *, zstd: bool
) -> None:
    image = node.add([StargzLayer({"etc/\ufffd": b"1"}, zstd=zstd)])
    found = await remote.find(image.chains[0], image.labels[0], None)
    assert isinstance(found, Unpacked)
    assert found.reason == "format"
    assert found.problem.endswith(": TOC: a name is not UTF-8, which this format cannot say")


async def test_layer_whose_index_is_not_what_the_manifest_says(
    remote: RemoteLayers, node: Node
) -> None:
    layer = StargzLayer(BASE)
    layer.annotations |= StargzLayer(TOP).annotations
    image = node.add([layer])
    found = await remote.find(image.chains[0], image.labels[0], None)
    assert isinstance(found, Unpacked)
    assert found.reason == "corrupt"


async def test_reason_is_said_once_for_each_image(
    remote: RemoteLayers, node: Node, layers: list[LazyLayer], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "lazyimg.snapshotter")
    image = node.add(layers)
    for labels in image.labels * 2:
        await remote.find("sha256:other", labels, None)
    assert len(said(caplog)) == 1
    node.registry.fail("reset", path="/", times=1000)
    for chain in ("sha256:one", "sha256:two"):
        for _ in range(2):
            await remote.find(chain, {REFERENCE: f"{node.registry.host}/away:1"}, None)
            await remote.find(chain, {}, None)
    assert [text.partition(": ")[0] for text in said(caplog)[1:]] == [
        "from layer sha256:one on it is unpacked as usual",  # the registry
        "from layer sha256:one on it is unpacked as usual",  # no labels: each layer by itself
        "from layer sha256:two on it is unpacked as usual",
    ]


async def test_registry_that_is_away(
    remote: RemoteLayers, node: Node, layers: list[LazyLayer]
) -> None:
    image = node.add(layers)
    node.registry.fail("reset", path="/", times=1000)
    assert await reason(remote, image.chains[0], image.labels[0]) == "registry"


async def test_repositories_that_may_be_lazy(
    node: Node, host: FakeMounts, layers: list[LazyLayer]
) -> None:
    image = node.add(layers)
    some = remote_layers(node, host, "other.test/*", "*/app")
    assert await some.find(image.chains[0], image.labels[0], None) == image.remote(1)
    none = remote_layers(node, host, "other.test/*")
    assert await reason(none, image.chains[0], image.labels[0]) == "configuration"


async def test_mounted_for_several_snapshots(
    remote: RemoteLayers, node: Node, host: FakeMounts, layers: list[LazyLayer]
) -> None:
    image = node.add(layers)
    first = await remote.mount(image.remote(2), 7)
    assert await remote.mount(image.remote(2), 7) == first
    assert await remote.mount(image.remote(2), 8) == first
    lower = await remote.mount(image.remote(1), 9)
    assert set(host.points) == {str(first), str(lower)}
    assert await remote.fsids([image.remote(1), image.remote(2)]) == {first.name, lower.name}
    await remote.release(7)
    await remote.release(9)
    assert host.points == [str(first)]
    await remote.release(8)
    await remote.release(8)  # there is nothing left to do
    assert host.table == []


async def test_released_twice_at_once(
    remote: RemoteLayers, node: Node, host: FakeMounts, layers: list[LazyLayer]
) -> None:
    await remote.mount(node.add(layers).remote(1), 7)
    await asyncio.gather(remote.release(7), remote.release(7))
    assert host.table == []


async def test_released_while_two_mount(
    remote: RemoteLayers, node: Node, host: FakeMounts, layers: list[LazyLayer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Whoever comes next waits for the same lock, so that nothing is mounted twice for one."""
    layer = node.add(layers).remote(1)
    await remote.mount(layer, 7)
    open_image, opening, go = node.images.open, asyncio.Semaphore(0), asyncio.Event()

    async def open_slowly(*arguments: Any, **named: Any) -> Any:
        opening.release()
        await go.wait()
        return await open_image(*arguments, **named)

    monkeypatch.setattr(node.images, "open", open_slowly)
    async with asyncio.TaskGroup() as group:
        group.create_task(remote.release(7))
        group.create_task(remote.mount(layer, 7))
        await opening.acquire()
        group.create_task(remote.mount(layer, 7))
        go.set()
    await remote.release(7)
    assert host.table == []


async def test_mounted_again_without_a_registry(
    remote: RemoteLayers, node: Node, host: FakeMounts, layers: list[LazyLayer]
) -> None:
    layer = node.add(layers).remote(2)
    path = await remote.mount(layer, 7)
    await remote.release(7)
    asked = len(node.registry.asked)
    following = remote_layers(node, host)
    await following.mount_again(layer, [7, 8])
    assert host.points == [str(path)]
    assert await following.mount(layer, 7) == path
    assert len(node.registry.asked) == asked
    await following.release(7)
    assert host.points == [str(path)]
    await following.release(8)
    assert host.table == []


async def test_what_was_never_mounted_is_not_mounted_again(
    remote: RemoteLayers, node: Node, host: FakeMounts, layers: list[LazyLayer]
) -> None:
    image = node.add(layers)
    text = rf"^{image.reference}: its lowest 1 layers are not known here$"
    with pytest.raises(NotFoundError, match=text):
        await remote.mount_again(image.remote(1), [7])
    await remote.release(7)
    assert host.table == []


async def test_name_of_what_was_never_made(
    remote: RemoteLayers, node: Node, layers: list[LazyLayer]
) -> None:
    assert await remote.fsids([node.add(layers).remote(1)]) == set()


async def test_mount_without_a_registry(
    remote: RemoteLayers, node: Node, host: FakeMounts, layers: list[LazyLayer]
) -> None:
    image = node.add(layers)
    node.registry.fail("reset", path="/", times=1000)
    with pytest.raises(RegistryError):
        await remote.mount(image.remote(1), 7)
    assert host.table == []


async def test_mounted_for_a_comparison_as_well(
    remote: RemoteLayers, node: Node, host: FakeMounts, layers: list[LazyLayer]
) -> None:
    layer = node.add(layers).remote(2)
    plain = await remote.mount(layer, 7)
    marked = await remote.mount(layer, 7, comparable=True)
    assert await remote.mount(layer, 8, comparable=True) == marked
    assert await remote.mount(layer, 7) == plain
    assert set(host.points) == {str(plain), str(marked)}
    await remote.release(7)
    assert host.points == [str(marked)]
    await remote.release(8)
    assert host.table == []


async def test_comparison_without_a_registry(
    remote: RemoteLayers, node: Node, host: FakeMounts, layers: list[LazyLayer],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    layer = node.add(layers).remote(1)
    plain = await remote.mount(layer, 7)
    node.registry.fail("reset", path="/", times=1000)
    assert await remote.mount(layer, 7, comparable=True) == plain
    assert f"{layer.reference}: files will be read to compare them: " in caplog.text
    await remote.release(7)
    assert host.table == []


async def test_few_images_are_remembered(
    remote: RemoteLayers, node: Node, layers: list[LazyLayer]
) -> None:
    for number in range(KEPT + 2):
        image = Image(
            node.registry.host,
            add_lazy_image(node.registry, "app", str(number), [layers[0]] * (1 + number % 60)),
            [layers[0]],
        )
        await remote.find(image.chains[0], image.labels[0], None)
    assert len(remote._known) <= KEPT


async def test_image_that_was_found_to_lie(
    remote: RemoteLayers, node: Node, layers: list[LazyLayer], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    lie = lying_layer(layers[1], layers[0])
    image = node.add([layers[0], lie])
    assert isinstance(await remote.find(image.chains[0], image.labels[0], None), RemoteLayer)
    toc = lie.toc.digest
    assert toc is not None
    claim = LayerClaim(str(lie.descriptor.digest), str(lie.diff_id), toc.hex)
    node.library.add_checked(claim, "is another")
    first = await remote.find(image.chains[0], image.labels[0], None)
    assert isinstance(first, RemoteLayer)
    found = await remote.find(image.chains[1], image.labels[1], first)
    assert isinstance(found, Unpacked)
    assert found.reason == "quarantined"
    assert found.problem == "a layer of it is not what it says: is another"
    honest = node.add(layers)  # with the same chain
    assert honest.chains == image.chains
    first = await remote.find(honest.chains[0], honest.labels[0], None)
    assert isinstance(first, RemoteLayer)
    assert isinstance(await remote.find(honest.chains[1], honest.labels[1], first), RemoteLayer)


async def test_image_whose_layers_may_not_be_read(
    remote: RemoteLayers, node: Node, layers: list[LazyLayer]
) -> None:
    """Somebody else may have its chain here already: that proves nothing."""
    image = node.add(layers)
    del node.registry.blobs["app"][str(layers[1].descriptor.digest)]
    found = await remote.find(image.chains[0], image.labels[0], None)
    assert isinstance(found, Unpacked)
    assert found.reason == "access-denied"


async def test_ordinary_layers_whose_indexes_the_manifest_names(
    node: Node, remote: RemoteLayers
) -> None:
    plain = [stored_index.PlainLayer(files) for files in (BASE, TOP)]
    manifest = add_plain_image(node.registry, "app", "1", *plain, committed=True)
    chains = [str(chain) for chain in chain_ids(Digest.of(layer.tar) for layer in plain)]
    labels = [
        serialize_image_labels(
            f"{node.registry.host}/app:1", manifest.digest, layer.descriptor.digest
        )
        for layer in plain
    ]
    below = await remote.find(chains[0], labels[0], None)
    assert isinstance(below, RemoteLayer)
    below = await remote.find(chains[1], labels[1], below)
    assert isinstance(below, RemoteLayer)
    assert node.registry.sent(str(plain[1].descriptor.digest)) == 0
    for layer in plain:  # they are on the node before it is said that the layer is lazy
        assert (node.root / "content" / layer.stored.digest.hex).read_bytes() == layer.index
    path = await remote.mount(below, 1)
    assert path.parent == node.root / "mnt"
    assert await remote.fsids([below]) == {path.name}


async def test_ordinary_layers_whose_indexes_are_not_there(
    node: Node, remote: RemoteLayers
) -> None:
    plain = stored_index.PlainLayer(BASE)
    manifest = add_plain_image(node.registry, "app", "1", plain, committed=True)
    del node.registry.blobs["app"][str(plain.stored.digest)]
    tagged = f"{node.registry.host}/app:1"
    labels = serialize_image_labels(tagged, manifest.digest, plain.descriptor.digest)
    (chain,) = chain_ids([Digest.of(plain.tar)])
    found = await remote.find(str(chain), labels, None)
    assert isinstance(found, Unpacked)
    assert found.reason == "format"


async def test_layer_without_an_index_is_read_whole_if_that_is_wanted(
    node: Node, host: FakeMounts
) -> None:
    """One after the other, as containerd asks for them; the image is lazy then."""
    tars = [make_tar(files) for files in (BASE, TOP)]
    blobs = {gzip.compress(tar, mtime=0): tar for tar in tars}
    manifest = node.registry.add_image("app", "1", blobs)
    chains = [str(chain) for chain in chain_ids(map(Digest.of, tars))]
    labels = [
        serialize_image_labels(f"{node.registry.host}/app:1", manifest.digest, Digest.of(blob))
        for blob in blobs
    ]
    unpacked = await remote_layers(node, host).find(chains[0], labels[0], None)
    assert isinstance(unpacked, Unpacked)
    assert node.registry.sent("/blobs/") < 1000
    remote = remote_layers(node, host, stream=True)
    sent = []
    below: RemoteLayer | None = None
    for chain, label in zip(chains, labels, strict=True):
        found = await remote.find(chain, label, below)
        assert isinstance(found, RemoteLayer)
        below = found
        sent.append([node.registry.sent(f"/blobs/{Digest.of(blob)}") for blob in blobs])
    first, second = map(len, blobs)
    assert sent == [[first, 0], [first, second]]
    assert below is not None
    await remote.mount(below, 1)
    await remote.release(1)


async def test_small_layers_that_soci_leaves_out_are_read_whole(
    node: Node, remote: RemoteLayers
) -> None:
    """Below one that has a zTOC; the uppermost one is unpacked."""
    small, large, top = (
        SociLayer(make_tar({"small": b"small"})),
        SociLayer(),
        SociLayer(make_tar({"top": b"top"})),
    )
    layers = [small, large, top]
    soci = make_soci_index([large])
    named = node.registry.add_manifest("app", "", soci).digest
    node.registry.add_blob("app", large.ztoc, "application/octet-stream")
    plain = node.registry.add_image("app", "", {layer.blob: layer.tar for layer in layers})
    document = parse_document(node.registry.manifests["app"][str(plain.digest)][1])
    assert isinstance(document, Manifest)
    manifest = node.registry.add_manifest(
        "app", "1", replace(document, annotations={INDEX_DIGEST: str(named)})
    )
    chains = [str(chain) for chain in chain_ids(layer.diff_id for layer in layers)]
    tagged = f"{node.registry.host}/app:1"
    labels = [
        serialize_image_labels(tagged, manifest.digest, Digest.of(layer.blob)) for layer in layers
    ]
    first = await remote.find(chains[0], labels[0], None)
    assert isinstance(first, RemoteLayer)
    sent = [node.registry.sent(f"/blobs/{Digest.of(layer.blob)}") for layer in layers]
    assert sent == [len(small.blob), 0, 0]
    second = await remote.find(chains[1], labels[1], first)
    assert isinstance(second, RemoteLayer)
    assert isinstance(await remote.find(chains[2], labels[2], second), Unpacked)
    assert node.registry.sent(f"/blobs/{Digest.of(top.blob)}") == 0
