"""The way in: finds the verb, runs it, and turns every failure into one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from lazyimg.cli.invocation import Invocation
from lazyimg.cli.options import common_options
from lazyimg.errors import LazyimgError, StorageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

INTERRUPTED: Final = 130
"""Exit code after Ctrl-C: 128 and the number of the signal, as shells have it."""

BROKEN_PIPE: Final = 141
"""Exit code when the reader of standard output went away, likewise."""

COMPLETION_VARIABLE: Final = "_LAZYIMG_COMPLETE"


class Verb(NamedTuple):
    """Where a verb's command is, and the one line about it."""

    module: str
    summary: str


VERBS: Final = {
    "convert": Verb("convert", "Copy an image, made lazily loadable."),
    "pull": Verb("pull", "Have containerd know an image, without its layers."),
    "mount": Verb("mount", "Mount an image, or list what is mounted."),
    "umount": Verb("umount", "Unmount images."),
    "fsid": Verb("fsid", "Make an image ready to be mounted by mount(8)."),
    "prefetch": Verb("prefetch", "Make images local, whole or in part."),
    "index": Verb("index", "Have images loaded lazily as they are."),
    "cache": Verb("cache", "Check what was fetched, and repair it."),
    "validate": Verb("validate", "Read an image whole, and check every digest in it."),
    "inspect": Verb("inspect", "Show what an image, a mount or a file is."),
    "status": Verb("status", "Show the daemon, its mounts and containerd's images."),
    "doctor": Verb("doctor", "Check what this machine has and lacks."),
    "setup": Verb("setup", "Set up what calls lazyimg, or runs it."),
    "serve": Verb("serve", "Run the daemon."),
    "login": Verb("login", "Keep a registry's credentials."),
    "logout": Verb("logout", "Forget a registry's credentials."),
    "config": Verb("config", "Print the configuration."),
    "completion": Verb("completion", "Print a shell's completion script."),
}

ALIASES: Final = {"rpull": "pull", "unmount": "umount"}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  the base class's
        """Give the verbs in the order of their table."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a verb's command; None if there is no such verb."""
        verb = VERBS.get(ALIASES.get(cmd_name, cmd_name))
        if verb is None:
            return None
        command: click.Command = importlib.import_module(f"lazyimg.cli.{verb.module}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the verbs' lines without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.summary) for name, verb in VERBS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, _, value: _print_version(ctx) if value else None,
    help="Print the version.",
)
@common_options
def root() -> None:
    """Mount container images at once, and fetch each byte when it is read."""


def _print_version(ctx: click.Context) -> None:
    from importlib.metadata import version  # noqa: PLC0415  not needed by anything else

    click.echo(f"lazyimg {version('lazyimg')}")
    ctx.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; gives its exit code."""
    invocation = Invocation()
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments), invocation)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that the flush at exit has no complaint
        return BROKEN_PIPE
    except (KeyboardInterrupt, click.Abort):
        return _fail(INTERRUPTED, "interrupted", invocation)
    except Exception as error:
        return _fail(*_describe(error), invocation)
    return code


def _run(arguments: list[str], invocation: Invocation) -> int:
    instruction = os.environ.get(COMPLETION_VARIABLE)
    if instruction:
        from click.shell_completion import shell_complete  # noqa: PLC0415  only for completion

        return shell_complete(root, {}, "lazyimg", COMPLETION_VARIABLE, instruction)
    try:
        with root.make_context("lazyimg", arguments, obj=invocation) as context:
            code = root.invoke(context)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return UsageError.exit_code
    return code if isinstance(code, int) else 0


def _describe(error: Exception) -> tuple[int, str]:
    """Give the exit code and the text for a failure."""
    if isinstance(error, LazyimgError):
        return error.exit_code, str(error)
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "lazyimg"
        verb = path.removeprefix("lazyimg").strip()
        message = " ".join(error.format_message().split()).rstrip(".")
        message = message[:1].lower() + message[1:]
        text = f"{verb}: {message}" if verb else message
        return UsageError.exit_code, f"{text}; '{path} --help' shows how"
    if isinstance(error, click.ClickException):
        return LazyimgError.exit_code, error.format_message()
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return StorageError.exit_code, f"{where}{error.strerror}"
    name = type(error).__name__
    return LazyimgError.exit_code, f"internal error: {name}: {error}; --debug shows where"


def _fail(code: int, text: str, invocation: Invocation) -> int:
    if invocation.debug and code != INTERRUPTED:
        traceback.print_exc()
    from lazyimg.cli.output import show  # noqa: PLC0415  what succeeds without it is quicker

    line = " ".join(text.split())
    try:
        click.echo(f"lazyimg: {show(line)}", err=True)
    except BrokenPipeError:
        return code
    return code
