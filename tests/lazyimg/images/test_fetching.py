"""Several indexes are fetched at once, as far as there is room in memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import CorruptError, NotFoundError
from lazyimg.images import fetching
from lazyimg.images.fetching import IndexFetcher
from lazyimg.layers.locate import IndexLocation, locate_index
from lazyimg.registry.client import RegistryClient
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import Descriptor
from lazyimg_formats.oci.reference import parse_reference
from tests.fakes.registry import run_registry
from tests.fakes.stargz_layer import StargzLayer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from lazyimg.registry.repository import Repository

LAYER = Descriptor(media_type="x", digest=Digest.of(b""), size=1)


def location(size: int) -> IndexLocation:
    return IndexLocation("zstd:chunked", 0, size, 1, str(Digest.of(bytes(size))))


@pytest.fixture
async def source() -> AsyncIterator[Repository]:
    async with RegistryClient(environ={}) as client:
        yield client.repository(parse_reference("127.0.0.1:1/app"))


async def test_indexes_share_a_limited_memory(
    source: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now: list[int] = []
    most: list[list[int]] = []

    async def fetch(_: object, __: object, location: IndexLocation, directory: Path) -> Path:
        now.append(location.length)
        most.append(sorted(now))
        await asyncio.sleep(0)
        now.remove(location.length)
        if location.length == 7:
            raise NotFoundError("index", "is gone")
        return directory / str(location.length)

    monkeypatch.setattr(fetching, "fetch_index", fetch)
    monkeypatch.setattr(fetching, "INDEX_MEMORY", 100)
    fetcher = IndexFetcher(tmp_path)
    sizes = [60, 30, 20, 1000, 40, 50]
    found = await fetcher.fetch(source, [LAYER] * 6, list(map(location, sizes)))
    assert found == [tmp_path / str(size) for size in sizes]
    assert [1000] in most
    assert all(sum(together) <= 100 or together == [1000] for together in most)
    assert any(len(together) > 1 for together in most)
    with pytest.raises(NotFoundError):
        await fetcher.fetch(source, [LAYER], [location(7)])
    most.clear()
    await fetcher.fetch(source, [LAYER], [location(1000)])  # what failed has left its room
    assert most == [[1000]]


async def test_indexes_that_are_too_large_together(
    source: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "MAX_INDEXES", 100)
    fetcher = IndexFetcher(tmp_path)
    small = [location(60), location(40)]
    assert await fetcher.complete("image", source, [LAYER] * 2, small) == small
    same = [location(60)] * 3
    assert await fetcher.complete("image", source, [LAYER] * 3, same) == same
    with pytest.raises(CorruptError) as caught:
        await fetcher.complete("image", source, [LAYER] * 2, [location(60), location(41)])
    assert str(caught.value) == "image: its indexes have 101 bytes, at most 100 allowed"


async def test_place_that_stands_at_the_blob_s_end(tmp_path: Path) -> None:
    layer = StargzLayer({"a": b"b"})
    async with run_registry() as registry, RegistryClient(environ={}) as client:
        registry.add_blob("app", layer.blob)
        source = client.repository(parse_reference(f"{registry.host}/app"))
        fetcher = IndexFetcher(tmp_path)
        said = locate_index(layer.descriptor, "layer")
        [found] = await fetcher.complete("image", source, [layer.descriptor], [said])
        assert found.offset == layer.toc_offset
        [path] = await fetcher.fetch(source, [layer.descriptor], [found])
    assert path.read_bytes() == layer.blob[layer.toc_offset :]
