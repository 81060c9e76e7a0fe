"""What is known of an image on this node."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lazyimg.images.image import ImageLayer
from lazyimg.images.library import LayerClaim
from lazyimg.layers.locate import locate_index
from lazyimg.registry.client import RegistryClient
from lazyimg_formats.oci.reference import parse_reference
from tests.fakes.lazy_image import make_lazy_layer

if TYPE_CHECKING:
    from lazyimg.registry.ports import ImageSource


async def test_claim_of_a_layer() -> None:
    layer = await make_lazy_layer({"a": b"b"})
    location = locate_index(layer.descriptor, "layer")
    async with RegistryClient(environ={}) as client:
        source: ImageSource = client.repository(parse_reference("127.0.0.1:1/app"))
        found = ImageLayer(source, layer.descriptor, str(layer.diff_id), location, Path("index"))
    assert found.claim == LayerClaim(
        str(layer.descriptor.digest), str(layer.diff_id), location.digest.removeprefix("sha256:")
    )
