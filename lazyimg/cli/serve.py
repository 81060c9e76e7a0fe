"""`lazyimg serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lazyimg.cli.options import common_options, pass_invocation
from lazyimg.host.open_files import open_standard_files
from lazyimg.host.user import require_root

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

    It needs root, and a kernel with one of the transports (see `lazyimg doctor`). It stays in the
    foreground and logs to standard error. SIGTERM ends it. It is two processes: a small one that
    keeps mounts alive, and one that does the work and is started again when it dies.
    """
    config = invocation.config(
        root=str(Path(root).absolute()) if root else None,
        log__level=log_level,
        log__format=log_format,
    )
    require_root("lazyimg serve")  # now: who is not root may be unable to run what follows
    open_standard_files()
    from lazyimg.supervisor.command import LogSettings, supervisor_command  # noqa: PLC0415
    from lazyimg.worker import worker_command  # noqa: PLC0415

    worker = worker_command(config, debug=invocation.debug)
    command = supervisor_command(worker, LogSettings(config.log.level, config.log.format))
    os.execv(command[0], command)  # noqa: S606  no shell is wanted
