"""Indexes are pushed, listed and removed; an image is made to commit to them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import (
    BadReferenceError,
    CorruptError,
    NotFoundError,
    NotLazyError,
    StorageError,
    UsageError,
)
from lazyimg.images.service import Images
from lazyimg.registry.oci_layout import create_layout
from lazyimg.registry.ports import Access
from lazyimg_formats.index_artifact import INDEX_DIGEST, parse_artifact
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import (
    DOCKER_MANIFEST,
    Index,
    Manifest,
    parse_document,
    serialize_document,
)
from lazyimg_formats.oci.platform import Platform
from tests.fakes.lazy_image import add_lazy_image, make_lazy_layer
from tests.fakes.node import Node, run_node
from tests.fakes.stored_index import PlainLayer, add_plain_image

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from lazyimg_formats.oci.documents import Descriptor

ACCESS = Access()
BASE, TOP = PlainLayer({"a": b"b" * 5000}), PlainLayer({"c": b"d" * 5000})


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    async with run_node(tmp_path, monkeypatch) as node:
        yield node


def manifest(node: Node, reference: str) -> Manifest:
    media_type, data = node.registry.manifests["app"][reference]
    document = parse_document(data, media_type)
    assert isinstance(document, Manifest)
    return document


def forget(node: Node) -> None:
    """Be a node that has made no index, and has fetched nothing."""
    for own in node.library.own_indexes():
        node.library.remove_own_index(own)
    for path in (node.root / "content").iterdir():
        path.unlink()


async def index(node: Node, *layers: PlainLayer) -> Descriptor:
    """Put an image into the registry, and make its indexes."""
    made = add_plain_image(node.registry, "app", "1", *layers)
    await node.indexes.create(node.reference, "", ACCESS)
    return made


async def test_what_is_pushed_refers_to_the_image(node: Node) -> None:
    made = await index(node, BASE, TOP)
    pushed = await node.publisher.push(node.reference, "", ACCESS)
    assert (pushed.reference, pushed.tagged) == (node.reference, "")
    assert pushed.digest == str(made.digest)
    artifact = manifest(node, pushed.artifact)
    stored = {one.descriptor.digest: one.stored for one in (BASE, TOP)}
    assert parse_artifact(artifact, made.digest) == pushed.layers == stored
    for layer in (BASE, TOP):
        assert node.registry.blobs["app"][str(layer.stored.digest)] == layer.index
    assert (await node.publisher.push(node.reference, "", ACCESS)) == pushed
    forget(node)
    images = Images(
        node.root, node.library, node.catalog, node.open_source, referrers="same-repository"
    )
    image = await images.open(node.reference, "", ACCESS)
    assert [one.format for one in image.chain.layers] == ["gzip", "gzip"]


async def test_blobs_that_are_there_are_not_sent_again(node: Node) -> None:
    await index(node, BASE)
    await node.publisher.push(node.reference, "", ACCESS)
    sent = node.registry.count("PATCH") + node.registry.count("PUT", "/blobs/uploads/")
    await node.publisher.push(node.reference, "", ACCESS)
    again = node.registry.count("PATCH") + node.registry.count("PUT", "/blobs/uploads/")
    assert sent == again > 0


@pytest.mark.parametrize("tag", ["2", "1"])
async def test_image_that_commits_to_its_indexes(node: Node, tag: str) -> None:
    old = await index(node, BASE, TOP)
    before = manifest(node, "1")
    pushed = await node.publisher.push(node.reference, "", ACCESS, tag)
    assert pushed.tagged == f"{node.registry.host}/app:{tag}"
    after = manifest(node, tag)
    assert node.registry.manifests["app"][tag] == node.registry.manifests["app"][pushed.digest]
    assert after.config == before.config
    assert [one.digest for one in after.layers] == [one.digest for one in before.layers]
    assert replace(after, layers=()) == replace(before, layers=())
    assert manifest(node, str(old.digest)) == before  # whoever names it by digest still has it
    assert parse_artifact(manifest(node, pushed.artifact), Digest.parse(pushed.digest))
    forget(node)
    image = await node.images.open(pushed.tagged, "", ACCESS)
    assert image.digest == pushed.digest
    assert node.registry.count("PUT", f"/manifests/{tag}") == 1


async def test_image_for_several_platforms(node: Node) -> None:
    """Only the entry of the platform is another one, and loses the data that went with it."""
    images = [add_plain_image(node.registry, "app", "", one) for one in (BASE, TOP)]
    entries = tuple(
        replace(image, platform=Platform("linux", name), extra={"data": "AA==", "x": 1})
        for image, name in zip(images, ("amd64", "arm64"), strict=True)
    )
    inner = node.registry.add_manifest("app", "", Index(manifests=entries))
    node.registry.add_manifest("app", "1", Index(manifests=(inner,), annotations={"a": "b"}))
    await node.indexes.create(node.reference, "linux/amd64", ACCESS)
    pushed = await node.publisher.push(node.reference, "linux/amd64", ACCESS, "2")
    media_type, data = node.registry.manifests["app"]["2"]
    outer = parse_document(data, media_type)
    assert isinstance(outer, Index)
    assert outer.annotations == {"a": "b"}
    media_type, data = node.registry.manifests["app"][str(outer.manifests[0].digest)]
    assert len(data) == outer.manifests[0].size
    made = parse_document(data, media_type)
    assert isinstance(made, Index)
    assert made.manifests[1] == entries[1]
    changed = made.manifests[0]
    assert str(changed.digest) == pushed.digest
    assert (changed.platform, changed.extra) == (entries[0].platform, {"x": 1})
    assert changed.size == len(node.registry.manifests["app"][pushed.digest][1])
    forget(node)
    assert (await node.images.open(pushed.tagged, "linux/amd64", ACCESS)).digest == pushed.digest


async def test_manifest_of_docker_stays_one(node: Node) -> None:
    old = manifest(node, str(add_plain_image(node.registry, "app", "", BASE).digest))
    node.registry.add_manifest("app", "1", replace(old, media_type=DOCKER_MANIFEST))
    await node.indexes.create(node.reference, "", ACCESS)
    await node.publisher.push(node.reference, "", ACCESS, "2")
    media_type, _ = node.registry.manifests["app"]["2"]
    assert media_type == manifest(node, "2").media_type == DOCKER_MANIFEST


async def test_index_that_was_not_made(node: Node) -> None:
    add_plain_image(node.registry, "app", "1", BASE)
    with pytest.raises(NotFoundError) as caught:
        await node.publisher.push(node.reference, "", ACCESS)
    assert str(caught.value) == (
        f"{node.reference}: layer 1 of 1: this node has made no index of it;"
        " make it: lazyimg index create REF"
    )


async def test_index_that_is_gone_or_damaged(node: Node) -> None:
    await index(node, BASE)
    path = node.root / "content" / BASE.stored.digest.hex
    path.write_bytes(BASE.index[:-1] + b"x")
    with pytest.raises(CorruptError, match="DIGEST_INVALID"):
        await node.publisher.push(node.reference, "", ACCESS)
    path.unlink()
    with pytest.raises(StorageError, match="cannot be read: No such file"):
        await node.publisher.push(node.reference, "", ACCESS, "2")
    assert "2" not in node.registry.manifests["app"]


async def test_layers_that_need_no_index(node: Node) -> None:
    lazy = await make_lazy_layer({"a": b"b"})
    add_lazy_image(node.registry, "app", "1", [lazy])
    pushed = await node.publisher.push(node.reference, "", ACCESS, "2")
    assert (pushed.artifact, pushed.layers) == ("", {})
    assert node.registry.manifests["app"]["2"] == node.registry.manifests["app"]["1"]


async def test_tag_that_is_none(node: Node) -> None:
    await index(node, BASE)
    with pytest.raises(BadReferenceError):
        await node.publisher.push(node.reference, "", ACCESS, "a b")
    assert node.registry.count("PUT") == 0


async def test_image_in_no_registry(node: Node, tmp_path: Path) -> None:
    layout = await create_layout(tmp_path / "layout")
    add_plain_image(node.registry, "app", "1", BASE)
    for blob in node.registry.blobs["app"].values():

        async def pieces(data: bytes = blob) -> AsyncIterator[bytes]:
            yield data

        await layout.push_blob(pieces(), partial(Digest.of, blob))
    media_type, data = node.registry.manifests["app"]["1"]
    await layout.push_manifest(data, media_type, "1")
    with pytest.raises(UsageError, match="indexes are pushed to registries only"):
        await node.publisher.push(f"oci:{tmp_path}/layout:1", "", ACCESS)


async def test_where_there_are_indexes(node: Node) -> None:
    await index(node, BASE)
    pushed = await node.publisher.push(node.reference, "", ACCESS, "2")
    name, (found,) = await node.publisher.find(pushed.tagged, "", ACCESS)
    assert name == pushed.tagged
    assert (str(found.layer.digest), found.format) == (str(BASE.descriptor.digest), "gzip")
    assert found.own is not None
    assert found.committed == str(BASE.stored.digest)
    assert found.pushed == (pushed.artifact,)
    forget(node)
    _, (found,) = await node.publisher.find(node.reference, "", ACCESS)
    assert (found.own, found.committed, found.pushed) == (None, "", ())


async def test_commitment_to_nothing(node: Node) -> None:
    add_plain_image(node.registry, "app", "1", BASE)
    old = manifest(node, "1")
    layer = replace(old.layers[0], annotations={INDEX_DIGEST: "none"})
    node.registry.add_manifest("app", "1", replace(old, layers=(layer,)))
    _, (found,) = await node.publisher.find(node.reference, "", ACCESS)
    assert found.committed == ""


@pytest.mark.parametrize("deletes", [True, False])
async def test_remove(node: Node, *, deletes: bool) -> None:
    node.registry.deletes = deletes
    await index(node, BASE)
    pushed = await node.publisher.push(node.reference, "", ACCESS)
    removed, said = await node.publisher.remove(node.reference, "", ACCESS)
    assert removed == [pushed.artifact]
    assert len(said) == (0 if deletes else 1)
    assert all("answers 405" in text for text in said)
    assert (await node.publisher.find(node.reference, "", ACCESS))[1][0].pushed == ()
    with pytest.raises(NotFoundError, match="no index that was pushed refers to it"):
        await node.publisher.remove(node.reference, "", ACCESS)


async def test_same_bytes_wherever_they_are_made(node: Node) -> None:
    await index(node, BASE, TOP)
    first = await node.publisher.push(node.reference, "", ACCESS, "2")
    data = serialize_document(manifest(node, first.artifact))
    forget(node)
    with pytest.raises(NotLazyError):
        await node.images.open(node.reference, "", ACCESS)
    await node.indexes.create(node.reference, "", ACCESS)
    assert await node.publisher.push(node.reference, "", ACCESS, "2") == first
    assert serialize_document(manifest(node, first.artifact)) == data
