"""`lazyimg umount`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lazyimg.api.messages import UnmountRequest
from lazyimg.cli.options import common_options, output_option, pass_invocation
from lazyimg.cli.output import print_json, print_line
from lazyimg.errors import DaemonUnavailableError, LazyimgError, NotRootError

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

    `unmount` is the same. Each DIR is what an image was mounted on. Prints them. What was fetched
    stays local. One that fails does not stop the others; the first failure is the exit code.
    """
    replies, failures = _unmount(invocation, directories, lazy=lazy)
    if output == "json":
        print_json(replies)
    else:
        for reply in replies:
            print_line(reply.directory)
    for failure in failures[1:]:
        click.echo(f"lazyimg: {failure}", err=True)
    if failures:
        raise failures[0]


def _unmount(
    invocation: Invocation, directories: tuple[str, ...], *, lazy: bool
) -> tuple[list[UnmountReply], list[LazyimgError]]:
    client = invocation.client()
    replies: list[UnmountReply] = []
    failures: list[LazyimgError] = []
    for each in directories:
        request = UnmountRequest(directory=str(Path(each).resolve()), lazy=lazy)
        try:
            replies.append(client.unmount(request))
        except (DaemonUnavailableError, NotRootError):
            raise
        except LazyimgError as error:
            failures.append(error)
    return replies, failures
