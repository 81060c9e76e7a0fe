"""`lazyimg config default` and `lazyimg config dump`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lazyimg.cli.options import common_options, output_option, pass_invocation
from lazyimg.cli.output import print_json

if TYPE_CHECKING:
    from lazyimg.cli.invocation import Invocation


@click.group("config")
def command() -> None:
    """Print the configuration."""


@command.command("default", short_help="Print every setting with its default.")
@common_options
def print_default() -> None:
    """Print a configuration file with every setting, its default and what it does."""
    from lazyimg.config import Config  # noqa: PLC0415  --help does without
    from lazyimg.config_file import serialize_config  # noqa: PLC0415

    click.echo(serialize_config(Config(), comments=True), nl=False)


@command.command("dump", short_help="Print what is in effect.")
@output_option
@common_options
@pass_invocation
def print_effective(invocation: Invocation, *, output: str) -> None:
    """Print what is in effect: the file, the environment and the flags put together."""
    from lazyimg.config_file import serialize_config  # noqa: PLC0415  --help does without

    config = invocation.config()
    if output == "json":
        print_json(config)
    else:
        click.echo(serialize_config(config), nl=False)
