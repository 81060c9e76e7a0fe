"""`lazyimg setup containerd` and `lazyimg setup systemd`."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from lazyimg.cli.options import common_options, pass_invocation
from lazyimg.cli.output import print_line, show
from lazyimg.errors import ConfigurationError, UsageError
from lazyimg.setup.settings import CONTAINERD_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lazyimg.cli.invocation import Invocation
    from lazyimg.config import Config
    from lazyimg.setup.change import ConfigurationFile
    from lazyimg.setup.program import Containerd
    from lazyimg.setup.settings import Settings

_NOTHING: Final = "nothing to change"


@click.group("setup")
def command() -> None:
    """Set up what calls lazyimg, or runs it."""


@command.command("systemd", short_help="Print a unit for systemd.")
@click.option("--print", is_flag=True, required=True, help="Print the unit.")
@common_options
def set_up_systemd(**_: bool) -> None:
    """Print lazyimg.service, the unit with which systemd runs the daemon.

    It starts before containerd, which starts without it, too.
    """
    from lazyimg.setup.unit import serialize_unit  # noqa: PLC0415  --help does without

    program = shutil.which("lazyimg")
    start = [os.path.abspath(program)] if program else [sys.executable, "-m", "lazyimg"]  # noqa: PTH100
    click.echo(serialize_unit([*start, "serve"]), nl=False)


@command.command("containerd", short_help="Have containerd call lazyimg.")
@click.option("--print", "print_", is_flag=True, help="Print the lines, to put in by hand.")
@click.option("--diff", is_flag=True, help="Show what --apply would change.")
@click.option("--apply", is_flag=True, help="Put the lines into the file.")
@click.option("--undo", is_flag=True, help="Give the file back what it had before.")
@click.option(
    "--file",
    metavar="FILE",
    type=click.Path(path_type=Path, readable=False),
    default=CONTAINERD_FILE,
    help=f"containerd's configuration.  [{CONTAINERD_FILE}]",
)
@click.option("--restart", is_flag=True, help="Restart containerd if the file was changed.")
@common_options
@pass_invocation
def set_up_containerd(
    invocation: Invocation, /, *, file: Path, restart: bool, **actions: bool
) -> None:
    """Have containerd call lazyimg's snapshotter.

    The lines are those for the containerd that is installed, and for the version of its
    configuration. --apply keeps a copy of the file beside it, and everything else in it; containerd
    has read the result before it replaces the file. --undo restores the file byte for byte.
    containerd is restarted only with --restart; its containers run on.
    """
    chosen = [name.strip("_") for name, given in actions.items() if given]
    if len(chosen) != 1:
        raise UsageError("setup containerd", "expected one of --print, --diff, --apply, --undo")
    if restart and not {"apply", "undo"}.intersection(chosen):
        raise UsageError("setup containerd", "--restart goes with --apply or --undo")
    from lazyimg.setup.change import ConfigurationFile  # noqa: PLC0415  --help does without

    target = ConfigurationFile(Path(os.path.abspath(file)))  # noqa: PTH100  symbolic links matter
    changed = False
    match chosen:
        case ["print"]:
            _Setup(invocation.config(), target).print_lines()
        case ["diff"]:
            _Setup(invocation.config(), target).print_difference()
        case ["apply"]:
            changed = _Setup(invocation.config(), target).apply()
        case ["undo"]:
            changed = target.undo()
            print_line(f"{show(str(target.path))}: {'as it was before' if changed else _NOTHING}")
    if changed:
        _go_on(restart=restart)


def _go_on(*, restart: bool) -> None:
    if restart:
        from lazyimg.setup.program import restart_containerd  # noqa: PLC0415

        restart_containerd()
        print_line("containerd: restarted")
    else:
        print_line("next: restart containerd (systemctl restart containerd; its containers run on)")


class _Setup:
    """What is to be done to one file, on this machine."""

    def __init__(self, config: Config, target: ConfigurationFile) -> None:
        from lazyimg.setup.program import find_containerd  # noqa: PLC0415  --help does without

        if not config.snapshotter.address:
            raise ConfigurationError(
                "snapshotter.address",
                "is not set: there is no snapshotter for containerd to call",
                "set it in lazyimg's configuration, such as to /run/lazyimg/snapshotter.sock",
            )
        self._config = config
        self._target = target
        self._containerd: Containerd | None = find_containerd()
        self._program_version = self._containerd.version if self._containerd else None

    def print_lines(self) -> None:
        """Print what belongs into the file, whatever it has."""
        from lazyimg.setup.edit import serialize_settings  # noqa: PLC0415

        document: Mapping[str, object] = {}
        if self._target.path.exists():
            _, document = self._read()
        version = self._version(document)
        found = self._program_version
        reader = f" of containerd {'.'.join(map(str, found))}" if found else ""
        print_line(f"# For {show(str(self._target.path))}{reader}, version = {version}")
        click.echo(serialize_settings(self._settings(version)), nl=False)

    def print_difference(self) -> None:
        """Print what `apply` would change."""
        from lazyimg.setup.edit import show_changes  # noqa: PLC0415

        text, after = self._plan()
        click.echo(show_changes(str(self._target.path), text, after), nl=False)

    def apply(self) -> bool:
        """Change the file; False if it has all lines."""
        text, after = self._plan()
        name = show(str(self._target.path))
        if after == text:
            print_line(f"{name}: {_NOTHING}")
            return False
        self._target.change(text.encode(), after.encode(), self._check)
        print_line(f"{name}: changed; {show(str(self._target.copy))} is how it was before")
        return True

    def _read(self) -> tuple[str, Mapping[str, object]]:
        from lazyimg.setup.edit import parse_configuration  # noqa: PLC0415

        try:
            text = self._target.read().decode()
        except UnicodeDecodeError as error:
            raise ConfigurationError(str(self._target.path), "is not TOML: not UTF-8") from error
        with _named(self._target.path):
            return text, parse_configuration(text)

    def _version(self, document: Mapping[str, object]) -> int:
        from lazyimg.setup.settings import configuration_version  # noqa: PLC0415

        with _named(self._target.path):
            return configuration_version(document, self._program_version)

    def _settings(self, version: int) -> Settings:
        from lazyimg.setup.settings import settings_for  # noqa: PLC0415

        return settings_for(
            version,
            self._program_version,
            address=self._config.snapshotter.address,
            root=str(self._config.snapshotter_directory),
        )

    def _plan(self) -> tuple[str, str]:
        """Give the file's text, and what it is to be."""
        from lazyimg.setup.edit import edit_configuration  # noqa: PLC0415

        text, document = self._read()
        version = self._version(document)
        with _named(self._target.path):
            after = edit_configuration(text, version, self._settings(version))
        if document.get("imports") and self._containerd is None:
            click.echo(
                f"lazyimg: {show(str(self._target.path))}: imports other files; what they say of"
                " the same tables wins",
                err=True,
            )
        return text, after

    def _check(self, aside: Path) -> None:
        """Have containerd read a file."""
        from lazyimg.setup.settings import missing_lines  # noqa: PLC0415

        if self._containerd is None:
            return
        with _named(self._target.path, "nothing was changed"):
            document = self._containerd.effective(aside)
        lines = missing_lines(document, self._settings(self._version(document)))
        if lines:
            raise ConfigurationError(
                str(self._target.path),
                f"{', '.join(lines)} would have no effect: a file that it imports says otherwise",
                "change that one (--file); nothing was changed",
            )


@contextmanager
def _named(path: Path, remedy: str = "") -> Iterator[None]:
    """Say of which file a problem is."""
    try:
        yield
    except ConfigurationError as error:
        problem = error.problem
        if error.what != "configuration":
            problem = f"{error.what}: {problem}"
        raise ConfigurationError(str(path), problem, error.remedy or remedy) from error
