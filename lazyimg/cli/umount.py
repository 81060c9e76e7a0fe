"""`lazyimg umount`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lazyimg.api.messages import UnmountRequest
from lazyimg.cli.options import common_options, output_option, pass_invocation
from lazyimg.cli.output import print_json, print_line

if TYPE_CHECKING:
    from lazyimg.api.messages import UnmountReply
    from lazyimg.cli.invocation import Invocation


@click.command("umount")
@click.argument("directories", metavar="DIR...", nargs=-1, required=True, type=click.Path())
@click.option("--lazy", is_flag=True, help="Detach it even while it is in use.")
@output_option
@common_options
@pass_invocation
def command(
    invocation: Invocation, *, directories: tuple[str, ...], lazy: bool, output: str
) -> None:
    """Unmount images.

    Each DIR is what an image was mounted on. Prints them. What was fetched stays local.
    """
    replies = asyncio.run(_unmount(invocation, directories, lazy=lazy))
    if output == "json":
        print_json(replies)
    else:
        for reply in replies:
            print_line(reply.directory)


async def _unmount(
    invocation: Invocation, directories: tuple[str, ...], *, lazy: bool
) -> list[UnmountReply]:
    client = invocation.client()
    return [
        await client.unmount(UnmountRequest(directory=str(Path(each).resolve()), lazy=lazy))
        for each in directories
    ]
