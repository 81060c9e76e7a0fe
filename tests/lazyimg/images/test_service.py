"""From a reference to an image that can be mounted: a registry in memory, real records, a build."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import (
    AccessDeniedError,
    BadReferenceError,
    CorruptError,
    NoPlatformError,
    NotFoundError,
    NotLazyError,
    RegistryError,
    UsageError,
)
from lazyimg.fill.engine import Engine
from lazyimg.images import fetching, proofs, service
from lazyimg.images.build import BuildReply, BuildRequest, build
from lazyimg.images.catalog import Catalog
from lazyimg.images.library import LayerClaim, Library
from lazyimg.images.locating import Sought
from lazyimg.images.service import Images
from lazyimg.images.shown import ShownAccess
from lazyimg.limits import FillLimits
from lazyimg.registry.auth import Credential
from lazyimg.registry.client import RegistryClient
from lazyimg.registry.ports import Access
from lazyimg.registry.resolve import local_platform, open_source, parse_location
from lazyimg.registry.retry import RetryPolicy
from lazyimg_formats.device_table import BLOCK_SIZE
from lazyimg_formats.oci.documents import (
    REF_NAME,
    Index,
    Manifest,
    parse_document,
    serialize_document,
)
from tests.fakes.devices import MemoryBlob, MemorySink
from tests.fakes.gzip_layer import make_layer
from tests.fakes.lazy_image import LazyLayer, add_lazy_image, make_lazy_layer
from tests.fakes.registry import FakeRegistry, run_registry
from tests.fakes.soci_layer import FILES, SociLayer, add_soci_image
from tests.fakes.stargz_layer import StargzLayer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from lazyimg.images.image import Image
    from lazyimg.images.library import SourceRecord
    from lazyimg.registry.ports import ImageSource
    from lazyimg_formats.oci.digest import Digest
    from lazyimg_formats.oci.reference import Location

NO_ACCESS = Access()
BASE = {"etc/name": b"lazyimg\n", "bin/tool": bytes(range(256)) * 100}
TOP = {"etc/.wh.name": b"", "etc/other": b"other"}


class Node:
    """Images in a directory, and a registry to get them from.

    Attributes:
        builds: requests to build.
        accesses: what blobs were opened with.
    """

    def __init__(self, root: Path, registry: FakeRegistry, client: RegistryClient) -> None:
        for name in ("content", "bootstraps", "tables"):
            (root / name).mkdir(exist_ok=True)
        self.root = root
        self.registry = registry
        self.client = client
        self.builds: list[BuildRequest] = []
        self.accesses: list[tuple[str, Access | None]] = []
        self.library = Library(root / "library.sqlite")
        self.engine = Engine(limits=FillLimits())
        self.shown = ShownAccess()
        self.catalog = Catalog(root, self.library, self.engine, self.open_blob, self.shown)
        self.catalog.load()
        self.images = Images(root, self.library, self.catalog, self.open_source)

    async def close(self) -> None:
        await self.engine.close()
        self.library.close()
        self.shown.close()

    async def open_source(
        self, location: Location, access: Access
    ) -> tuple[ImageSource, Digest | str]:
        return await open_source(location, self.client, access)

    async def open_blob(self, record: SourceRecord, access: Access | None) -> MemoryBlob:
        self.accesses.append((record.repository, access))
        name = parse_location(record.repository)
        assert str(name).startswith(self.registry.host)
        return MemoryBlob(self.registry.blobs["app"][record.blob])

    @property
    def reference(self) -> str:
        return f"{self.registry.host}/app:1"

    async def open(self, reference: str = "", access: Access = NO_ACCESS) -> Image:
        return await self.images.open(reference or self.reference, "", access)

    def lose_registry(self) -> None:
        self.registry.fail("reset", path="/", times=1000)


@pytest.fixture(scope="module")
def layers() -> list[LazyLayer]:
    return [asyncio.run(make_lazy_layer(files)) for files in (BASE, TOP)]


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    async with (
        run_registry() as registry,
        RegistryClient(environ={}, policy=RetryPolicy(attempts=1)) as client,
    ):
        node = Node(tmp_path, registry, client)

        async def build_here(_: str, request: BuildRequest) -> BuildReply:
            node.builds.append(request)
            return await asyncio.to_thread(build, request)

        monkeypatch.setattr(service, "build_image", build_here)
        yield node
        await node.close()


async def test_image_is_ready_to_be_served(node: Node, layers: list[LazyLayer]) -> None:
    descriptor = add_lazy_image(node.registry, "app", "1", layers)
    image = await node.open()
    assert image.reference == node.reference
    assert image.digest == str(descriptor.digest)
    assert image.platform == str(local_platform())
    chain = image.chain
    assert [layer.blob for layer in chain.layers] == [
        str(layer.descriptor.digest) for layer in layers
    ]
    assert [(layer.format, layer.media_type) for layer in chain.layers] == [
        ("zstd:chunked", layer.descriptor.media_type) for layer in layers
    ]
    assert [layer.blob_size for layer in chain.layers] == [len(layer.blob) for layer in layers]
    assert (node.root / "bootstraps" / chain.fsid).stat().st_size == chain.size
    assert node.catalog.size(chain.fsid) == chain.size
    for layer in chain.layers:
        assert node.catalog.size(layer.device) == layer.device_size
        sink = MemorySink()
        await node.catalog.fill(layer.device, 0, layer.device_size, sink)
        assert sink.has(0, layer.device_size)
    fetched = sum(len(layer.index) for layer in layers)
    blobs = [one for one in node.registry.asked if one.range]
    assert sum(one.sent for one in blobs) == fetched


async def test_real_child_builds_it(
    node: Node, layers: list[LazyLayer], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_lazy_image(node.registry, "app", "1", layers)
    expected = (await node.open()).chain
    monkeypatch.undo()
    (node.root / "bootstraps" / expected.fsid).unlink()
    assert (await node.open()).chain == expected
    assert len(node.builds) == 1


async def test_image_that_is_known_is_not_built_again(node: Node, layers: list[LazyLayer]) -> None:
    add_lazy_image(node.registry, "app", "1", layers)
    first = await node.open()
    ranges = sum(1 for one in node.registry.asked if one.range)
    assert await node.open() == first
    assert len(node.builds) == 1
    assert sum(1 for one in node.registry.asked if one.range) == ranges


async def test_two_callers_at_once_build_once(node: Node, layers: list[LazyLayer]) -> None:
    add_lazy_image(node.registry, "app", "1", layers)
    first, second = await asyncio.gather(node.open(), node.open())
    assert first == second
    assert len(node.builds) == 1


async def test_opening_again_and_again_keeps_one_source(
    node: Node, layers: list[LazyLayer]
) -> None:
    add_lazy_image(node.registry, "app", "1", layers[:1])
    device = (await node.open()).chain.layers[0].device
    await node.catalog.device(device)
    for _ in range(3):
        await node.open()
    node.engine.remove_device(device)
    with pytest.raises(NotFoundError):  # it was the only one
        node.engine.remove_device(device)


async def test_layer_without_data_needs_no_source(node: Node, layers: list[LazyLayer]) -> None:
    deletes = await make_lazy_layer({"etc/.wh.name": b""})
    add_lazy_image(node.registry, "app", "1", [layers[0], deletes])
    empty = (await node.open()).chain.layers[1]
    assert empty.device_size == 0
    assert node.catalog.size(empty.device) is None
    assert node.library.sources(empty.device) == []


async def test_tag_that_moves(node: Node, layers: list[LazyLayer]) -> None:
    add_lazy_image(node.registry, "app", "1", layers[:1])
    first = await node.open()
    add_lazy_image(node.registry, "app", "1", layers)
    second = await node.open()
    assert second.digest != first.digest
    assert second.chain.fsid != first.chain.fsid
    assert second.chain.layers[0] == first.chain.layers[0]


async def test_lost_files_are_made_again(node: Node, layers: list[LazyLayer]) -> None:
    add_lazy_image(node.registry, "app", "1", layers)
    first = await node.open()
    (node.root / "tables" / first.chain.layers[1].table).unlink()
    assert await node.open() == first
    assert (node.root / "tables" / first.chain.layers[1].table).exists()
    assert len(node.builds) == 2


async def test_registry_is_away(
    node: Node, layers: list[LazyLayer], caplog: pytest.LogCaptureFixture
) -> None:
    add_lazy_image(node.registry, "app", "1", layers)
    first = await node.open()
    node.lose_registry()
    assert await node.open() == first
    assert f"using {first.digest}, known from before" in caplog.text
    with pytest.raises(RegistryError):
        await node.open(f"{node.registry.host}/app:2")


async def test_registry_is_away_after_a_restart(node: Node, layers: list[LazyLayer]) -> None:
    add_lazy_image(node.registry, "app", "1", layers)
    first = await node.open()
    node.lose_registry()
    again = Node(node.root, node.registry, node.client)
    assert await again.open() == first
    assert again.catalog.size(first.chain.fsid) == first.chain.size
    device = first.chain.layers[0].device
    sink = MemorySink()
    await again.catalog.fill(device, 0, BLOCK_SIZE, sink)
    assert sink.has(0, BLOCK_SIZE)
    await again.close()


async def test_registry_that_says_nothing(
    node: Node, layers: list[LazyLayer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "RESOLVE_DEADLINE", 0.01)
    add_lazy_image(node.registry, "app", "1", layers)
    first = await node.open()
    node.registry.fail("hang", path="/manifests/")
    assert await node.open() == first


async def test_registry_is_away_and_so_are_the_files(node: Node, layers: list[LazyLayer]) -> None:
    add_lazy_image(node.registry, "app", "1", layers)
    first = await node.open()
    (node.root / "bootstraps" / first.chain.fsid).unlink()
    node.lose_registry()
    with pytest.raises(RegistryError):
        await node.open()


async def test_image_that_was_removed_is_not_replaced_by_its_record(
    node: Node, layers: list[LazyLayer]
) -> None:
    add_lazy_image(node.registry, "app", "1", layers)
    await node.open()
    node.registry.manifests["app"].clear()
    with pytest.raises(NotFoundError):
        await node.open()


async def test_digest_that_is_known_asks_nobody(node: Node, layers: list[LazyLayer]) -> None:
    descriptor = add_lazy_image(node.registry, "app", "1", layers)
    reference = f"{node.registry.host}/app@{descriptor.digest}"
    first = await node.open(reference)
    asked = len(node.registry.asked)
    assert await node.open(reference) == first
    assert len(node.registry.asked) == asked


async def test_digest_that_is_known_and_new_credentials(
    node: Node, layers: list[LazyLayer]
) -> None:
    descriptor = add_lazy_image(node.registry, "app", "1", layers[:1])
    reference = f"{node.registry.host}/app@{descriptor.digest}"
    node.registry.auth = "basic"
    node.registry.users["user"] = "right"
    good = Access(username="user", password="right")
    device = (await node.open(reference, good)).chain.layers[0].device
    with pytest.raises(AccessDeniedError):
        await node.open(reference, replace(good, password="wrong"))
    await node.catalog.device(device)
    assert node.accesses == [(f"{node.registry.host}/app", good)]


async def test_digest_that_is_known_but_its_files_are_gone(
    node: Node, layers: list[LazyLayer]
) -> None:
    descriptor = add_lazy_image(node.registry, "app", "1", layers)
    reference = f"{node.registry.host}/app@{descriptor.digest}"
    first = await node.open(reference)
    (node.root / "bootstraps" / first.chain.fsid).unlink()
    assert await node.open(reference) == first
    assert (node.root / "bootstraps" / first.chain.fsid).exists()


async def test_index_that_is_not_what_the_manifest_says(
    node: Node, layers: list[LazyLayer]
) -> None:
    broken = bytearray(layers[0].blob)
    broken[layers[0].toc.offset + 3] ^= 1
    add_lazy_image(node.registry, "app", "1", layers)
    node.registry.blobs["app"][str(layers[0].descriptor.digest)] = bytes(broken)
    with pytest.raises(CorruptError, match="its index does not have the digest"):
        await node.open()
    assert node.library.find_image(node.reference, str(local_platform())) is None
    assert node.builds == []
    node.registry.blobs["app"][str(layers[0].descriptor.digest)] = layers[0].blob
    assert (await node.open()).chain.layers


async def test_indexes_that_are_too_large_together(
    node: Node, layers: list[LazyLayer], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (len(layer.index) for layer in layers)
    monkeypatch.setattr(fetching, "MAX_INDEXES", one + two - 1)
    add_lazy_image(node.registry, "app", "1", layers)
    with pytest.raises(CorruptError) as caught:
        await node.open()
    assert str(caught.value) == (
        f"{node.reference}: its indexes have {one + two} bytes, at most {one + two - 1} allowed"
    )
    assert node.builds == []
    add_lazy_image(node.registry, "app", "1", [layers[0]] * 3)  # one, three times
    assert len((await node.open()).chain.layers) == 3


async def test_layer_that_is_not_lazy(node: Node) -> None:
    platform = local_platform()
    node.registry.add_image("app", "1", make_layer(), platform.architecture)
    with pytest.raises(NotLazyError) as caught:
        await node.open()
    assert str(caught.value).startswith(f"{node.reference}: layer 1 of 1: a layer of format tar")


@pytest.mark.parametrize("text", ["", "reg/UPPER", "reg/app:", "a" * 64])
async def test_reference_that_names_nothing(node: Node, text: str) -> None:
    with pytest.raises(BadReferenceError):
        await node.images.open(text, "", NO_ACCESS)


async def test_platform_that_says_nothing(node: Node) -> None:
    with pytest.raises(UsageError, match="expected os/arch"):
        await node.images.open(node.reference, "a/b/c/d", NO_ACCESS)


async def test_platform_that_is_not_there(node: Node, layers: list[LazyLayer]) -> None:
    add_lazy_image(node.registry, "app", "1", layers, "s390x")
    with pytest.raises(NoPlatformError):
        await node.open()
    image = await node.images.open(node.reference, "linux/s390x", NO_ACCESS)
    assert image.platform == "linux/s390x"


async def test_image_in_a_layout_directory_that_is_not_there(node: Node, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        await node.open(f"oci:{tmp_path}/none:1")


@pytest.mark.parametrize("text", ["oci:some/where:1", "oci-archive:file.tar"])
async def test_path_that_depends_on_where_the_daemon_runs(node: Node, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        await node.open(text)
    assert str(caught.value) == f"{text}: the daemon takes absolute paths only"


async def test_image_in_a_layout_directory(
    node: Node, layers: list[LazyLayer], tmp_path: Path
) -> None:
    path = tmp_path / "layout"
    blobs = path / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    descriptor = add_lazy_image(node.registry, "app", "1", layers)
    for digest, data in node.registry.blobs["app"].items():
        (blobs / digest.partition(":")[2]).write_bytes(data)
    media_type, manifest = node.registry.manifests["app"]["1"]
    (blobs / descriptor.digest.hex).write_bytes(manifest)
    entry = replace(descriptor, annotations={REF_NAME: "1"}, media_type=media_type)
    (path / "index.json").write_bytes(serialize_document(Index(manifests=(entry,))))
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    image = await node.open(f"oci:{path}:1")
    assert (image.reference, image.digest) == (f"oci:{path}:1", str(descriptor.digest))
    assert image.chain == (await node.open()).chain
    repositories = {one.repository for one in node.library.sources(image.chain.layers[0].device)}
    assert repositories == {f"oci:{path}:1", f"{node.registry.host}/app"}


async def test_description_of_what_is_not_lazy(node: Node) -> None:
    descriptor = node.registry.add_image("app", "1", make_layer(), local_platform().architecture)
    found = await node.images.describe(node.reference, "", NO_ACCESS)
    assert found.digest == str(descriptor.digest)
    assert found.reference == node.reference
    assert found.formats == ("tar",)
    assert len(found.layers) == 1
    assert found.chain is None


async def test_description_before_and_after_it_was_made_ready(
    node: Node, layers: list[LazyLayer]
) -> None:
    descriptor = add_lazy_image(node.registry, "app", "1", layers)
    found = await node.images.describe(node.reference, "local", NO_ACCESS)
    assert found.formats == ("zstd:chunked", "zstd:chunked")
    assert found.chain is None
    assert node.builds == []
    image = await node.open()
    found = await node.images.describe(node.reference, "", NO_ACCESS)
    assert found.chain == image.chain
    manifest = parse_document(node.registry.manifests["app"][str(descriptor.digest)][1])
    assert isinstance(manifest, Manifest)
    assert found.layers == manifest.layers


async def test_description_while_the_registry_is_away(node: Node, layers: list[LazyLayer]) -> None:
    add_lazy_image(node.registry, "app", "1", layers)
    image = await node.open()
    node.lose_registry()
    found = await node.images.describe(node.reference, "", NO_ACCESS)
    assert (found.reference, found.digest) == (image.reference, image.digest)
    assert (found.platform, found.chain) == (image.platform, image.chain)
    assert (found.layers, found.formats) == ((), ())
    with pytest.raises(RegistryError):
        await node.images.describe(f"{node.registry.host}/app:2", "", NO_ACCESS)


ALICE = Access(username="alice", password="a")
BOB = Access(username="bob", password="b")
NODE = Access(node=True)


def make_private(registry: FakeRegistry, layers: list[LazyLayer]) -> None:
    """Two repositories with the same layers, for one user each."""
    registry.auth = "basic"
    registry.users = {"alice": "a", "bob": "b"}
    registry.readers = {"app": {"alice"}, "other": {"bob"}}
    for name in registry.readers:
        add_lazy_image(registry, name, "1", layers)


async def test_wrong_credentials_do_not_help_though_everything_is_local(
    node: Node, layers: list[LazyLayer]
) -> None:
    make_private(node.registry, layers)
    await node.open(access=ALICE)
    other = f"{node.registry.host}/other:1"
    for access in (ALICE, NO_ACCESS, Access(username="bob", password="wrong")):
        with pytest.raises(AccessDeniedError):
            await node.open(other, access)
    assert (await node.open(other, BOB)).chain == (await node.open(access=ALICE)).chain
    assert len(node.builds) == 1


async def test_manifest_gives_no_right_to_another_s_layers(
    node: Node, layers: list[LazyLayer]
) -> None:
    make_private(node.registry, layers)
    await node.open(access=ALICE)
    stolen = str(layers[0].descriptor.digest)
    del node.registry.blobs["other"][stolen]
    with pytest.raises(AccessDeniedError) as caught:
        await node.open(f"{node.registry.host}/other:1", BOB)
    assert str(caught.value) == (
        f"{node.registry.host}/other@{stolen}: this repository does not have the layer, so it"
        " gives no right to read it; check that the image was pushed whole"
    )
    device = (await node.open(access=ALICE)).chain.layers[0].device
    assert {one.repository for one in node.library.sources(device)} == {f"{node.registry.host}/app"}


async def test_without_the_registry_each_uses_what_he_was_seen_to_read(
    node: Node, layers: list[LazyLayer]
) -> None:
    make_private(node.registry, layers)
    await node.open(access=ALICE)
    node.lose_registry()
    assert await node.open(access=ALICE)
    for access in (BOB, NO_ACCESS):
        with pytest.raises(AccessDeniedError, match="has not been seen to read the image"):
            await node.open(access=access)


async def test_what_the_node_was_seen_to_read_stays_though_its_credentials_are_gone(
    node: Node, layers: list[LazyLayer], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_private(node.registry, layers)
    name = f"{node.registry.host}/app"
    given = {name: Credential("alice", "a")}
    monkeypatch.setattr(node.client, "_given", given.get)
    found = await node.images.resolve(f"{name}:1", NODE)
    fixed = f"{name}@{found.descriptor.digest}"
    part = await node.images.open(fixed, "", NODE, 1)
    given.clear()
    assert await node.images.open(fixed, "", NODE, 1) == part
    monkeypatch.setattr(proofs, "PROOF_LIFETIME", 0.0)
    assert await node.images.open(fixed, "", NODE, 1) == part
    for access in (BOB, NO_ACCESS):  # others have to show what they may
        with pytest.raises(AccessDeniedError):
            await node.images.open(fixed, "", access, 1)
    with pytest.raises(AccessDeniedError):  # the node, too, for what it has not got
        await node.images.open(fixed, "", NODE, 2)


async def test_digest_that_is_known_is_asked_about_again_in_time(
    node: Node, layers: list[LazyLayer], monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptor = add_lazy_image(node.registry, "app", "1", layers)
    reference = f"{node.registry.host}/app@{descriptor.digest}"
    await node.open(reference)
    monkeypatch.setattr(proofs, "PROOF_LIFETIME", 0.0)
    node.registry.asked.clear()
    await node.open(reference)
    assert [one.method for one in node.registry.asked if "/blobs/" in one.path] == ["HEAD"] * 3
    node.lose_registry()
    await node.open(reference)


async def test_lowest_layers_of_an_image(node: Node, layers: list[LazyLayer]) -> None:
    descriptor = add_lazy_image(node.registry, "app", "1", layers)
    fixed = f"{node.registry.host}/app@{descriptor.digest}"
    assert await node.images.find_part(fixed, 1) is None
    part = await node.images.open(fixed, "", NO_ACCESS, 1)
    assert (part.reference, part.digest) == (fixed, str(descriptor.digest))
    assert [layer.blob for layer in part.chain.layers] == [str(layers[0].descriptor.digest)]
    assert await node.images.find_part(fixed, 1) == part.chain
    whole = await node.open(fixed)
    assert whole.chain.layers[:1] == part.chain.layers
    assert whole.chain.fsid != part.chain.fsid
    assert await node.images.open(fixed, "", NO_ACCESS, 1) == part
    assert len(node.builds) == 2


async def test_lowest_layers_with_comparable_times(node: Node, layers: list[LazyLayer]) -> None:
    descriptor = add_lazy_image(node.registry, "app", "1", layers)
    fixed = f"{node.registry.host}/app@{descriptor.digest}"
    part = await node.images.open(fixed, "", NO_ACCESS, 1)
    marked = await node.images.open(fixed, "", NO_ACCESS, 1, comparable=True)
    assert marked.chain.fsid != part.chain.fsid
    assert marked.chain.layers == part.chain.layers  # the same devices
    assert await node.images.open(fixed, "", NO_ACCESS, 1) == part
    assert await node.images.open(fixed, "", NO_ACCESS, 1, comparable=True) == marked
    assert await node.images.find_part(fixed, 1) == part.chain
    assert await node.images.recorded(fixed, "", 1) == part
    assert len(node.builds) == 2


async def test_lowest_layers_of_an_image_without_its_registry(
    node: Node, layers: list[LazyLayer]
) -> None:
    descriptor = add_lazy_image(node.registry, "app", "1", layers)
    fixed = f"{node.registry.host}/app@{descriptor.digest}"
    part = await node.images.open(fixed, "", NO_ACCESS, 1)
    node.lose_registry()
    assert await node.images.open(fixed, "", NO_ACCESS, 1) == part
    with pytest.raises(RegistryError):
        await node.images.open(fixed, "", NO_ACCESS, 2)


async def test_lowest_layers_of_a_tag(node: Node, layers: list[LazyLayer]) -> None:
    add_lazy_image(node.registry, "app", "1", layers)
    with pytest.raises(UsageError, match="parts of an image are known by its digest only"):
        await node.images.open(node.reference, "", NO_ACCESS, 1)


async def test_manifest_and_config(node: Node, layers: list[LazyLayer]) -> None:
    descriptor = add_lazy_image(node.registry, "app", "1", layers)
    resolved = await node.images.resolve(node.reference, NO_ACCESS)
    assert resolved.descriptor.digest == descriptor.digest
    assert list(resolved.config.diff_ids) == [layer.diff_id for layer in layers]


async def test_layers_to_be_read_whole(node: Node, layers: list[LazyLayer]) -> None:
    manifest = add_lazy_image(node.registry, "app", "1", layers)
    reference = f"{node.registry.host}/app@{manifest.digest}"
    found = await node.images.layers(reference, "", NO_ACCESS, 1)
    (layer,) = found
    assert (layer.descriptor.digest, layer.diff_id) == (
        layers[0].descriptor.digest, str(layers[0].diff_id),
    )  # fmt: skip
    assert layer.path.read_bytes() == layers[0].index
    assert layer.claim == LayerClaim(
        str(layers[0].descriptor.digest), str(layers[0].diff_id), layer.path.name
    )
    assert len(await node.images.layers(reference, "", NO_ACCESS, 2)) == 2


async def test_proof_for_those_who_have_the_layers_already(
    node: Node, layers: list[LazyLayer]
) -> None:
    manifest = add_lazy_image(node.registry, "app", "1", layers)
    reference = f"{node.registry.host}/app@{manifest.digest}"
    blobs = [layer.descriptor for layer in layers]
    await node.images.prove(reference, NO_ACCESS, blobs)
    asked = len(node.registry.asked)
    await node.images.prove(reference, NO_ACCESS, blobs)
    assert len(node.registry.asked) == asked
    add_lazy_image(node.registry, "other", "1", layers)
    del node.registry.blobs["other"][str(blobs[1].digest)]
    with pytest.raises(AccessDeniedError):
        await node.images.prove(f"{node.registry.host}/other:1", NO_ACCESS, blobs)


@pytest.mark.parametrize("away", [False, True])
async def test_layers_known_from_another_repository_are_filled_from_this_one_too(
    node: Node, layers: list[LazyLayer], monkeypatch: pytest.MonkeyPatch, *, away: bool
) -> None:
    manifest = add_lazy_image(node.registry, "app", "1", layers)
    add_lazy_image(node.registry, "other", "1", layers)
    blobs = [layer.descriptor for layer in layers]
    first, second = (f"{node.registry.host}/{name}@{manifest.digest}" for name in ("app", "other"))
    part = await node.images.open(first, "", NO_ACCESS, 1)
    device = part.chain.layers[0].device
    await node.catalog.device(device)
    await node.images.prove(second, NO_ACCESS, blobs)
    if away:
        monkeypatch.setattr(proofs, "PROOF_LIFETIME", 0.0)
        node.lose_registry()
    found = await node.images.open(second, "", NO_ACCESS, 1)
    assert (found.reference, found.chain) == (second, part.chain)
    repositories = {f"{node.registry.host}/{name}" for name in ("app", "other")}
    assert {one.repository for one in node.library.sources(device)} == repositories
    assert {repository for repository, _ in node.accesses} == repositories
    asked = len(node.accesses)
    assert await node.images.open(second, "", NO_ACCESS, 1) == found
    assert len(node.accesses) == asked


async def test_what_is_wrong_with_layers(node: Node) -> None:
    claims = [LayerClaim("sha256:aa", f"sha256:{n}", "index") for n in range(3)]
    node.library.add_checked(claims[0], "")
    node.library.add_checked(claims[1], "is another")
    assert await node.images.problems(claims) == ["is another"]


async def test_image_of_every_format(node: Node, layers: list[LazyLayer]) -> None:
    """One device for the same files, whatever the format; the index is looked for once."""
    stargz = [StargzLayer(BASE), StargzLayer(TOP, zstd=True), StargzLayer(BASE, joined=9)]
    add_lazy_image(node.registry, "app", "1", [layers[0], *stargz])
    image = await node.open()
    formats = [layer.format for layer in image.chain.layers]
    assert formats == ["zstd:chunked", "estargz", "zstd:chunked (stargz)", "estargz"]
    devices = [layer.device for layer in image.chain.layers]
    assert devices[0] == devices[1] == devices[3] != devices[2]
    assert len({layer.table for layer in image.chain.layers}) == 4
    described = await node.images.describe(node.reference, "", NO_ACCESS)
    assert described.formats == tuple(formats)
    assert described.chain == image.chain
    found = await node.images.layers(node.reference, "", NO_ACCESS, 4)
    assert [layer.location.name for layer in found] == [one.table for one in image.chain.layers]
    assert all(layer.location.length for layer in found)
    sent = node.registry.count(path="/blobs/")
    assert await node.open() == image
    assert node.registry.count(path="/blobs/") == sent


async def test_index_that_turns_out_not_to_be_there(node: Node, layers: list[LazyLayer]) -> None:
    good, elsewhere = StargzLayer(BASE), StargzLayer(BASE, external=True)
    add_lazy_image(node.registry, "app", "1", [good, elsewhere])
    with pytest.raises(NotLazyError, match="table of contents is in another image"):
        await node.open()
    add_lazy_image(node.registry, "app", "1", [good, layers[0], elsewhere])
    sought = Sought.of(node.reference, await node.images.resolve(node.reference, NO_ACCESS))
    with pytest.raises(NotLazyError, match="table of contents is in another image"):
        await node.images.fetch_index(sought, NO_ACCESS, 2)
    for number in (0, 1):
        await node.images.fetch_index(sought, NO_ACCESS, number)
    kept = [path.read_bytes() for path in (node.root / "content").iterdir()]
    assert [data for data in kept if not data.startswith(b"{")] == [good.blob[good.toc_offset :]]


async def test_image_with_a_soci_index(node: Node) -> None:
    """Two images of the same blob, of which one zTOC lies, have a device each."""
    layer = SociLayer()
    lie = bytearray(layer.ztoc)
    for at in range(layer.point(1) + 17, layer.point(2)):  # a window
        lie[at] ^= 1
    devices = set()
    for ztoc in (bytes(lie), layer.ztoc):
        add_soci_image(node.registry, "app", "1", SociLayer(ztoc=ztoc))
        image = await node.open()
        (one,) = image.chain.layers
        assert one.format == "soci"
        devices.add(one.device)
        described = await node.images.describe(node.reference, "", NO_ACCESS)
        assert (described.formats, described.indexes) == (("soci",), ("repository",))
        assert described.chain == image.chain
    assert len(devices) == 2
    sink = MemorySink()
    await node.catalog.fill(one.device, 0, one.device_size, sink)
    tool = layer.tar.index(FILES["bin/tool"][:100])
    assert bytes(sink.data[4096:40_960]) == layer.tar[tool : tool + 36_864]
