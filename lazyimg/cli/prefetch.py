"""`lazyimg prefetch`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lazyimg.api.client import rebuild_error
from lazyimg.api.messages import PrefetchRequest
from lazyimg.cli.options import (
    access_options,
    common_options,
    output_option,
    pass_invocation,
    platform_option,
    progress_option,
)
from lazyimg.cli.output import format_size, print_json, print_table, without
from lazyimg.cli.progress import open_meter
from lazyimg.cli.reference import absolute_reference, daemon_access

if TYPE_CHECKING:
    from lazyimg.api.messages import Access, PrefetchEvent
    from lazyimg.cli.invocation import Invocation
    from lazyimg.cli.progress import Meter


@click.command("prefetch")
@click.argument("references", metavar="REF...", nargs=-1, required=True)
@click.option(
    "--path",
    "paths",
    metavar="GLOB",
    multiple=True,
    help="Only the files whose path matches, such as '/usr/lib/**'; may be repeated.",
)
@platform_option
@progress_option
@output_option
@access_options
@common_options
@pass_invocation
def command(
    invocation: Invocation,
    *,
    references: tuple[str, ...],
    paths: tuple[str, ...],
    platform: str,
    progress: str,
    output: str,
    access: Access,
) -> None:
    """Make images local, whole or in part.

    Afterwards they are mounted and read without their registry. They need not be mounted. An image
    that fails does not stop the others; the first failure is the exit code.
    """
    template = PrefetchRequest(references=[], paths=list(paths), platform=platform, access=access)
    with open_meter(progress) as meter:
        last = _prefetch(invocation, references, template, meter)
    whole = [event for event in last if event.error is None]
    if output == "json":
        print_json([without(event, "done", "error") for event in whole])
    elif whole:
        rows = [
            (event.reference, format_size(event.total), format_size(event.fetched))
            for event in whole
        ]
        print_table(("IMAGE", "LOCAL", "FETCHED"), rows)
    failures = [rebuild_error(event.error) for event in last if event.error is not None]
    for failure in failures[1:]:
        click.echo(f"lazyimg: {failure}", err=True)
    if failures:
        raise failures[0]


def _prefetch(
    invocation: Invocation, references: tuple[str, ...], template: PrefetchRequest, meter: Meter
) -> list[PrefetchEvent]:
    """Run the requests, one for each set of credentials; gives each image's last event."""
    by_access: dict[Access, list[str]] = {}
    for reference in references:
        found = daemon_access(template.access, reference)
        by_access.setdefault(found, []).append(absolute_reference(reference))
    client = invocation.client()
    ended = []
    for access, names in by_access.items():
        request = PrefetchRequest(
            references=names, paths=template.paths, platform=template.platform, access=access
        )
        for event in client.prefetch(request):
            if event.error is None:
                meter.update(event.reference, event.present, event.total or None)
            if event.done or event.error is not None:
                ended.append(event)
                if event.error is None:
                    meter.finish(event.reference)
                elif len(references) > 1:  # its error is shown when the others have ended
                    meter.finish(event.reference, "failed")
    return ended
