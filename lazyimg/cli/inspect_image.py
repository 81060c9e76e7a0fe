"""An image as its registry, or the place on disk where it is, describes it: without a daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazyimg.api.messages import InspectReply, LayerReport
from lazyimg.cli.reference import registry_access
from lazyimg.layers.locate import LAZY, name_format
from lazyimg.registry.resolve import open_source, parse_platform, resolve_image
from lazyimg.registry.settings import apply_settings, make_client

if TYPE_CHECKING:
    from lazyimg.api.messages import Access
    from lazyimg.config import RegistrySettings
    from lazyimg_formats.oci.reference import Location


async def fetch_description(
    location: Location, platform: str, access: Access, settings: RegistrySettings
) -> InspectReply:
    """Describe an image; nothing is known of what is local.

    Raises:
        LazyimgError: it is not there, not for this platform, or cannot be read.
    """
    async with make_client(settings) as client:
        chosen = apply_settings(registry_access(access), location, settings)
        source, wanted = await open_source(location, client, chosen)
        resolved = await resolve_image(source, wanted, parse_platform(platform))
    return InspectReply(
        reference=str(location),
        digest=str(resolved.descriptor.digest),
        platform=str(resolved.config.platform),
        fsid="",
        bootstrap_size=0,
        layers=[
            LayerReport(
                digest=str(layer.digest),
                media_type=layer.media_type,
                format=name_format(layer),
                size=layer.size,
                index="layer" if name_format(layer) in LAZY else "",
            )
            for layer in resolved.manifest.layers
        ],
    )


async def fetch_raw(location: Location, access: Access, settings: RegistrySettings) -> bytes:
    """Give the bytes of what a reference names: a manifest or an index.

    Raises:
        LazyimgError: it is not there, or cannot be read.
    """
    async with make_client(settings) as client:
        chosen = apply_settings(registry_access(access), location, settings)
        source, wanted = await open_source(location, client, chosen)
        return (await source.fetch_manifest(wanted))[1]
