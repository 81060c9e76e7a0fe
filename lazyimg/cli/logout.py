"""`lazyimg logout`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lazyimg.cli.options import common_options, pass_invocation
from lazyimg.cli.output import print_line
from lazyimg.errors import NotFoundError

if TYPE_CHECKING:
    from lazyimg.cli.invocation import Invocation


@click.command("logout")
@click.argument("registry", metavar="[REGISTRY]", default="docker.io")
@click.option(
    "--authfile",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="A file of credentials, like Docker's config.json.",
)
@common_options
@pass_invocation
def command(invocation: Invocation, *, registry: str, authfile: Path | None) -> None:
    """Forget a registry's credentials.

    They are removed from where `login` keeps them.
    """
    configured = invocation.config().registry.authfile
    asyncio.run(_logout(registry, authfile or (Path(configured) if configured else None)))


async def _logout(registry: str, authfile: Path | None) -> None:
    from lazyimg.registry.authfiles import login_file  # noqa: PLC0415
    from lazyimg.registry.credentials import erase_credential  # noqa: PLC0415
    from lazyimg.registry.login import parse_registry  # noqa: PLC0415  --help does without
    from lazyimg.registry.ports import Access  # noqa: PLC0415

    name = parse_registry(registry)
    access = Access(authfile=authfile)
    where = login_file(access, os.environ)
    if not await erase_credential(name, access, os.environ):
        raise NotFoundError(name, f"no credentials are kept in {where}")
    print_line(f"removed from {where}")
