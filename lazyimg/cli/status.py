"""`lazyimg status`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

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
    short_digest,
)

if TYPE_CHECKING:
    from lazyimg.api.messages import (
        CompletionReport,
        HeldReport,
        QuarantineReport,
        SnapshotterReport,
        StatusReply,
        StreamReport,
    )
    from lazyimg.cli.invocation import Invocation

NOT_ASKED: Final = "pulled without saying for which image; `lazyimg pull` does"


@click.command("status")
@output_option
@common_options
@pass_invocation
def command(invocation: Invocation, *, output: str) -> None:
    """Show the daemon, its mounts and containerd's images.

    An image's layers are counted where they came first: the base that it shares with an image
    pulled before is that one's.
    """
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
            *(("downloads", _describe_stream(one)) for one in reply.streams),
            ("mounts", str(len(reply.mounts))),
            *_describe_snapshotter(reply.snapshotter),
        ]
    )
    if reply.mounts:
        print_line("")
        print_mounts(reply.mounts)
    if reply.snapshotter and reply.snapshotter.images:
        print_line("")
        _print_images(reply.snapshotter.images)
    if reply.snapshotter and reply.snapshotter.quarantined:
        print_line("")
        _print_quarantined(reply.snapshotter.quarantined)
    if reply.registries:
        print_line("")
        _print_registries(reply)


def _describe_stream(one: StreamReport) -> str:
    part = f"{format_size(one.done)} of {format_size(one.size)}"
    return f"{one.image}, which has no index: {part}"


def _describe_snapshotter(report: SnapshotterReport | None) -> list[tuple[str, str]]:
    if report is None:
        return []
    lazy, unpacked, containers = (
        sum(getattr(one, name) for one in report.images)
        for name in ("lazy", "unpacked", "containers")
    )
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(report.unpacked.items()))
    total = sum(report.unpacked.values())
    return [
        ("layers", f"{lazy} lazy, {unpacked} unpacked"),
        ("since start", f"{report.lazy} lazy, {total} unpacked{reasons and f': {reasons}'}"),
        ("containers", str(containers)),
        *_describe_completion(report.completion),
    ]


def _describe_completion(report: CompletionReport | None) -> list[tuple[str, str]]:
    if report is None:
        return [("completion", "off: nobody checks what layers hold")]
    state = f"{report.waiting} waiting" if report.waiting else "nothing to do"
    if report.tight:
        state = f"waits for room in the cache, {state}"
    elif report.current:
        state = f"at {report.current}, {report.waiting - 1} more"
    done = f"{report.layers} layers checked, {format_size(report.fetched)} fetched"
    lies = f", {report.lies} not what they should be" if report.lies else ""
    failures = [("not completed", f"{name}: {why}") for name, why in report.failures.items()]
    return [("completion", f"{state}; {done}{lies}"), *failures]


def _print_quarantined(quarantined: list[QuarantineReport]) -> None:
    rows = []
    for one in quarantined:
        rows += [(one.chain, one.reference), ("", f"  {one.problem}")]
    print_table(("MUST NOT BE USED: CHAIN", "IMAGE OF THIS CHAIN"), rows)


def _print_images(images: list[HeldReport]) -> None:
    names = Counter(one.name for one in images)
    rows = []
    for one in images:
        name = one.name.removesuffix(f"@{one.digest}") or "(no name)"
        if one.digest and (names[one.name] > 1 or name != one.name):
            name = f"{name}@{short_digest(one.digest)}"
        rows.append((str(one.lazy), str(one.unpacked), str(one.containers), name))
        if one.unpacked:
            rows.append(("", "", "", f"  {one.problem or NOT_ASKED}"))
    print_table(("LAZY", "UNPACKED", "CONTAINERS", "IMAGE OF THESE LAYERS"), rows)


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
