"""Indexes that a registry has: what the manifest commits to, and what refers to it."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import CorruptError, NotFoundError, NotLazyError
from lazyimg.fill.decode import decode_spans
from lazyimg.images import artifacts
from lazyimg.images.artifacts import Committed, Gone, Referring, list_artifacts
from lazyimg.images.completion import Completer
from lazyimg.images.fetching import MissingIndexError
from lazyimg.images.locating import Sought
from lazyimg.images.service import Images
from lazyimg.layers.locate import IndexLocation
from lazyimg.limits import BuildLimits
from lazyimg.registry.client import RegistryClient
from lazyimg.registry.oci_layout import create_layout
from lazyimg.registry.ports import Access
from lazyimg.registry.resolve import local_platform, resolve_image
from lazyimg.registry.retry import RetryPolicy
from lazyimg_formats.errors import FormatError
from lazyimg_formats.index_artifact import INDEX_DIGEST, embed_index
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.reference import parse_reference
from lazyimg_formats.oci.referrers import add_referrer, referrers_tag
from lazyimg_formats.stream_index import HEADER_SIZE, SPAN_SIZE, parse_header, serialize_header
from tests.fakes.devices import pattern
from tests.fakes.lazy_image import add_lazy_image, make_lazy_layer
from tests.fakes.node import Node, run_node
from tests.fakes.registry import run_registry
from tests.fakes.stored_index import PlainLayer, add_plain_image, lie, refer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from lazyimg.images.image import Image
    from lazyimg.registry.repository import Repository
    from tests.fakes.registry import FakeRegistry

BASE, TOP = PlainLayer({"a": b"b" * 5000}), PlainLayer({"c": b"d" * 5000})
LARGE = PlainLayer({f"file{number}": pattern(40_000, number) for number in range(250)})
SPANS = 3
ACCESS = Access()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with run_registry() as running:
        yield running


@pytest.fixture
async def source(registry: FakeRegistry) -> AsyncIterator[Repository]:
    async with RegistryClient(environ={}, policy=RetryPolicy(attempts=1)) as client:
        yield client.repository(parse_reference(f"{registry.host}/app"))


async def sought(source: Repository) -> Sought:
    return Sought.of("image", await resolve_image(source, "1", local_platform()))


def located(layer: PlainLayer, *, loose: bool = False) -> IndexLocation:
    size, digest = len(layer.index), str(Digest.of(layer.index))
    return IndexLocation("gzip", 0, size, size, digest, artifact=digest, loose=loose)


def missing(*, loose: bool) -> MissingIndexError:
    return MissingIndexError(NotFoundError("app@index", "is not there"), loose=loose)


async def test_what_the_manifest_commits_to(registry: FakeRegistry, source: Repository) -> None:
    add_plain_image(registry, "app", "1", BASE, TOP, committed=True)
    image = await sought(source)
    place = Committed(Gone())
    bottom, top = located(BASE), located(TOP)
    assert await place.find(image, [0, 1], source) == {0: bottom, 1: top}
    assert await place.find(image, [1], source) == {1: top}
    add_plain_image(registry, "app", "1", BASE)
    assert await place.find(await sought(source), [0], source) == {}


async def test_annotations_that_say_nothing(registry: FakeRegistry, source: Repository) -> None:
    add_plain_image(registry, "app", "1", BASE, committed=True)
    image = await sought(source)
    layer = replace(image.layers[0], annotations={INDEX_DIGEST: "sha256:1"})
    with pytest.raises(CorruptError) as caught:
        await Committed(Gone()).find(replace(image, layers=(layer,)), [0], source)
    assert str(caught.value) == "image: layer 1 of 1: index: cannot have a size of ''"


async def test_layer_of_a_format_without_such_indexes(
    registry: FakeRegistry, source: Repository
) -> None:
    lazy = await make_lazy_layer({"a": b"b"})
    manifest = add_lazy_image(registry, "app", "1", [lazy])
    image = await sought(source)
    layers = (embed_index(image.layers[0], BASE.stored),)
    assert await Committed(Gone()).find(replace(image, layers=layers), [0], source) == {}
    refer(registry, "app", manifest, BASE)
    asked = len(registry.asked)
    assert await Referring(Gone()).find(image, [0], source) == {}
    assert len(registry.asked) == asked


@pytest.mark.parametrize("api", [0, 10])
async def test_what_refers_to_the_image(
    registry: FakeRegistry, source: Repository, api: int
) -> None:
    registry.referrers = api
    manifest = add_plain_image(registry, "app", "1", BASE, TOP)
    image = await sought(source)
    clock = Clock()
    place = Referring(Gone(), clock)
    assert await place.find(image, [0, 1], source) == {}
    refer(registry, "app", manifest, BASE)
    assert await place.find(image, [0, 1], source) == {}  # it is not asked for at every turn
    clock.now += artifacts.LIFETIME
    found = {0: located(BASE, loose=True)}
    assert await place.find(image, [0, 1], source) == found
    asked = len(registry.asked)
    assert await place.find(image, [0, 1], source) == found
    assert await place.find(image, [1], source) == {}
    assert len(registry.asked) == asked


async def test_two_artifacts(registry: FakeRegistry, source: Repository) -> None:
    registry.referrers = 10
    manifest = add_plain_image(registry, "app", "1", BASE, TOP)
    made = {refer(registry, "app", manifest, layer).digest for layer in (BASE, TOP)}
    assert set(await list_artifacts(source, manifest.digest)) == made
    found = await Referring(Gone()).find(await sought(source), [0, 1], source)
    assert set(found) == {0, 1}


async def test_artifacts_without_end(
    registry: FakeRegistry, source: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "MAX_ARTIFACTS", 1)
    registry.referrers = 10
    manifest = add_plain_image(registry, "app", "1", BASE, TOP)
    for layer in (BASE, TOP):
        refer(registry, "app", manifest, layer)
    assert len(await list_artifacts(source, manifest.digest)) == 1


async def test_artifact_that_is_none(
    registry: FakeRegistry, source: Repository, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = add_plain_image(registry, "app", "1", BASE)
    other = add_plain_image(registry, "app", "2", TOP)
    wrong = refer(registry, "app", other, TOP)
    kept = registry.manifests["app"]
    kept[referrers_tag(manifest.digest)] = kept[referrers_tag(other.digest)]
    with pytest.raises(CorruptError) as caught:
        await list_artifacts(source, manifest.digest)
    assert str(caught.value) == (
        f"{registry.host}/app@{wrong.digest}: index artifact: refers to another image"
    )
    assert await Referring(Gone()).find(await sought(source), [0], source) == {}
    assert "image: what refers to it cannot be used: " in caplog.text


async def test_registry_that_fails(
    registry: FakeRegistry, source: Repository, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = add_plain_image(registry, "app", "1", BASE)
    refer(registry, "app", manifest, BASE)
    image = await sought(source)
    registry.fail("status", path="/referrers/", status=500)
    assert await Referring(Gone()).find(image, [0], source) == {}
    assert "the registry answers 500" in caplog.text


async def test_source_that_knows_no_referrers(
    registry: FakeRegistry, source: Repository, tmp_path: Path
) -> None:
    add_plain_image(registry, "app", "1", BASE)
    layout = await create_layout(tmp_path / "layout")
    assert await Referring(Gone()).find(await sought(source), [0], layout) == {}


async def test_other_things_that_refer_to_the_image(
    registry: FakeRegistry, source: Repository
) -> None:
    manifest = add_plain_image(registry, "app", "1", BASE)
    signature = replace(manifest, artifact_type="application/vnd.example.signature")
    registry.add_manifest("app", referrers_tag(manifest.digest), add_referrer(None, signature))
    assert await list_artifacts(source, manifest.digest) == {}


async def test_indexes_that_are_gone(
    registry: FakeRegistry, source: Repository, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = add_plain_image(registry, "app", "1", BASE, committed=True)
    refer(registry, "app", manifest, BASE)
    image, clock = await sought(source), Clock()
    gone = Gone(clock)
    committed, referring = Committed(gone), Referring(gone, clock)
    gone.note(image, source, missing(loose=False))
    assert "image: its indexes are not in its repository: app@index: is not there" in caplog.text
    assert await committed.find(image, [0], source) == {}
    assert set(await referring.find(image, [0], source)) == {0}
    gone.note(image, source, missing(loose=True))
    assert await referring.find(image, [0], source) == {}
    clock.now += artifacts.LIFETIME
    assert set(await committed.find(image, [0], source)) == {0}


async def test_no_more_is_remembered_than_allowed(
    registry: FakeRegistry, source: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "_KEPT", 1)
    add_plain_image(registry, "app", "1", BASE)
    one = await sought(source)
    add_plain_image(registry, "app", "1", TOP)
    two = await sought(source)
    gone = Gone()
    place = Referring(gone)
    for image in (one, two):
        gone.note(image, source, missing(loose=False))
        await place.find(image, [0], source)
    assert not gone.knows(one, source, loose=False)
    assert gone.knows(two, source, loose=False)
    asked = len(registry.asked)
    await place.find(one, [0], source)
    assert len(registry.asked) > asked


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    async with run_node(tmp_path, monkeypatch) as node:
        yield node


def trusting(node: Node) -> Images:
    """Give the node's images with another configuration."""
    return Images(
        node.root, node.library, node.catalog, node.open_source, referrers="same-repository"
    )


def decode(node: Node, image: Image, layer: PlainLayer) -> dict[int, CorruptError]:
    """Give what is wrong with each span of an image of one layer."""
    record = image.chain.layers[0]
    table = node.catalog.load_table(record.device, record.table)
    return decode_spans(table, range(table.span_count), 0, layer.blob)[1]


async def test_image_that_commits_to_its_indexes_is_lazy(node: Node) -> None:
    add_plain_image(node.registry, "app", "1", BASE, LARGE, committed=True)
    image = await node.images.open(node.reference, "", ACCESS)
    assert node.registry.sent(str(LARGE.descriptor.digest)) == 0
    assert node.registry.sent(str(LARGE.stored.digest)) == len(LARGE.index)
    assert [layer.format for layer in image.chain.layers] == ["gzip", "gzip"]
    assert (await node.images.describe(node.reference, "", ACCESS)).chain == image.chain
    found = await node.images.layers(node.reference, "", ACCESS, 2)
    assert [one.path.read_bytes() for one in found] == [BASE.index, LARGE.index]


async def test_index_made_here_makes_the_same(node: Node) -> None:
    add_plain_image(node.registry, "app", "1", LARGE, committed=True)
    image = await node.images.open(node.reference, "", ACCESS)
    assert decode(node, image, LARGE) == {}
    add_plain_image(node.registry, "app", "2", LARGE)
    reference = f"{node.registry.host}/app:2"
    await node.indexes.create(reference, "", ACCESS)
    assert (await node.images.open(reference, "", ACCESS)).chain == image.chain


async def test_image_that_was_copied_without_its_indexes(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    add_plain_image(node.registry, "app", "1", BASE, TOP, committed=True)
    del node.registry.blobs["app"][str(TOP.stored.digest)]
    with pytest.raises(NotLazyError, match="layer 1 of 2: a layer of format gzip"):
        await node.images.open(node.reference, "", ACCESS)
    assert caplog.text.count("its indexes are not in its repository") == 1
    await node.indexes.create(node.reference, "", ACCESS)
    image = await node.images.open(node.reference, "", ACCESS)
    assert [layer.table for layer in image.chain.layers] == [
        one.stored.digest.hex for one in (BASE, TOP)
    ]
    assert len(await node.images.layers(node.reference, "", ACCESS, 2)) == 2


async def test_index_that_goes_between_two_questions(node: Node) -> None:
    add_plain_image(node.registry, "app", "1", BASE, committed=True)
    resolved = await node.images.resolve(node.reference, ACCESS)
    image = Sought.of(node.reference, resolved)
    assert [one.artifact for one in await node.images.locate(image, ACCESS, 1)] == [
        str(BASE.stored.digest)
    ]
    del node.registry.blobs["app"][str(BASE.stored.digest)]
    with pytest.raises(NotLazyError):
        await node.images.fetch_index(image, ACCESS, 0)
    with pytest.raises(NotLazyError):
        await node.images.layers(node.reference, "", ACCESS, 1)


async def test_what_refers_to_an_image_is_used_only_where_that_is_allowed(node: Node) -> None:
    manifest = add_plain_image(node.registry, "app", "1", LARGE)
    refer(node.registry, "app", manifest, LARGE)
    with pytest.raises(NotLazyError):
        await node.images.open(node.reference, "", ACCESS)
    assert node.registry.count(path="/referrers/") == 0
    image = await trusting(node).open(node.reference, "", ACCESS)
    assert decode(node, image, LARGE) == {}


async def test_what_refers_to_an_image_is_good_for_its_repository_only(node: Node) -> None:
    manifest = add_plain_image(node.registry, "app", "1", BASE)
    refer(node.registry, "app", manifest, BASE)
    add_plain_image(node.registry, "other", "1", BASE)
    here, there = (f"{node.registry.host}/{name}@{manifest.digest}" for name in ("app", "other"))
    images = trusting(node)
    part = await images.open(here, "", ACCESS, 1)
    assert await images.open(here, "", ACCESS, 1) == part
    assert await images.recorded(here, "", 1) == part
    assert await images.find_part(here, 1) == part.chain
    assert await images.find_part(there, 1) is None
    for other in (images, node.images):
        with pytest.raises(NotLazyError):
            await other.open(there, "", ACCESS, 1)
    assert not await node.images.is_ready(here, "", 1)
    with pytest.raises(NotLazyError):  # it was allowed, and is no more
        await node.images.open(here, "", ACCESS, 1)
    assert await node.images.recorded(here, "", 1) == part  # for those who have it mounted


HEADER_FIELDS = {"codec": 8, "blob": 16, "tar": 24, "spans": 32, "windows": 40, "headers": 48}
SPAN_FIELDS = {"offset": (0, "<Q"), "stored": (8, "<I"), "length": (12, "<I"), "window": (16, "<I")}


def change_header(field: str, value: int) -> bytes:
    index = bytearray(LARGE.index)
    struct.pack_into("<Q", index, HEADER_FIELDS[field], value)
    return bytes(index)


def change_span(number: int, field: str, by: int) -> bytes:
    index = bytearray(LARGE.index)
    at, kind = SPAN_FIELDS[field]
    at += len(index) - (SPANS - number) * SPAN_SIZE
    struct.pack_into(kind, index, at, struct.unpack_from(kind, index, at)[0] + by)
    return bytes(index)


BROKEN = {
    "codec": change_header("codec", 99),
    "tar": change_header("tar", 5),
    "spans": change_header("spans", 10**9),
    "windows": change_header("windows", 1 << 40),
    "headers": change_header("headers", 0),
    "past the end": change_span(1, "offset", 1 << 50),
    "over each other": change_span(1, "offset", -600_000),
    "too long": change_span(1, "stored", 1 << 31),
    "another window": change_span(2, "window", 5),
    "cut": LARGE.index[:-1],
    "header only": LARGE.index[:HEADER_SIZE],
    "more": LARGE.index + b"more",
    "zeros": bytes(len(LARGE.index)),
}


async def test_index_that_breaks_its_format(node: Node) -> None:
    for what, index in BROKEN.items():
        add_plain_image(node.registry, "app", "1", lie(LARGE, index), committed=True)
        with pytest.raises((CorruptError, FormatError)) as caught:
            await node.images.open(node.reference, "", ACCESS)
        assert "index" in str(caught.value), what
    assert list((node.root / "bootstraps").iterdir()) == []


async def test_index_of_another_layer(node: Node) -> None:
    add_plain_image(node.registry, "app", "1", lie(BASE, TOP.index), committed=True)
    for _ in range(2):  # as it comes, and as it is kept
        with pytest.raises(CorruptError) as caught:
            await node.images.open(node.reference, "", ACCESS)
        assert str(caught.value) == (
            f"{node.registry.host}/app: index {TOP.stored.digest}: is of {TOP.descriptor.digest},"
            f" {len(TOP.blob)} bytes, not of the layer {BASE.descriptor.digest}"
        )


def with_names(other: PlainLayer) -> bytes:
    """Give the index with the names of another tar, as long as its own."""
    ours, theirs = parse_header(LARGE.index), parse_header(other.index)
    at, there = HEADER_SIZE + ours.windows, HEADER_SIZE + theirs.windows
    head = serialize_header(ours._replace(headers=theirs.headers))
    return b"".join(
        (
            head,
            LARGE.index[HEADER_SIZE:at],
            other.index[there : there + theirs.headers],
            LARGE.index[at + ours.headers :],
        )
    )


EVIL = PlainLayer({f"evil{number}": pattern(40_000, number) for number in range(250)})


LIES = {
    "digest": (LARGE.index[:-24] + bytes(20) + LARGE.index[-4:], {2}),
    "bit": (LARGE.index[:-4] + b"\7" + LARGE.index[-3:], {2}),
    "size": (change_span(2, "stored", -1000), {2}),
    "length": (change_span(1, "length", 1), {1}),
    "names": (with_names(EVIL), set[int]()),
}


async def test_index_that_lies_about_what_is_read(node: Node) -> None:
    for what, (index, wrong) in LIES.items():  # what one repository says concerns no other one
        add_plain_image(node.registry, what, "1", lie(LARGE, index), committed=True)
        image = await node.images.open(f"{node.registry.host}/{what}:1", "", ACCESS)
        assert set(decode(node, image, LARGE)) == wrong, what


async def test_index_that_lies_is_found_when_the_layer_is_checked(node: Node) -> None:
    index, _ = LIES["names"]
    manifest = add_plain_image(node.registry, "app", "1", lie(LARGE, index), committed=True)
    completer = Completer(
        images=node.images, mounts=node.mounts, prefetcher=node.prefetcher, catalog=node.catalog,
        engine=node.engine, presence=node.transport, library=node.library, limits=BuildLimits(),
        rate=1 << 40,
    )  # fmt: skip
    reference = f"{node.registry.host}/app@{manifest.digest}"
    found = await completer.complete(reference, str(local_platform()), 1)
    assert found is not None
    assert "index: " in found.problem
