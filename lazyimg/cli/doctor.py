"""`lazyimg doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lazyimg.cli.options import common_options, output_option, pass_invocation
from lazyimg.cli.output import print_json, print_line
from lazyimg.errors import KernelError

if TYPE_CHECKING:
    from lazyimg.cli.invocation import Invocation


@click.command("doctor")
@output_option
@common_options
@pass_invocation
def command(invocation: Invocation, *, output: str) -> int:
    """Check what this machine has and lacks.

    Each line is one thing that serving images needs; what is missing comes with its remedy. The
    exit code is 0 if nothing is.
    """
    from lazyimg.host.preflight import check_host  # noqa: PLC0415  --help does without

    checks = check_host(invocation.config().cache_directory)
    if output == "json":
        print_json(checks)
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            print_line(f"{'ok' if check.ok else 'NO':2}  {check.name:{width}}  {check.detail}")
            if not check.ok and check.remedy:
                print_line(f"    {'':{width}}  -> {check.remedy}")
    return 0 if all(check.ok for check in checks) else KernelError.exit_code
