"""`lazyimg convert`."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from typing import TYPE_CHECKING, Any

import click
import msgspec

from lazyimg.cli.options import (
    ACCESS_FLAGS,
    add_access_flags,
    check_platform,
    common_options,
    output_option,
    pass_invocation,
    progress_option,
    read_access,
)
from lazyimg.cli.output import print_json, print_line
from lazyimg.cli.progress import open_meter
from lazyimg.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lazyimg.api.messages import Access
    from lazyimg.cli.invocation import Invocation
    from lazyimg.cli.progress import Meter
    from lazyimg.config import RegistrySettings
    from lazyimg.convert.ports import Outcome
    from lazyimg.registry.ports import Access as RegistryAccess
    from lazyimg_formats.oci.documents import Descriptor
    from lazyimg_formats.oci.platform import Platform
    from lazyimg_formats.oci.reference import Location

_SIDES = ("src", "dest")


def _two_sides(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags for registries for both sides and for each; gives `source` and `target`."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        both = {name: kwargs.pop(name) for name in ACCESS_FLAGS}
        accesses = []
        for side in _SIDES:
            own = {name: kwargs.pop(f"{side}_{name}") for name in ACCESS_FLAGS}
            accesses.append(read_access({name: own[name] or both[name] for name in ACCESS_FLAGS}))
        return function(*args, source=accesses[0], target=accesses[1], **kwargs)

    decorated: Any = wrapped
    for side in reversed(_SIDES):
        decorated = add_access_flags(decorated, f"{side}-", hidden=True)
    result: Callable[..., Any] = add_access_flags(decorated, "", hidden=False)
    return result


@click.command(
    "convert",
    epilog="Each flag for registries is for both; with src- or dest- in front of its name "
    "(--src-creds, --dest-plain-http), for one.",
)
@click.argument("src", metavar="SRC")
@click.argument("dst", metavar="DST")
@click.option(
    "--platform",
    "platforms",
    metavar="OS/ARCH,...",
    multiple=True,
    help="Which of the image's platforms; may be repeated.  [local]",
)
@click.option("--all-platforms", is_flag=True, help="All of them.")
@click.option(
    "--level",
    type=click.IntRange(1, 22),
    metavar="N",
    default=3,
    help="Of zstd.  [3]",
)
@progress_option
@output_option
@_two_sides
@common_options
@pass_invocation
def command(
    invocation: Invocation,
    *,
    src: str,
    dst: str,
    platforms: tuple[str, ...],
    all_platforms: bool,
    level: int,
    progress: str,
    output: str,
    source: Access,
    target: Access,
) -> None:
    """Copy an image, made lazily loadable.

    SRC and DST are images in registries, or OCI layouts (oci:PATH:TAG). The layers become
    zstd:chunked; uncompressed they stay the same, byte for byte, and so does the image's config.
    Layers that DST already has are left alone. Prints the new digest.
    """
    from lazyimg.cli.reference import read_location, registry_access  # noqa: PLC0415  not for help

    wanted = [each for text in platforms for each in text.split(",")]
    if wanted and all_platforms:
        raise UsageError("convert", "--platform and --all-platforms exclude each other")
    chosen = [] if all_platforms else [_platform(text) for text in wanted or ["local"]]
    with open_meter(progress) as meter:
        shown = _LayerProgress(meter)
        made = asyncio.run(
            _convert(
                (read_location(src), registry_access(source)),
                (read_location(dst), registry_access(target)),
                platforms=chosen,
                level=level,
                progress=shown,
                settings=invocation.config().registry,
            )
        )
    if output == "json":
        print_json(_Result(dst, str(made.digest), made.media_type, shown.outcomes))
    else:
        print_line(str(made.digest))


class _Result(msgspec.Struct, frozen=True):
    """What is printed as JSON; `layers` counts them by what became of them."""

    reference: str
    digest: str
    media_type: str
    layers: dict[str, int]


def _platform(text: str) -> Platform:
    from lazyimg.registry.resolve import parse_platform  # noqa: PLC0415  not for --help

    return parse_platform(check_platform(text))


async def _convert(
    source: tuple[Location, RegistryAccess],
    target: tuple[Location, RegistryAccess],
    *,
    platforms: list[Platform],
    level: int,
    progress: _LayerProgress,
    settings: RegistrySettings,
) -> Descriptor:
    from lazyimg.convert.image import convert_image  # noqa: PLC0415  not for --help
    from lazyimg.convert.transfer import Options  # noqa: PLC0415
    from lazyimg.registry.oci_layout import OciLayout  # noqa: PLC0415
    from lazyimg.registry.resolve import open_source, open_target  # noqa: PLC0415
    from lazyimg.registry.settings import apply_settings, make_client  # noqa: PLC0415

    async with make_client(settings) as client:
        reading, writing = (
            apply_settings(access, location, settings) for location, access in (source, target)
        )
        opened, reference = await open_source(source[0], client, reading)
        written, tag = await open_target(target[0], client, writing)
        try:
            return await convert_image(
                opened,
                reference,
                written,
                tag,
                platforms=platforms,
                options=Options(level=level),
                progress=progress,
            )
        except BaseException:  # an interruption too
            if isinstance(written, OciLayout):
                await written.take_back()
            raise


class _LayerProgress:
    """Shows each layer as a task of a meter; implements `lazyimg.convert.ports.Progress`."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._read: dict[str, int] = {}
        self._outcomes: Counter[str] = Counter()

    @property
    def outcomes(self) -> dict[str, int]:
        """How many layers were converted, copied, or there already."""
        return dict(sorted(self._outcomes.items()))

    def begin(self, layer: Descriptor) -> None:
        """Show a layer."""
        self._read[_task(layer)] = 0
        self._meter.update(_task(layer), 0, layer.size)

    def advance(self, layer: Descriptor, read: int, written: int) -> None:  # noqa: ARG002  a port
        """Move its bar."""
        self._read[_task(layer)] += read
        self._meter.update(_task(layer), self._read[_task(layer)], layer.size)

    def end(self, layer: Descriptor, outcome: Outcome, whole: str = "") -> None:
        """Say what became of it."""
        self._outcomes[outcome.value] += 1
        note = "is there already" if outcome == "present" else ""
        if whole:
            note = f"done, without tar-split data (podman pulls it whole): {whole}"
        self._meter.finish(_task(layer), note)


def _task(layer: Descriptor) -> str:
    return f"layer {layer.digest.hex[:12]}"
