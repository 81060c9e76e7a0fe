"""`lazyimg index`."""

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
)
from lazyimg.cli.output import format_size, print_json, print_line, print_table
from lazyimg.cli.reference import absolute_reference, daemon_access
from lazyimg.errors import UsageError

if TYPE_CHECKING:
    from lazyimg.api.messages import Access, IndexReport
    from lazyimg.cli.invocation import Invocation


@click.group("index")
def command() -> None:
    """Have images loaded lazily as they are."""


@command.command("create", short_help="Make the indexes that an image's layers lack.")
@click.argument("reference", metavar="REF")
@click.option("--local", is_flag=True, help="Keep them on this node, for this node.")
@platform_option
@output_option
@access_options
@common_options
@pass_invocation
def create(
    invocation: Invocation,
    *,
    reference: str,
    local: bool,
    platform: str,
    output: str,
    access: Access,
) -> None:
    """Make the indexes that an image's layers lack.

    Layers compressed with gzip, or with zstd in frames of at most 16 MiB, and those that are not
    compressed, can be loaded lazily as they are, once this node has an index of each. To make it,
    the daemon reads the layer's blob once, to its end, and checks its digest and its diff ID;
    nothing of the blob is kept. Layers that have an index themselves need none.

    --local must be given: so far an index is nowhere else than on the node that made it.
    """
    if not local:
        raise UsageError("index", "where are the indexes to be kept?", "on this node: --local")
    request = _request(reference, platform, access)
    reply = invocation.client().create_index(request)
    if output == "json":
        print_json(reply)
        return
    rows = [
        (layer.layer[:19], layer.format, format_size(layer.size), _describe(layer))
        for layer in reply.layers
    ]
    print_table(("LAYER", "FORMAT", "SIZE", "INDEX"), rows)


def _describe(layer: IndexReport) -> str:
    if not layer.index:
        return "its own"
    return f"{format_size(layer.index_size)}, {'made' if layer.made else 'was here'}"


@command.command("ls", short_help="List the indexes that this node has made.")
@output_option
@common_options
@pass_invocation
def list_indexes(invocation: Invocation, *, output: str) -> None:
    """List the indexes that this node has made."""
    reply = invocation.client().indexes()
    if output == "json":
        print_json(reply.layers)
        return
    rows = [
        (layer.layer, format_size(layer.size), format_size(layer.index_size))
        for layer in reply.layers
    ]
    print_table(("LAYER", "SIZE", "INDEX"), rows)


@command.command("rm", short_help="Remove indexes that this node has made.")
@click.argument("reference", metavar="REF")
@platform_option
@access_options
@common_options
@pass_invocation
def remove(invocation: Invocation, *, reference: str, platform: str, access: Access) -> None:
    """Remove the indexes that this node has made of an image's layers.

    REF may also be the digest of one layer, as `lazyimg index ls` shows it. What is mounted stays
    mounted.
    """
    reply = invocation.client().remove_index(_request(reference, platform, access))
    for layer in reply.layers:
        print_line(layer.layer)


def _request(reference: str, platform: str, access: Access) -> ImageRequest:
    if reference.startswith(("sha256:", "sha512:")):
        return ImageRequest(reference=reference)
    found = daemon_access(access, reference)
    return ImageRequest(reference=absolute_reference(reference), platform=platform, access=found)
