"""`lazyimg doctor`."""

from __future__ import annotations

import asyncio
import os
import shutil
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from lazyimg.cli.options import common_options, output_option, pass_invocation
from lazyimg.cli.output import print_json, print_line
from lazyimg.errors import KernelError

if TYPE_CHECKING:
    from lazyimg.cli.invocation import Invocation
    from lazyimg.host.preflight import Check, Machine

SOCKET: Final = "/run/containerd/containerd.sock"
"""Where a containerd answers, if one runs."""


@click.command("doctor")
@output_option
@common_options
@pass_invocation
def command(invocation: Invocation, *, output: str) -> int:
    """Check what this machine has and lacks.

    Each line is one finding: ok, NO (images cannot be mounted lazily without it) or -- (good to
    have), with the remedy below it. The exit code is 0 if there is no NO.
    """
    from lazyimg.host.preflight import Machine, run_checks  # noqa: PLC0415  --help does without
    from lazyimg.setup import findings, kubelet  # noqa: PLC0415

    config = invocation.config()
    machine = Machine(config.cache_directory, stop_percent=config.cachefiles.bstop)
    checks = [*run_checks(machine), *_check_transports(machine, config.transport)]
    containerd = findings.check_containerd(
        address=config.snapshotter.address, root=str(config.snapshotter_directory)
    )
    if containerd.ok and config.snapshotter.address and Path(SOCKET).exists():
        containerd = _ask_containerd(containerd)
    checks.append(containerd)
    if config.image_service.address:
        service = config.image_service
        checks.append(
            kubelet.check_image_service(address=service.address, containerd=service.containerd)
        )
    if output == "json":
        print_json(checks)
    else:
        _print_checks(checks, shutil.get_terminal_size().columns)
    lacking = any(check.needed and not check.ok for check in checks)
    return KernelError.exit_code if lacking else 0


def _check_transports(machine: Machine, wanted: str) -> list[Check]:
    """Try each transport; one of those that `lazyimg serve` would take is needed."""
    from lazyimg.host.preflight import explain_cachefiles, nearest_directory  # noqa: PLC0415
    from lazyimg.transports.choice import list_transports  # noqa: PLC0415
    from lazyimg.transports.trial import title, try_transports  # noqa: PLC0415

    if os.geteuid() != 0:
        return []  # the finding about root says it
    checks = asyncio.run(try_transports(nearest_directory(machine.cache_directory)))
    names = list_transports(wanted, ())
    titles = {title(name) for name in names}
    if any(check.ok and check.name in titles for check in checks):
        return checks
    needed = [replace(check, needed=check.name in titles) for check in checks]
    return [*needed, *(explain_cachefiles(machine) if "cachefiles" in names else ())]


def _ask_containerd(check: Check) -> Check:
    """Give what is known of containerd, and what is wrong with the one that runs."""
    from lazyimg.containerd.running import find_fault  # noqa: PLC0415  seldom needed
    from lazyimg.setup.settings import NAME  # noqa: PLC0415

    fault = asyncio.run(find_fault(SOCKET, NAME))
    if fault is None:
        return check
    return replace(check, ok=False, detail=f"{fault.what}: {fault.problem}", remedy=fault.remedy)


def _print_checks(checks: list[Check], columns: int) -> None:
    name_width = max(len(check.name) for check in checks)
    for check in checks:
        mark = "ok" if check.ok else "NO" if check.needed else "--"
        paragraphs = [(f"{mark}  {check.name:{name_width}}  ", check.detail)]
        if check.remedy:
            paragraphs.append(("      -> ", check.remedy))
        for start, text in paragraphs:
            print_line(
                textwrap.fill(
                    text,
                    width=max(columns, 60),
                    initial_indent=start,
                    subsequent_indent=" " * len(start),
                    break_long_words=False,
                    break_on_hyphens=False,
                )
            )
