"""`lazyimg index create --soci`: needs no daemon."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from lazyimg.cli.output import format_size, print_json, print_line, print_table
from lazyimg.errors import UsageError

if TYPE_CHECKING:
    from lazyimg.api.messages import Access
    from lazyimg.cli.invocation import Invocation
    from lazyimg.images.soci_publishing import SociPublished
    from lazyimg.registry.ports import Access as RegistryAccess
    from lazyimg_formats.oci.platform import Platform
    from lazyimg_formats.oci.reference import Location


class _Layer(msgspec.Struct, frozen=True):
    """What is printed as JSON of a layer: its zTOC, or why it has none."""

    layer: str
    size: int
    ztoc: str
    ztoc_size: int
    problem: str


class _Result(msgspec.Struct, frozen=True):
    """What is printed as JSON."""

    reference: str
    referring: str
    image: str
    layers: list[_Layer]


def create_soci(  # noqa: PLR0917 - what the command was given
    invocation: Invocation, reference: str, platform: str, access: Access, tag: str, output: str
) -> None:
    """Make an image's SOCI indexes and push them; print what is there now."""
    from lazyimg.cli.reference import read_location, registry_access  # noqa: PLC0415  not for help
    from lazyimg.registry.resolve import parse_platform  # noqa: PLC0415

    made = asyncio.run(
        _publish(
            invocation, read_location(reference), registry_access(access), parse_platform(platform),
            tag,
        )
    )  # fmt: skip
    if output == "json":
        print_json(_describe(reference, made))
        return
    rows = []
    for one in made.layers:
        shown = format_size(one.ztoc.size) if one.ztoc is not None else f"none: {one.problem}"
        rows.append((str(one.layer.digest)[:19], format_size(one.layer.size), shown))
    print_table(("LAYER", "SIZE", "ZTOC"), rows)
    for name, digest in (("refers to it", made.referring), (f"tagged {tag}", made.image)):
        if digest:
            print_line(f"{name}: {digest}")


def _describe(reference: str, made: SociPublished) -> _Result:
    layers = [
        _Layer(
            str(one.layer.digest),
            one.layer.size,
            "" if one.ztoc is None else str(one.ztoc.digest),
            0 if one.ztoc is None else one.ztoc.size,
            one.problem,
        )
        for one in made.layers
    ]
    return _Result(reference, made.referring, made.image, layers)


async def _publish(
    invocation: Invocation,
    location: Location,
    access: RegistryAccess,
    platform: Platform,
    tag: str,
) -> SociPublished:
    from lazyimg.images.soci_publishing import SociPublisher  # noqa: PLC0415  not for --help
    from lazyimg.registry.ports import ImageTarget  # noqa: PLC0415
    from lazyimg.registry.resolve import open_source, resolve_image  # noqa: PLC0415
    from lazyimg.registry.settings import apply_settings, make_client  # noqa: PLC0415

    configuration = invocation.config()
    settings = configuration.registry
    async with make_client(settings) as client:
        source, wanted = await open_source(
            location, client, apply_settings(access, location, settings)
        )
        if not isinstance(source, ImageTarget):
            raise UsageError(str(location), "indexes cannot be written there")
        resolved = await resolve_image(source, wanted, platform)
        publisher = SociPublisher(source, source, configuration.build.limits())
        return await publisher.publish(str(location), resolved, tag)
