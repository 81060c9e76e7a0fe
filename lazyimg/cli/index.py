"""`lazyimg index`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click
import msgspec

from lazyimg.api.messages import ImageRequest, PushIndexRequest
from lazyimg.cli.options import (
    access_options,
    common_options,
    output_option,
    pass_invocation,
    platform_option,
)
from lazyimg.cli.output import format_size, print_json, print_line, print_table, show
from lazyimg.cli.reference import absolute_reference, daemon_access
from lazyimg.errors import UsageError

if TYPE_CHECKING:
    from lazyimg.api.messages import Access, IndexReport, PushIndexReply
    from lazyimg.cli.invocation import Invocation


@click.group("index")
def command() -> None:
    """Have images loaded lazily as they are."""


EMBED: Final = "Also push the image under TAG, with a manifest that commits to the indexes."


@command.command("create", short_help="Make the indexes that an image's layers lack, push them.")
@click.argument("reference", metavar="REF")
@click.option("--local", is_flag=True, help="Keep them on this node, for this node; push nothing.")
@click.option("--embed", metavar="TAG", default="", help=EMBED)
@click.option("--soci", is_flag=True, help="Make and push SOCI indexes instead; needs no daemon.")
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
    embed: str,
    soci: bool,
    platform: str,
    output: str,
    access: Access,
) -> None:
    """Make the indexes that an image's layers lack, and push them to the image's repository.

    Layers compressed with gzip, or with zstd in frames of at most 16 MiB, and those that are not
    compressed, can be loaded lazily as they are, once there is an index of each. To make it, the
    daemon reads the layer's blob once, to its end, and checks its digest and its diff ID; nothing
    of the blob is kept. Layers that have an index themselves need none. This node uses what it has
    made; with --local that is all.

    Other nodes use what was pushed only if their configuration says so (indexes.referrers), because
    nothing commits to it. They use it always for the image that --embed makes: the same layers and
    the same config, and a manifest that names each index by digest. TAG may be the one that REF
    has, which then stands for the new image.

    With --soci, what is made is as the soci snapshotter has it: a SOCI index of version 1 refers to
    the image; one of version 2 is named by the image that --embed makes, which may be in an image
    layout, too. Layers compressed with zstd, and those with sparse files, are left out.
    """
    if local and soci:
        raise UsageError("index", "--soci keeps nothing on this node")
    if soci:
        from lazyimg.cli.index_soci import create_soci  # noqa: PLC0415  not for --help

        create_soci(invocation, reference, platform, access, embed, output)
        return
    if local and embed:
        raise UsageError("index", "--local pushes nothing, so nothing can be embedded")
    request = _request(reference, platform, access)
    reply = invocation.client().create_index(request)
    pushed = None if local else invocation.client().push_index(_push_request(request, embed))
    if output == "json":
        print_json(msgspec.to_builtins(reply) | ({"push": pushed} if pushed else {}))
        return
    rows = [
        (layer.layer[:19], layer.format, format_size(layer.size), _describe(layer))
        for layer in reply.layers
    ]
    print_table(("LAYER", "FORMAT", "SIZE", "INDEX"), rows)
    if pushed is not None:
        _print_push(pushed)


def _describe(layer: IndexReport) -> str:
    if not layer.index:
        return "its own"
    return f"{format_size(layer.index_size)}, {'made' if layer.made else 'was here'}"


@command.command("push", short_help="Push the indexes that this node has made.")
@click.argument("reference", metavar="REF")
@click.option("--embed", metavar="TAG", default="", help=EMBED)
@platform_option
@output_option
@access_options
@common_options
@pass_invocation
def push(
    invocation: Invocation,
    *,
    reference: str,
    embed: str,
    platform: str,
    output: str,
    access: Access,
) -> None:
    """Push the indexes that this node has made of an image's layers to the image's repository.

    They become an artifact that refers to the image's manifest: see `lazyimg index create`.
    """
    request = _push_request(_request(reference, platform, access), embed)
    reply = invocation.client().push_index(request)
    if output == "json":
        print_json(reply)
    else:
        _print_push(reply)


def _push_request(request: ImageRequest, tag: str) -> PushIndexRequest:
    return PushIndexRequest(
        reference=request.reference, platform=request.platform, access=request.access, tag=tag
    )


def _print_push(reply: PushIndexReply) -> None:
    if reply.artifact:
        print_line(f"pushed {reply.artifact}, which refers to {reply.digest}")
    else:
        print_line("nothing to push: each layer has an index itself")
    if reply.tagged:
        print_line(f"tagged {reply.tagged}")


@command.command("ls", short_help="List the indexes of this node, or where those of an image are.")
@click.argument("reference", metavar="[REF]", default="")
@platform_option
@output_option
@access_options
@common_options
@pass_invocation
def list_indexes(
    invocation: Invocation, *, reference: str, platform: str, output: str, access: Access
) -> None:
    """List the indexes that this node has made; or of each layer of REF, where there are some.

    There may be one on this node; the manifest may commit to one; and artifacts that were pushed
    may have some.
    """
    if reference:
        reply = invocation.client().find_indexes(_request(reference, platform, access))
    else:
        reply = invocation.client().indexes()
    if output == "json":
        print_json(reply.layers)
        return
    rows = [(one.layer, format_size(one.size), format_size(one.index_size)) for one in reply.layers]
    if not reference:
        print_table(("LAYER", "SIZE", "INDEX"), rows)
        return
    places = [
        (
            format_size(one.index_size) if one.index else "-",
            "yes" if one.committed else "-",
            ", ".join(digest[:19] for digest in one.pushed) or "-",
        )
        for one in reply.layers
    ]
    print_table(
        ("LAYER", "FORMAT", "NODE", "MANIFEST", "PUSHED"),
        [
            (one.layer[:19], one.format, *place)
            for one, place in zip(reply.layers, places, strict=True)
        ],
    )


@command.command("rm", short_help="Remove indexes that this node has made, or that were pushed.")
@click.argument("reference", metavar="REF")
@click.option("--pushed", is_flag=True, help="Remove what was pushed, and keep this node's.")
@platform_option
@access_options
@common_options
@pass_invocation
def remove(
    invocation: Invocation, *, reference: str, pushed: bool, platform: str, access: Access
) -> None:
    """Remove the indexes that this node has made of an image's layers.

    REF may also be the digest of one layer, as `lazyimg index ls` shows it. What is mounted stays
    mounted.

    --pushed removes the artifacts that refer to REF from the registry instead. Many registries
    remove nothing; then they are no longer listed where lazyimg keeps the list itself, and what the
    registry says is shown.
    """
    request = _request(reference, platform, access)
    if not pushed:
        for layer in invocation.client().remove_index(request).layers:
            print_line(layer.layer)
        return
    reply = invocation.client().unpush_index(request)
    for artifact in reply.artifacts:
        print_line(artifact)
    for problem in reply.problems:
        click.echo(f"not listed any more, but still there: {show(problem)}", err=True)


def _request(reference: str, platform: str, access: Access) -> ImageRequest:
    if reference.startswith(("sha256:", "sha512:")):
        return ImageRequest(reference=reference)
    found = daemon_access(access, reference)
    return ImageRequest(reference=absolute_reference(reference), platform=platform, access=found)
