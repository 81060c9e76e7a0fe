"""`lazyimg mount`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lazyimg.api.messages import MountRequest
from lazyimg.cli.options import (
    access_options,
    common_options,
    output_option,
    pass_invocation,
    platform_option,
)
from lazyimg.cli.output import format_part, format_size, print_json, print_line, print_table
from lazyimg.cli.reference import absolute_reference, daemon_access
from lazyimg.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from lazyimg.api.messages import Access, MountReport
    from lazyimg.cli.invocation import Invocation


@click.command("mount")
@click.argument("reference", metavar="[REF", required=False)
@click.argument("directory", metavar="DIR]", required=False, type=click.Path(path_type=Path))
@click.option("--rw", "read_write", is_flag=True, help="Writable: changes go to a scratch layer.")
@platform_option
@output_option
@access_options
@common_options
@pass_invocation
def command(
    invocation: Invocation,
    *,
    reference: str | None,
    directory: Path | None,
    read_write: bool,
    platform: str,
    output: str,
    access: Access,
) -> None:
    """Mount an image, or list what is mounted.

    REF is mounted on DIR, an existing directory, at once; what is read is fetched. Only a layer
    that has no index is downloaded first, once. Prints the digest and the directory. Mounting the
    same image on another directory costs nothing. Without arguments, lists the mounts.
    """
    if reference is None:
        mounts = invocation.client().status().mounts
        if output == "json":
            print_json(mounts)
        else:
            print_mounts(mounts)
        return
    if directory is None:
        raise UsageError("mount", "expected REF and DIR, or nothing", "name a directory")
    if not directory.is_dir():
        raise NotFoundError(str(directory), "is no directory", "make it first")
    request = MountRequest(
        reference=absolute_reference(reference),
        directory=str(directory.resolve()),
        read_write=read_write,
        platform=platform,
        access=daemon_access(access, reference),
    )
    reply = invocation.client().mount(request)
    if output == "json":
        print_json(reply)
    else:
        if reply.streamed:
            click.echo(
                f"{format_size(reply.streamed)} were downloaded first, of layers without an index;"
                " they are local now, and have one",
                err=True,
            )
        print_line(f"{reply.digest} {reply.directory}")


def print_mounts(mounts: list[MountReport]) -> None:
    """Print a table of mounts; nothing if there are none."""
    if not mounts:
        return
    rows = [
        (
            mount.reference,
            mount.directory,
            "rw" if mount.read_write else "ro",
            format_size(mount.size),
            format_part(mount.present, mount.size),
            _remark(mount),
        )
        for mount in mounts
    ]
    print_table(("IMAGE", "DIRECTORY", "MODE", "SIZE", "LOCAL", ""), rows)


def _remark(mount: MountReport) -> str:
    if mount.problem:
        return f"not mounted now: {mount.problem}"
    return "who was in it before is in a dead mount" if mount.dead else ""
