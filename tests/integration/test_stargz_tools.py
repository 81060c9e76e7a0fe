"""Layers as the real stargz-snapshotter converts them: each is what its index says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import NotLazyError
from lazyimg.images.check import CheckReply, CheckRequest, check
from lazyimg.layers.fetch import fetch_index, find_index
from lazyimg.layers.locate import locate_index
from lazyimg.layers.parse import parse_index
from lazyimg.registry.client import RegistryClient
from lazyimg.registry.ports import Access
from lazyimg.registry.resolve import open_source, parse_location, parse_platform, resolve_image
from tests.real.stargz_images import FORMS, StargzImages, stargz_images

if TYPE_CHECKING:
    from pathlib import Path

    from lazyimg.registry.ports import ImageSource
    from lazyimg.registry.resolve import ResolvedImage

AMD64 = parse_platform("linux/amd64")


@pytest.fixture(scope="module")
def images() -> StargzImages:
    return stargz_images()


async def resolve(layout: Path, tag: str) -> tuple[ImageSource, ResolvedImage]:
    async with RegistryClient(environ={}) as client:
        source, wanted = await open_source(parse_location(f"oci:{layout}:{tag}"), client, Access())
    return source, await resolve_image(source, wanted, AMD64)


@pytest.mark.parametrize(
    ("image", "form"), [("nasty", "joined"), *(("nginx", form) for form in FORMS)]
)
async def test_blob_diff_id_and_index_agree(
    images: StargzImages, tmp_path: Path, image: str, form: str
) -> None:
    layout = images.layout(image, form)
    source, resolved = await resolve(layout, form)
    parts = 0
    for layer, diff_id in zip(resolved.manifest.layers, resolved.config.diff_ids, strict=True):
        location = await find_index(source, layer, locate_index(layer, "layer"))
        path = await fetch_index(source, layer, location, tmp_path)
        index = parse_index(location, path.read_bytes())
        parts += index.table.has_parts
        request = CheckRequest(
            str(layer.digest), layer.size, str(diff_id), location, str(path), index.table.name
        )
        blob = (layout / "blobs/sha256" / layer.digest.hex).read_bytes()
        pieces = (blob[at : at + (1 << 20)] for at in range(0, len(blob), 1 << 20))
        assert check(request, pieces) == CheckReply()
    assert (parts > 0) == (form == "joined")


async def test_index_in_another_image(images: StargzImages) -> None:
    source, resolved = await resolve(images.layout("nginx", "external"), "external")
    for layer in resolved.manifest.layers:
        with pytest.raises(NotLazyError, match="table of contents is in another image"):
            await find_index(source, layer, locate_index(layer, "layer"))
