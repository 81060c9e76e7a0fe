"""`lazyimg cache check`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lazyimg.api.messages import CacheCheckRequest
from lazyimg.cli.options import (
    common_options,
    output_option,
    pass_invocation,
    progress_option,
)
from lazyimg.cli.output import format_size, print_json, print_line, print_table
from lazyimg.cli.progress import open_meter
from lazyimg.errors import CorruptError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lazyimg.api.client import Client
    from lazyimg.api.messages import CacheCheckReply, CachedReport
    from lazyimg.cli.invocation import Invocation
    from lazyimg.cli.progress import Meter


@click.group("cache")
def command() -> None:
    """Check what was fetched, and repair it."""


@command.command("check", short_help="Check that what is local is what the images say.")
@click.option("--repair", is_flag=True, help="Have what is wrong fetched again.")
@progress_option
@output_option
@common_options
@pass_invocation
def check(invocation: Invocation, *, repair: bool, progress: str, output: str) -> None:
    """Check that what is local is what the images say.

    Reads all of lazyimg's own cache (not the kernel's, which cachefiles has) from the disk, and
    compares it with the digests of the images. With --repair, what is wrong is fetched again: when
    it is next read, or at once where a mounted image would not ask for it. A mount may go on
    showing what it has read before.

    Exits with 68 if something is wrong and was not repaired.
    """
    client = invocation.client()
    with open_meter(progress) as meter:
        replies = _check(client, client.cache().devices, meter, repair=repair)
    if output == "json":
        print_json(replies)
    else:
        _print(replies)
    left = [reply for reply in replies if reply.repaired < reply.wrong]
    if left:
        size = format_size(sum(reply.wrong - reply.repaired for reply in left))
        raise CorruptError(
            "cache",
            f"{size} are wrong, in {len(left)} of {len(replies)} devices",
            "see above" if repair else "`lazyimg cache check --repair` has them fetched again",
        )


def _check(
    client: Client, devices: Sequence[CachedReport], meter: Meter, *, repair: bool
) -> list[CacheCheckReply]:
    replies = []
    total, done = sum(device.present for device in devices), 0
    for device in devices:
        meter.update("cache", done, total)
        request = CacheCheckRequest(device=device.device, repair=repair)
        try:
            replies.append(client.check_cache(request))
        except NotFoundError:  # it was removed meanwhile
            continue
        finally:
            done += device.present
    meter.update("cache", total, total)
    meter.finish("cache")
    return replies


def _print(replies: Sequence[CacheCheckReply]) -> None:
    """Print the devices that there is something to say about, and the sums."""
    noted = [reply for reply in replies if reply.wrong or reply.problem]
    if noted:
        rows = [
            (
                reply.device[:12],
                format_size(reply.wrong),
                format_size(reply.repaired),
                reply.problem,
            )
            for reply in noted
        ]
        print_table(("DEVICE", "WRONG", "REPAIRED", "PROBLEM"), rows)
    unchecked = sum(reply.unchecked for reply in replies)
    more = f", {format_size(unchecked)} cannot be checked alone" if unchecked else ""
    right = format_size(sum(reply.checked for reply in replies))
    print_line(f"{len(replies)} devices: {right} are right{more}")
