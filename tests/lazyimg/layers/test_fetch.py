"""Fetching a layer's index out of its blob, from a registry."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import pytest

from lazyimg.errors import CorruptError, NotFoundError, StorageError
from lazyimg.layers.fetch import fetch_index
from lazyimg.layers.locate import locate_index
from lazyimg.registry.client import RegistryClient
from lazyimg_formats.oci.reference import parse_reference
from tests.fakes.lazy_image import LazyLayer, make_lazy_layer
from tests.fakes.registry import run_registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from lazyimg.registry.repository import Repository
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
