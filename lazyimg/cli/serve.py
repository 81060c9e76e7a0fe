"""`lazyimg serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lazyimg.cli.options import common_options, pass_invocation

if TYPE_CHECKING:
    from lazyimg.cli.invocation import Invocation


@click.command("serve")
@click.option("--root", metavar="DIR", help="Where state and cache are.")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")
@click.option("--log-format", metavar="FORMAT", help="text or json.")
@common_options
@pass_invocation
def command(
    invocation: Invocation,
    *,
    root: str | None,
    log_level: str | None,
    log_format: str | None,
) -> None:
    """Run the daemon.

    It needs root, and a kernel with on-demand cachefiles (see `lazyimg doctor`). It stays in the
    foreground and logs to standard error. SIGTERM ends it.
    """
    config = invocation.config(
        root=str(Path(root).absolute()) if root else None,
        log__level=log_level,
        log__format=log_format,
    )
    from lazyimg.app import run  # noqa: PLC0415  a wrong configuration is said before this is paid
    from lazyimg.logs import configure_logs  # noqa: PLC0415

    configure_logs(config.log)
    run(config)
