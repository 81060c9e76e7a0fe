"""`lazyimg fsid`."""

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
from lazyimg.cli.output import print_json, print_line
from lazyimg.cli.reference import absolute_reference, daemon_access

if TYPE_CHECKING:
    from lazyimg.api.messages import Access
    from lazyimg.cli.invocation import Invocation


@click.command("fsid")
@click.argument("reference", metavar="REF")
@platform_option
@output_option
@access_options
@common_options
@pass_invocation
def command(
    invocation: Invocation, *, reference: str, platform: str, output: str, access: Access
) -> None:
    """Make an image ready to be mounted by mount(8).

    Prints the fsid, and on the next line the whole command, with DIR for the directory. The daemon
    must run while the image is mounted.
    """
    found = daemon_access(access, reference)
    request = ImageRequest(reference=absolute_reference(reference), platform=platform, access=found)
    reply = invocation.client().fsid(request)
    if output == "json":
        print_json(reply)
    else:
        print_line(reply.fsid)
        print_line(reply.command)
