"""`lazyimg validate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lazyimg.api.messages import ImageRequest
from lazyimg.cli.options import (
    access_options,
    common_options,
    output_option,
    pass_invocation,
    platform_option,
    progress_option,
)
from lazyimg.cli.output import format_size, print_json, print_line, print_table, short_digest
from lazyimg.cli.progress import open_meter
from lazyimg.cli.reference import absolute_reference, daemon_access, read_location
from lazyimg.errors import CorruptError, DaemonUnavailableError, NotRootError

if TYPE_CHECKING:
    from lazyimg.api.messages import Access, LayerVerdict, ValidateReply
    from lazyimg.cli.invocation import Invocation
    from lazyimg.cli.progress import Meter


@click.command("validate")
@click.argument("reference", metavar="REF")
@platform_option
@progress_option
@output_option
@access_options
@common_options
@pass_invocation
def command(
    invocation: Invocation,
    *,
    reference: str,
    platform: str,
    progress: str,
    output: str,
    access: Access,
) -> None:
    """Read an image whole, and check every digest in it.

    Of each layer: its blob's digest, its tar's (the diff ID), its index's, and that the index, by
    which the layer is loaded lazily, says the same as the tar: entry for entry, and for each span
    that it decodes, from where it is said to lie, to the bytes that are there in the tar. All
    layers are checked, whatever is found. Nothing of the image is kept.

    Without a daemon it does the same, but does not know the indexes that this node has made.

    Exits with 68 if something is not what the image says.
    """
    with open_meter(progress) as meter:
        reply = _validate(invocation, reference, platform, access, meter)
    wrong = [layer for layer in reply.layers if layer.problem]
    if output == "json":
        print_json(reply)
    else:
        _print(reply, wrong)
    if wrong:
        raise CorruptError(
            reply.reference,
            f"{len(wrong)} of {len(reply.layers)} layers are not what the image says",
            "see above",
        )


def _validate(
    invocation: Invocation, reference: str, platform: str, access: Access, meter: Meter
) -> ValidateReply:
    """Ask the daemon; do it here where there is none."""
    request = ImageRequest(
        reference=absolute_reference(reference),
        platform=platform,
        access=daemon_access(access, reference),
    )

    def progress(done: int, total: int) -> None:
        meter.update(reference, done, total)

    try:
        reply = invocation.client().validate(request, progress)
    except (DaemonUnavailableError, NotRootError):
        import asyncio  # noqa: PLC0415  slow to import

        from lazyimg.cli.validate_image import validate_image  # noqa: PLC0415

        settings = invocation.config()
        validated = validate_image(
            read_location(reference), platform, access, settings.registry,
            settings.build.limits(), progress,
        )  # fmt: skip
        reply = asyncio.run(validated)
    meter.finish(reference)
    return reply


def _print(reply: ValidateReply, wrong: list[LayerVerdict]) -> None:
    rows = [
        (
            short_digest(layer.digest),
            layer.format,
            format_size(layer.size),
            short_digest(layer.index) if layer.index else "none",
            "wrong" if layer.problem else "right",
        )
        for layer in reply.layers
    ]
    print_table(("LAYER", "FORMAT", "SIZE", "INDEX", "FOUND"), rows)
    for layer in wrong:
        number = reply.layers.index(layer) + 1
        print_line(f"layer {number} of {len(reply.layers)}, {layer.digest}: {layer.problem}")
