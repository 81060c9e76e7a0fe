"""Fetching a layer's index out of its blob, from a registry."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import msgspec
import pytest

from lazyimg.errors import CorruptError, NotFoundError, NotLazyError, StorageError
from lazyimg.layers.fetch import fetch_index, find_index
from lazyimg.layers.locate import IndexLocation, locate_index
from lazyimg.registry.client import RegistryClient
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.reference import parse_reference
from tests.fakes.lazy_image import LazyLayer, make_lazy_layer
from tests.fakes.registry import run_registry
from tests.fakes.stargz_layer import StargzLayer
from tests.fakes.stored_index import PlainLayer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from lazyimg.registry.ports import ImageSource
    from lazyimg.registry.repository import Repository
    from lazyimg_formats.oci.documents import Descriptor
    from tests.fakes.registry import FakeRegistry


@asynccontextmanager
async def repository() -> AsyncIterator[tuple[FakeRegistry, Repository]]:
    async with run_registry() as registry, RegistryClient(environ={}) as client:
        yield registry, client.repository(parse_reference(f"{registry.host}/app"))


@pytest.fixture
async def layer() -> LazyLayer:
    return await make_lazy_layer({"etc/name": b"lazyimg\n"})


async def test_only_the_index_is_fetched_and_only_once(tmp_path: Path, layer: LazyLayer) -> None:
    location = locate_index(layer.descriptor, "layer")
    async with repository() as (registry, source):
        registry.add_blob("app", layer.blob)
        path = await fetch_index(source, layer.descriptor, location, tmp_path)
        assert path == tmp_path / location.name
        assert path.read_bytes() == layer.index
        assert registry.sent() == len(layer.index)
        assert await fetch_index(source, layer.descriptor, location, tmp_path) == path
        assert registry.count(path="/blobs/") == 1


async def test_same_index_twice_at_once(tmp_path: Path, layer: LazyLayer) -> None:
    location = locate_index(layer.descriptor, "layer")
    async with repository() as (registry, source):
        registry.add_blob("app", layer.blob)
        found = await asyncio.gather(
            *(fetch_index(source, layer.descriptor, location, tmp_path) for _ in range(3))
        )
    assert set(found) == {tmp_path / location.name}
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [layer.index]


async def test_file_that_has_lost_its_bytes_is_fetched_again(
    tmp_path: Path, layer: LazyLayer
) -> None:
    location = locate_index(layer.descriptor, "layer")
    (tmp_path / location.name).write_bytes(bytes(len(layer.index)))
    async with repository() as (registry, source):
        registry.add_blob("app", layer.blob)
        path = await fetch_index(source, layer.descriptor, location, tmp_path)
    assert path.read_bytes() == layer.index


async def test_index_of_another_digest_is_not_kept(tmp_path: Path, layer: LazyLayer) -> None:
    location = locate_index(layer.descriptor, "layer")
    wrong = msgspec.structs.replace(location, offset=location.offset - 1)
    async with repository() as (registry, source):
        registry.add_blob("app", layer.blob)
        with pytest.raises(CorruptError) as caught:
            await fetch_index(source, layer.descriptor, wrong, tmp_path)
        assert str(caught.value) == (
            f"{registry.host}/app: layer {layer.descriptor.digest}: its index does not have the"
            f" digest {location.digest}; convert the image again, or check the registry"
        )
    assert list(tmp_path.iterdir()) == []


async def test_index_that_is_a_blob_of_its_own(tmp_path: Path) -> None:
    layer = PlainLayer({"a": b"b"})
    index, digest = layer.index, str(layer.stored.digest)
    location = IndexLocation("gzip", 0, len(index), len(index), digest, artifact=digest)
    async with repository() as (registry, source):
        with pytest.raises(NotFoundError):
            await fetch_index(source, layer.descriptor, location, tmp_path)
        registry.add_blob("app", index)
        for _ in range(2):
            path = await fetch_index(source, layer.descriptor, location, tmp_path)
            assert (path.name, path.read_bytes()) == (digest.removeprefix("sha256:"), index)
        assert registry.count(path="/blobs/") == 2  # it was not there, then it was
        path.unlink()
        registry.blobs["app"][digest] = index[:-1] + b"x"
        with pytest.raises(CorruptError, match="its index does not have the digest"):
            await fetch_index(source, layer.descriptor, location, tmp_path)


@pytest.mark.parametrize(
    ("index", "problem"),
    [
        (PlainLayer({"c": b"d"}).index, "bytes, not of the layer sha256:"),
        (b"an index", "stream index: 8 bytes are less than a header"),
    ],
)
async def test_index_that_is_not_the_layer_s(tmp_path: Path, index: bytes, problem: str) -> None:
    layer, digest = PlainLayer({"a": b"b"}), str(Digest.of(index))
    location = IndexLocation("gzip", 0, len(index), len(index), digest, artifact=digest)
    async with repository() as (registry, source):
        registry.add_blob("app", index)
        for _ in range(2):  # as it comes, and as it is kept
            with pytest.raises(CorruptError, match=problem):
                await fetch_index(source, layer.descriptor, location, tmp_path)


async def test_index_of_a_format_that_says_not_of_what_it_is(tmp_path: Path) -> None:
    layer, digest = PlainLayer({"a": b"b"}), str(Digest.of(b"an index"))
    location = IndexLocation("another", 0, 8, 8, digest, artifact=digest)
    async with repository() as (registry, source):
        registry.add_blob("app", b"an index")
        path = await fetch_index(source, layer.descriptor, location, tmp_path)
    assert path.read_bytes() == b"an index"


async def test_blob_that_is_not_there(tmp_path: Path, layer: LazyLayer) -> None:
    location = locate_index(layer.descriptor, "layer")
    async with repository() as (_, source):
        with pytest.raises(NotFoundError):
            await fetch_index(source, layer.descriptor, location, tmp_path)
    assert list(tmp_path.iterdir()) == []


async def test_directory_that_is_not_there(tmp_path: Path, layer: LazyLayer) -> None:
    location = locate_index(layer.descriptor, "layer")
    async with repository() as (registry, source):
        registry.add_blob("app", layer.blob)
        with pytest.raises(StorageError, match="cannot be written: No such file or directory"):
            await fetch_index(source, layer.descriptor, location, tmp_path / "none")


async def test_place_that_the_manifest_says(layer: LazyLayer) -> None:
    location = locate_index(layer.descriptor, "layer")
    async with repository() as (registry, source):
        assert await find_index(source, layer.descriptor, location) == location
        assert registry.count(path="/blobs/") == 0


async def test_place_that_the_blob_says(tmp_path: Path) -> None:
    layer = StargzLayer({"etc/name": b"lazyimg\n", "bin/tool": bytes(100_000)})
    location = locate_index(layer.descriptor, "layer")
    async with repository() as (registry, source):
        registry.add_blob("app", layer.blob)
        found = await find_index(source, layer.descriptor, location)
        end = len(layer.blob) - layer.toc_offset
        assert (found.offset, found.length) == (layer.toc_offset, end)
        assert found.name == location.name
        path = await fetch_index(source, layer.descriptor, found, tmp_path)
        assert path.read_bytes() == layer.blob[layer.toc_offset :]
        assert registry.sent() == end + 51
        assert await fetch_index(source, layer.descriptor, found, tmp_path) == path
        assert registry.count(path="/blobs/") == 2


async def test_index_in_another_image() -> None:
    layer = StargzLayer({"etc/name": b"lazyimg\n"}, external=True)
    async with repository() as (registry, source):
        registry.add_blob("app", layer.blob)
        with pytest.raises(NotLazyError) as caught:
            await find_index(source, layer.descriptor, locate_index(layer.descriptor, "layer"))
        assert str(caught.value) == (
            f"{registry.host}/app: layer {layer.descriptor.digest}: an eStargz layer whose table of"
            " contents is in another image; convert the image: lazyimg convert SRC DST"
        )


@pytest.mark.parametrize("cut", [1, 30, 10_000])
async def test_blob_without_a_footer(cut: int) -> None:
    layer = StargzLayer({"etc/name": b"lazyimg\n"})
    layer.blob = layer.blob[:-cut] or b"\x1f\x8b"
    async with repository() as (registry, source):
        registry.add_blob("app", layer.blob)
        with pytest.raises(
            CorruptError, match="eStargz footer: a blob's last bytes are b"
        ) as caught:
            await find_index(source, layer.descriptor, locate_index(layer.descriptor, "layer"))
        assert caught.value.remedy == "convert the image again, or check the registry"


async def test_end_of_a_blob_that_is_wrong_once() -> None:
    """A mirror's; it is told, and the next one is asked."""
    layer = StargzLayer({"etc/name": b"lazyimg\n"})
    source = Mirrors([bytes(51), layer.blob[-51:]])
    found = await find_index(
        cast("ImageSource", source), layer.descriptor, locate_index(layer.descriptor, "layer")
    )
    assert found.offset == layer.toc_offset
    assert source.told == [(len(layer.blob) - 51, 51)]


class Mirrors:
    """Gives one answer after the other."""

    name = "mirrors"

    def __init__(self, answers: list[bytes]) -> None:
        self.answers = answers
        self.told: list[tuple[int, int]] = []

    async def read_blob(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        return self.answers.pop(0)

    def distrust(self, descriptor: Descriptor, offset: int, length: int) -> bool:
        self.told.append((offset, length))
        return True


async def test_index_of_another_digest_where_the_json_has_one(tmp_path: Path) -> None:
    layer = StargzLayer({"etc/name": b"lazyimg\n"})
    other = StargzLayer({"etc/name": b"another\n"})
    location = locate_index(replace(layer.descriptor, annotations=other.annotations), "layer")
    async with repository() as (registry, source):
        registry.add_blob("app", layer.blob)
        found = await find_index(source, layer.descriptor, location)
        with pytest.raises(CorruptError, match=f"does not have the digest {location.digest};"):
            await fetch_index(source, layer.descriptor, found, tmp_path)
    assert list(tmp_path.iterdir()) == []


async def test_index_that_the_node_made_is_fetched_from_nowhere(
    tmp_path: Path, layer: LazyLayer
) -> None:
    location = IndexLocation("gzip", 0, 5, 5, str(Digest.of(b"index")))
    async with repository() as (registry, source):
        with pytest.raises(NotLazyError, match="the index that this node made of it is gone; make"):
            await fetch_index(source, layer.descriptor, location, tmp_path)
        (tmp_path / location.name).write_bytes(b"index")
        path = await fetch_index(source, layer.descriptor, location, tmp_path)
        assert registry.count(path="/blobs/") == 0
    assert path.read_bytes() == b"index"
