"""Images are read whole, and what is wrong with them is found and kept."""

from __future__ import annotations

import asyncio
import gzip
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import CorruptError, NoPlatformError, NotFoundError, NotLazyError
from lazyimg.images.library import LayerClaim, OwnIndex
from lazyimg.images.nydus_making import NydusMaker
from lazyimg.registry.ports import Access
from lazyimg_formats.device_table import DeviceTable
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.stream_index import HEADER_SIZE, parse_header, serialize_header
from tests.fakes.gzip_layer import make_tar
from tests.fakes.lazy_image import LazyLayer, add_lazy_image, lying_layer, make_lazy_layer
from tests.fakes.node import Node, run_node
from tests.fakes.nydus import NydusImage
from tests.fakes.stargz_layer import StargzLayer
from tests.fakes.stream_layers import make_stream_index

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from lazyimg.images.validation import Validated

ACCESS = Access()
FILES = {"etc/name": b"lazyimg\n", "bin/tool": bytes(range(256)) * 500}
OTHER = {"etc/name": b"planted\n", "bin/tool": bytes(range(256)) * 500}
PROBLEM = "index: b'etc/name', before byte 8: not the bytes of its tar"


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    async with run_node(tmp_path, monkeypatch) as node:
        yield node


@pytest.fixture(scope="module")
def honest() -> LazyLayer:
    return asyncio.run(make_lazy_layer(FILES))


@pytest.fixture(scope="module")
def lie(honest: LazyLayer) -> LazyLayer:
    return lying_layer(honest, asyncio.run(make_lazy_layer(OTHER)))


async def validate(node: Node, platform: str = "") -> Validated:
    return await node.validator.validate(
        node.reference, platform, ACCESS, lambda _done, _total: None
    )


async def test_layers_of_several_formats(node: Node, honest: LazyLayer) -> None:
    stargz, zstd = StargzLayer(FILES), StargzLayer(FILES, zstd=True)
    image = add_lazy_image(node.registry, "app", "1", [honest, stargz, zstd])
    found = await validate(node)
    assert (found.reference, found.digest) == (node.reference, str(image.digest))
    assert [(layer.format, layer.problem) for layer in found.layers] == [
        ("zstd:chunked", ""),
        ("estargz", ""),
        ("zstd:chunked (stargz)", ""),
    ]
    assert all(layer.index for layer in found.layers)
    assert (
        node.library.checked([claim(layer.digest, honest, layer.index) for layer in found.layers])
        == {}
    )


def claim(blob: str, layer: LazyLayer, index: str) -> LayerClaim:
    return LayerClaim(blob, str(layer.diff_id), index.partition(":")[2])


async def test_lying_index_is_said_and_kept(node: Node, honest: LazyLayer, lie: LazyLayer) -> None:
    add_lazy_image(node.registry, "app", "1", [honest, lie, honest])
    found = (await validate(node)).layers
    assert [layer.problem for layer in found] == ["", PROBLEM, ""]
    kept = claim(found[1].digest, lie, found[1].index)
    assert node.library.checked([kept]) == {kept: PROBLEM}


@pytest.mark.parametrize("zstd", [False, True])
async def test_lying_table_of_stargz_snapshotter(node: Node, *, zstd: bool) -> None:
    add_lazy_image(node.registry, "app", "1", [StargzLayer(FILES, zstd=zstd, shifted=True)])
    (found,) = (await validate(node)).layers
    assert found.problem.startswith("index: span 1 of 2, of b'bin/tool': bytes ")


async def test_index_that_this_node_has_made(node: Node) -> None:
    tar = make_tar(FILES)
    node.registry.add_image("app", "1", {gzip.compress(tar): tar})
    assert [(layer.index, layer.problem) for layer in (await validate(node)).layers] == [("", "")]
    await node.indexes.create(node.reference, "", ACCESS)
    (own,) = node.library.own_indexes()
    (found,) = (await validate(node)).layers
    assert (found.index, found.problem) == (own.digest, "")
    (node.root / "content" / own.digest.partition(":")[2]).write_bytes(b"damaged")
    (found,) = (await validate(node)).layers
    assert (found.index, found.problem) == ("", "the index that this node made of it is gone")


async def test_index_of_this_node_that_lies(node: Node) -> None:
    """It has the digest that the records say, so nothing but the tar can tell."""
    tar = make_tar(FILES)
    lie = make_stream_index(make_tar(OTHER), 1000)
    blob = Digest.of(tar)
    header = parse_header(lie)._replace(blob=blob, diff_id=blob)
    lie = serialize_header(header) + lie[HEADER_SIZE:]
    node.registry.add_image("app", "1", {tar: tar})
    own = OwnIndex(str(blob), str(blob), len(tar), str(Digest.of(lie)), len(lie))
    (node.root / "content" / Digest.of(lie).hex).write_bytes(lie)
    node.library.add_own_index(own)
    (found,) = (await validate(node)).layers
    assert (found.index, found.problem) == (
        own.digest,
        "index: span 0, bytes 0 to 1000 of the tar, from b'etc/name' on: not the bytes of its tar",
    )


async def test_index_with_another_digest(node: Node, honest: LazyLayer) -> None:
    """The manifest commits to a table that the blob does not hold; the rest is checked as well."""
    toc = replace(honest.toc, digest=Digest.of(b"other"))
    add_lazy_image(node.registry, "app", "1", [replace(honest, toc=toc)])
    (found,) = (await validate(node)).layers
    assert (found.index, found.problem) == (
        "",
        f"its index does not have the digest {Digest.of(b'other')}",
    )


async def test_table_in_another_image(node: Node) -> None:
    add_lazy_image(node.registry, "app", "1", [StargzLayer(FILES, external=True)])
    (found,) = (await validate(node)).layers
    assert (found.format, found.index, found.problem) == ("estargz", "", "")


async def test_blob_with_other_bytes(node: Node, honest: LazyLayer) -> None:
    add_lazy_image(node.registry, "app", "1", [honest])
    digest = str(Digest.of(honest.blob))
    node.registry.blobs["app"][digest] = honest.blob[:-1] + b"?"
    (found,) = (await validate(node)).layers
    assert "digest" in found.problem
    assert node.library.checked([claim(found.digest, honest, found.index)]) == {}


async def test_images_that_cannot_be_read(node: Node, honest: LazyLayer) -> None:
    with pytest.raises(NotFoundError):
        await validate(node)
    add_lazy_image(node.registry, "app", "1", [honest], "arm64")
    with pytest.raises(NoPlatformError):
        await validate(node, "linux/386")


@pytest.mark.parametrize("name", ["none", "lz4", "zstd", "batch-gzip", "zran"])
async def test_nydus_images(node: Node, name: str) -> None:
    """All chunks are checked, in blobs that the image only refers to as well."""
    NydusImage.of(name).add(node.registry)
    found = (await validate(node)).layers
    assert [layer.problem for layer in found] == [""] * len(found)
    formats = {layer.format for layer in found}
    assert formats == {"nydus", "nydus bootstrap"} | ({"gzip"} if name == "zran" else set())


async def test_nydus_image_that_lies(node: Node) -> None:
    """The bootstrap says of a chunk that it has another digest."""
    image = NydusImage.of("none")
    image.add(node.registry)
    await validate(node)
    tables = [DeviceTable(path.read_bytes()) for path in (node.root / "tables").iterdir()]
    (chunk,) = [table.span(0).digest for table in tables if table.span_count]
    assert image.boot.count(chunk) == 1
    image.boot = image.boot.replace(chunk, bytes(32))
    image.add(node.registry)
    problems = [layer.problem for layer in (await validate(node)).layers]
    assert problems[0].startswith("index: span 0 of ")
    assert problems[1] == ""


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (CorruptError("image", "breaks its format"), "breaks its format"),
        (NotLazyError("a", "b"), ""),
    ],
)
async def test_nydus_image_that_cannot_be_read(
    node: Node, monkeypatch: pytest.MonkeyPatch, error: Exception, problem: str
) -> None:
    """Its blobs are checked all the same."""

    async def make(*_: object) -> None:
        raise error

    monkeypatch.setattr(NydusMaker, "make", make)
    NydusImage.of("none").add(node.registry)
    assert [layer.problem for layer in (await validate(node)).layers] == ["", problem]
