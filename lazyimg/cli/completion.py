"""`lazyimg completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from lazyimg.cli.command import COMPLETION_VARIABLE, root
from lazyimg.cli.options import common_options
from lazyimg.errors import UsageError


@click.command("completion")
@click.argument("shell", metavar="bash|zsh|fish", type=click.Choice(["bash", "zsh", "fish"]))
@common_options
def command(shell: str) -> None:
    """Print a shell's completion script.

    For bash: source <(lazyimg completion bash)
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise UsageError("completion", f"nothing is known about {shell}")
    click.echo(kind(root, {}, "lazyimg", COMPLETION_VARIABLE).source())
