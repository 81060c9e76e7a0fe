"""Nydus images from a registry to devices that can be filled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import CorruptError, NotLazyError, StorageError
from lazyimg.images import nydus_making
from lazyimg.registry.ports import Access
from lazyimg.registry.resolve import NYDUS_CONFIG
from lazyimg_formats.erofs.layout import FileType
from lazyimg_formats.erofs.reader import Image as ErofsImage
from tests.fakes.devices import MemorySink
from tests.fakes.node import Node, run_node
from tests.fakes.nydus import (
    BLOBS,
    NydusImage,
    digest,
    merged_files,
    patch,
    sample,
    source_files,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from lazyimg.images.build import BuildRequest
    from lazyimg.images.image import Image

NO_ACCESS = Access()


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    async with run_node(tmp_path, monkeypatch) as running:
        yield running


async def open_image(node: Node, image: NydusImage) -> Image:
    image.add(node.registry)
    return await node.images.open(node.reference, "", NO_ACCESS)


async def read_files(node: Node, image: Image) -> dict[str, bytes]:
    """Give the regular files of an image, its devices filled from the registry."""
    contents = []
    for device, size in {
        layer.device: layer.device_size for layer in image.chain.layers if layer.device_size
    }.items():
        sink = MemorySink()
        await node.catalog.fill(device, 0, size, sink)
        contents.append(bytes(sink.data).ljust(size, b"\0"))
    names = [layer.device for layer in image.chain.layers if layer.device_size]
    data = (node.root / "bootstraps" / image.chain.fsid).read_bytes()
    found = {}
    slots = [slot.tag.decode() for slot in ErofsImage(data).slots]
    erofs = ErofsImage(data, [contents[names.index(tag)] for tag in slots])
    for path, inode in erofs.walk():
        if inode.file_type is FileType.REG_FILE:
            found[path.decode()] = erofs.read(inode)
    return found


@pytest.mark.parametrize("name", ["none", "lz4", "gzip", "zstd", "sha256", "zran"])
async def test_files_come_out_of_every_kind_of_image(node: Node, name: str) -> None:
    image = await open_image(node, NydusImage.of(name))
    assert await read_files(node, image) == source_files()


@pytest.mark.parametrize("contexts", [False, True])
@pytest.mark.parametrize("name", ["batch-none", "batch-lz4", "batch-gzip", "batch-zstd", "zran"])
async def test_contexts_of_the_bootstrap_layer_or_of_the_blob(
    node: Node, name: str, *, contexts: bool
) -> None:
    image = await open_image(node, NydusImage.of(name, contexts=contexts))
    assert len(node.builds) == (1 if contexts else 2)
    assert await read_files(node, image) == source_files()
    kept = {path.name for path in (node.root / "content").iterdir()}
    manifest_and_layer = 2
    assert len(kept) == manifest_and_layer  # no context is kept


async def test_image_of_two_blobs(node: Node) -> None:
    image = await open_image(node, NydusImage.of("merged"))
    assert await read_files(node, image) == merged_files()
    assert [layer.format for layer in image.chain.layers] == ["nydus", "nydus", "nydus bootstrap"]
    assert [layer.first for layer in image.chain.layers] == [0, 0, 0]
    again = await node.images.open(node.reference, "", NO_ACCESS)
    assert again == image
    assert len(node.builds) == 1
    described = await node.images.describe(node.reference, "", NO_ACCESS)
    assert described.chain == image.chain
    assert described.formats == ("nydus", "nydus", "nydus bootstrap")
    assert described.indexes == ("layer",) * 3


async def test_twin_by_its_digest(node: Node) -> None:
    twin = NydusImage.of("merged")
    twin.config_type = NYDUS_CONFIG
    twin.add(node.registry)
    resolved = await node.images.resolve(node.reference, NO_ACCESS)
    pinned = f"{node.registry.host}/app@{resolved.descriptor.digest}"
    image = await node.images.open(pinned, "", NO_ACCESS)
    assert await read_files(node, image) == merged_files()


async def test_image_that_is_only_described(node: Node) -> None:
    NydusImage.of("merged").add(node.registry)
    described = await node.images.describe(node.reference, "", NO_ACCESS)
    assert described.chain is None
    assert described.indexes == ("layer",) * 3


async def test_parts_of_an_image(node: Node) -> None:
    NydusImage.of("merged").add(node.registry)
    resolved = await node.images.resolve(node.reference, NO_ACCESS)
    pinned = f"{node.registry.host}/app@{resolved.descriptor.digest}"
    with pytest.raises(NotLazyError, match="only all of it can be loaded lazily"):
        await node.images.open(pinned, "", NO_ACCESS, 2)


async def test_blob_that_the_manifest_lacks(node: Node) -> None:
    image = NydusImage.of("merged")
    del image.blobs[0]
    with pytest.raises(NotLazyError) as caught:
        await open_image(node, image)
    assert str(caught.value) == (
        f"{node.reference}: a Nydus image whose manifest lacks its blob"
        f" sha256:{digest(sample('toc.blob'))}; convert the image again, or check the registry"
    )


async def test_context_that_the_manifest_lacks(node: Node) -> None:
    image = NydusImage.of("zran")
    image.originals.clear()
    with pytest.raises(NotLazyError, match="lacks the context of blob sha256:a684a609"):
        await open_image(node, image)


async def test_no_bootstrap(node: Node) -> None:
    image = NydusImage.of("zstd")
    image.annotated = False
    with pytest.raises(NotLazyError, match="whose last layer is no bootstrap"):
        await open_image(node, image)


@pytest.mark.parametrize(("offset", "value"), [(112, 1 << 30), (120, 64 << 20)])
async def test_context_that_is_not_in_its_blob(node: Node, offset: int, value: int) -> None:
    image = NydusImage.of("batch-zstd")
    boot = patch(image.boot, BLOBS + 128, "Q", 1 << 30)
    image.boot = patch(boot, BLOBS + offset, "Q", value)
    with pytest.raises(CorruptError, match=r"\d+ bytes of context of blob sha256:\w+ cannot be"):
        await open_image(node, image)


async def test_disk_is_full(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", str(path), None, str(len(data)))

    monkeypatch.setattr(nydus_making, "write_file", write)
    with pytest.raises(StorageError, match="cannot be written: No space left on device"):
        await open_image(node, NydusImage.of("batch-zstd"))


async def test_wrong_context_is_fetched_again_from_elsewhere(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = NydusImage.of("batch-zstd")
    attempts = []
    build = nydus_making.build_image  # type: ignore[attr-defined]

    async def failing(what: str, request: BuildRequest) -> object:
        assert request.nydus is not None
        attempts.append(len(request.nydus.contexts))
        if len(attempts) in wrong and request.nydus.contexts:
            raise CorruptError(what, "wrong bytes")
        return await build(what, request)

    monkeypatch.setattr(nydus_making, "build_image", failing)
    wrong = {2}
    trusted = iter([True, False])
    monkeypatch.setattr("lazyimg.registry.repository.Repository.distrust", lambda *_: next(trusted))
    opened = await open_image(node, image)
    assert attempts == [0, 1, 0, 1]
    assert await read_files(node, opened) == source_files()

    wrong = {6}
    image.files["more"] = b""
    with pytest.raises(CorruptError, match="wrong bytes"):
        await open_image(node, image)
    assert attempts == [0, 1, 0, 1, 0, 1]


async def test_version_5(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own."""
    monkeypatch.undo()
    image = NydusImage(sample("v5.boot"), [sample("zstd.blob")])
    with pytest.raises(NotLazyError) as caught:
        await open_image(node, image)
    assert str(caught.value) == (
        f"{node.registry.host}/app: RAFS: version 5 is not supported, only version 6; convert the"
        " image it was made from: lazyimg convert SRC DST"
    )


async def test_original_that_has_no_digest(node: Node) -> None:
    """The manifest and the bootstrap agree on it."""
    image = NydusImage.of("zran", contexts=True)
    image.boot = patch(image.boot, BLOBS, "64s", b"x" * 64)
    image.original_name = "sha256:" + "x" * 64
    with pytest.raises(CorruptError, match="digest"):
        await open_image(node, image)
