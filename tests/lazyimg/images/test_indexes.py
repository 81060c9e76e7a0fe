"""Images whose layers have no index are mounted once this node has made them."""

from __future__ import annotations

import gzip
import tempfile
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import NotFoundError, NotLazyError, StorageError
from lazyimg.fill.decode import decode_spans
from lazyimg.images import indexes as module
from lazyimg.images.library import LayerClaim
from lazyimg.registry.ports import Access
from lazyimg_formats.device_table import HEADER_SIZE, Codec, find_windows
from lazyimg_formats.oci.digest import Digest
from tests.fakes.devices import pattern
from tests.fakes.gzip_layer import make_tar
from tests.fakes.lazy_image import add_lazy_image, make_lazy_layer
from tests.fakes.node import Node, run_node

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from lazyimg.images.image import Image

ACCESS = Access()
FILES = {f"file{number}": pattern(40_000, number) for number in range(300)}
TAR = make_tar(FILES)
BLOB = gzip.compress(TAR, 1, mtime=0)
DIGEST = str(Digest.of(BLOB))


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    async with run_node(tmp_path, monkeypatch) as node:
        yield node


def add_image(node: Node, layer: bytes) -> None:
    """Put an image of one layer into the registry."""
    node.registry.add_image("app", "1", {layer: TAR})


async def open_image(node: Node) -> Image:
    return await node.images.open(node.reference, "", ACCESS)


async def test_image_is_mounted_from_then_on(node: Node) -> None:
    add_image(node, BLOB)
    with pytest.raises(NotLazyError) as caught:
        await open_image(node)
    assert str(caught.value).endswith("or: lazyimg index create REF --local")
    name, layers = await node.indexes.create(node.reference, "", ACCESS)
    assert name == node.reference
    assert [(str(one.layer.digest), one.format, one.made) for one in layers] == [
        (DIGEST, "tar", True)
    ]
    image = await open_image(node)
    device = image.chain.layers[0].device
    table = await node.catalog.device(device)
    spans = range(table.span_count)
    assert len(spans) == 3
    assert {table.span(number).codec for number in spans} == {Codec.DEFLATE}
    assert decode_spans(table, spans, 0, BLOB)[1] == {}
    assert (await node.images.describe(node.reference, "", ACCESS)).chain == image.chain


async def test_windows_stay_on_the_disk(node: Node) -> None:
    add_image(node, BLOB)
    await node.indexes.create(node.reference, "", ACCESS)
    record = (await open_image(node)).chain.layers[0]
    path = node.root / "tables" / record.table
    data = path.read_bytes()
    table = node.catalog.load_table(record.device, record.table)
    end = find_windows(data[:HEADER_SIZE])
    assert end is not None
    assert len(table.data) == end < len(data)
    assert table.window(1) == TAR[: sum(map(table.span_length, range(1)))][-32768:]
    path.unlink()
    with pytest.raises(StorageError, match="cannot be read: No such file"):
        table.window(1)
    path.write_bytes(data[: end + 10])
    with pytest.raises(StorageError, match="its table cannot be used: zstd frame"):
        decode_spans(table, [1], 0, BLOB)


async def test_second_time_nothing_is_read(node: Node) -> None:
    add_image(node, BLOB)
    await node.indexes.create(node.reference, "", ACCESS)
    read = node.registry.count(path=DIGEST)
    _, layers = await node.indexes.create(node.reference, "", ACCESS)
    assert [one.made for one in layers] == [False]
    assert layers[0].own is not None
    assert node.registry.count(path=DIGEST) == read
    content = node.root / "content" / layers[0].own.digest.partition(":")[2]
    content.unlink()
    _, layers = await node.indexes.create(node.reference, "", ACCESS)
    assert [one.made for one in layers] == [True]
    assert content.exists()


async def test_what_was_made_counts_as_checked(node: Node) -> None:
    add_image(node, BLOB)
    _, layers = await node.indexes.create(node.reference, "", ACCESS)
    own = layers[0].own
    assert own is not None
    claim = LayerClaim(DIGEST, str(Digest.of(TAR)), own.digest.partition(":")[2])
    assert node.library.checked([claim]) == {claim: ""}


async def test_layers_that_have_an_index_are_left_alone(node: Node) -> None:
    lazy = await make_lazy_layer({"a": b"b"})
    add_lazy_image(node.registry, "app", "1", [lazy])
    _, layers = await node.indexes.create(node.reference, "", ACCESS)
    assert [(one.format, one.own, one.made) for one in layers] == [("zstd:chunked", None, False)]
    assert await node.indexes.kept() == []


async def test_list_and_remove(node: Node) -> None:
    add_image(node, BLOB)
    await node.indexes.create(node.reference, "", ACCESS)
    (kept,) = await node.indexes.kept()
    assert (kept.blob, kept.diff_id, kept.blob_size) == (DIGEST, str(Digest.of(TAR)), len(BLOB))
    path = node.root / "content" / kept.digest.partition(":")[2]
    assert path.stat().st_size == kept.size
    assert await node.indexes.remove(node.reference, "", ACCESS) == [kept]
    assert await node.indexes.kept() == []
    assert not path.exists()
    with pytest.raises(NotFoundError, match="this node has made no index of it"):
        await node.indexes.remove(node.reference, "", ACCESS)


async def test_remove_by_the_layer_s_digest(node: Node) -> None:
    add_image(node, BLOB)
    await node.indexes.create(node.reference, "", ACCESS)
    assert [one.blob for one in await node.indexes.remove(DIGEST, "", ACCESS)] == [DIGEST]


async def test_index_that_is_gone(node: Node) -> None:
    add_image(node, BLOB)
    await node.indexes.create(node.reference, "", ACCESS)
    (kept,) = await node.indexes.kept()
    (node.root / "content" / kept.digest.partition(":")[2]).write_bytes(b"damaged")
    with pytest.raises(NotLazyError) as caught:
        await open_image(node)
    assert str(caught.value) == (
        f"{node.registry.host}/app: layer {DIGEST}: the index that this node made of it is gone; "
        "make it again: lazyimg index create REF --local"
    )


async def test_same_blob_that_is_said_to_be_another_tar(node: Node) -> None:
    """An index is for a blob and a diff ID; another image's lie does not get it."""
    add_image(node, BLOB)
    await node.indexes.create(node.reference, "", ACCESS)
    node.registry.add_image("app", "1", {BLOB: b"another tar"})
    with pytest.raises(NotLazyError, match="cannot be loaded lazily"):
        await open_image(node)
    with pytest.raises(Exception, match="diff ID: its tar has"):
        await node.indexes.create(node.reference, "", ACCESS)
    assert len(await node.indexes.kept()) == 1
    assert [path.name for path in (node.root / "content").glob(".*")] == []


async def test_disk_that_fails(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    add_image(node, BLOB)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "sync_directory", refuse)
    with pytest.raises(StorageError, match="cannot be written: No space left on device"):
        await node.indexes.create(node.reference, "", ACCESS)
    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(StorageError, match="content: cannot be written: No space left on device"):
        await node.indexes.create(node.reference, "", ACCESS)
