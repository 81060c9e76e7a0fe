"""`lazyimg status`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lazyimg.cli.mount import print_mounts
from lazyimg.cli.options import common_options, output_option, pass_invocation
from lazyimg.cli.output import (
    format_duration,
    format_size,
    print_facts,
    print_json,
    print_line,
    print_table,
)

if TYPE_CHECKING:
    from lazyimg.api.messages import StatusReply
    from lazyimg.cli.invocation import Invocation


@click.command("status")
@output_option
@common_options
@pass_invocation
def command(invocation: Invocation, *, output: str) -> None:
    """Show the daemon and its mounts."""
    reply = invocation.client().status()
    if output == "json":
        print_json(reply)
        return
    failed = f", {reply.reads_failed} failed" if reply.reads_failed else ""
    print_facts(
        [
            ("version", reply.version),
            ("process", f"{reply.pid}, up {format_duration(reply.uptime)}"),
            ("supervisor", _describe_supervisor(reply)),
            ("transport", reply.transport),
            ("root", reply.root),
            ("reads", f"{reply.reads}{failed}"),
            *([("failed last", reply.failure)] if reply.failure else []),
            ("fetched", f"{format_size(reply.fetched)} in {reply.fetches} requests"),
            ("mounts", str(len(reply.mounts))),
        ]
    )
    if reply.mounts:
        print_line("")
        print_mounts(reply.mounts)
    if reply.registries:
        print_line("")
        _print_registries(reply)


def _print_registries(reply: StatusReply) -> None:
    rows = [
        (
            one.host,
            str(one.requests),
            str(one.failures),
            format_size(one.received),
            f"rests for {format_duration(one.rests)}" if one.rests else "",
        )
        for one in reply.registries
    ]
    print_table(("REGISTRY", "REQUESTS", "FAILED", "RECEIVED", ""), rows)


def _describe_supervisor(reply: StatusReply) -> str:
    if not reply.supervisor:
        return "none: if the process dies, mounts are lost"
    times = "1 time" if reply.restarts == 1 else f"{reply.restarts} times"
    again = f", has started it again {times}" if reply.restarts else ""
    return f"{reply.supervisor}{again}"
