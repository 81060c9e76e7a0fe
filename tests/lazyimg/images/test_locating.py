"""Where the indexes of layers are: each place is asked for what those before it do not know."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import CorruptError, NotLazyError
from lazyimg.images.library import Library, OwnIndex
from lazyimg.images.locating import InLayers, Locator, OnNode, Sought
from lazyimg.layers.locate import IndexLocation, locate_index
from lazyimg.registry.client import RegistryClient
from lazyimg.registry.resolve import local_platform, resolve_image
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import OCI_LAYER_GZIP, Descriptor, Index, describe
from lazyimg_formats.oci.reference import parse_reference
from tests.fakes.gzip_layer import make_tar
from tests.fakes.lazy_image import LazyLayer, add_lazy_image, make_lazy_layer
from tests.fakes.registry import run_registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from lazyimg.registry.repository import Repository

TAR = make_tar()
PLAIN_LAYER = describe(gzip.compress(TAR, mtime=0), OCI_LAYER_GZIP)
OWN = OwnIndex(
    str(PLAIN_LAYER.digest), str(Digest.of(TAR)), PLAIN_LAYER.size, "sha256:" + "9" * 64, 7
)


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    library = Library(tmp_path / "library.sqlite")
    yield library
    library.close()


@pytest.fixture
async def source() -> AsyncIterator[Repository]:
    async with RegistryClient(environ={}) as client:
        yield client.repository(parse_reference("127.0.0.1:1/app"))


@pytest.fixture
async def lazy() -> LazyLayer:
    return await make_lazy_layer({"a": b"b"})


def sought(*layers: tuple[Descriptor, Digest]) -> Sought:
    manifest = Descriptor(media_type="manifest", digest=Digest.of(b"manifest"), size=8)
    return Sought("image", manifest, tuple(a for a, _ in layers), tuple(b for _, b in layers))


async def test_places_one_after_the_other(
    library: Library, source: Repository, lazy: LazyLayer
) -> None:
    image = sought((PLAIN_LAYER, Digest.of(TAR)), (lazy.descriptor, lazy.diff_id))
    locator = Locator(library)
    inside = locate_index(lazy.descriptor, "layer")
    assert await locator.find(image, source, range(2)) == [None, inside]
    library.add_own_index(OWN)
    own = IndexLocation("gzip", 0, 7, 7, OWN.digest)
    assert await locator.find(image, source, range(2)) == [own, inside]
    assert await locator.locate(image, source, range(2)) == [own, inside]
    assert await locator.locate(image, source, [1]) == [inside]


async def test_layer_without_an_index(library: Library, source: Repository) -> None:
    image = sought(*[(PLAIN_LAYER, Digest.of(TAR))] * 2)
    with pytest.raises(NotLazyError) as caught:
        await Locator(library).locate(image, source, [1])
    assert str(caught.value).startswith("image: layer 2 of 2: a layer of format gzip cannot be")


async def test_annotations_that_are_broken(source: Repository, lazy: LazyLayer) -> None:
    broken = Descriptor(
        media_type=lazy.descriptor.media_type,
        digest=lazy.descriptor.digest,
        size=1,
        annotations=lazy.descriptor.annotations,
    )
    with pytest.raises(CorruptError, match="image: layer 1 of 1"):
        await InLayers().find(sought((broken, lazy.diff_id)), [0], source)


async def test_index_of_this_node_is_for_one_blob_and_one_tar(
    library: Library, source: Repository, lazy: LazyLayer
) -> None:
    library.add_own_index(OWN)
    place = OnNode(library)
    image = sought(
        (PLAIN_LAYER, Digest.of(TAR)),
        (PLAIN_LAYER, Digest.of(b"another tar")),
        (lazy.descriptor, lazy.diff_id),
    )
    assert set(await place.find(image, range(3), source)) == {0}


async def test_what_the_registry_says_of_an_image(lazy: LazyLayer) -> None:
    async with run_registry() as registry, RegistryClient(environ={}) as client:
        manifest = add_lazy_image(registry, "app", "", [lazy])
        top = registry.add_manifest("app", "1", Index(manifests=(manifest,)))
        source = client.repository(parse_reference(f"{registry.host}/app"))
        resolved = await resolve_image(source, "1", local_platform())
    image = Sought.of("app:1", resolved)
    assert image.what == "app:1"
    assert image.manifest.digest == manifest.digest
    assert image.layers == (lazy.descriptor,)
    assert image.diff_ids == (lazy.diff_id,)
    assert [descriptor.digest for descriptor, _ in image.indexes] == [top.digest]
