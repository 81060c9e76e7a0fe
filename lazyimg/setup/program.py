"""The containerd of this machine: its version, and what it makes of a configuration."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from typing import TYPE_CHECKING, Any, Final

from lazyimg.errors import ConfigurationError, LazyimgError, NotFoundError
from lazyimg.setup.settings import parse_version

if TYPE_CHECKING:
    from pathlib import Path

    from lazyimg.setup.settings import Version

ANSWER_LIMIT: Final = 30.0
"""Seconds within which containerd says something about itself."""

RESTART_LIMIT: Final = 120.0
"""Seconds within which systemd has restarted it."""


class Containerd:
    """An installed containerd.

    Attributes:
        program: its path.
        version: of the program.
    """

    def __init__(self, program: str, version: Version) -> None:
        self.program = program
        self.version = version

    def effective(self, file: Path | None = None) -> dict[str, Any]:
        """Give what it makes of a configuration: with its defaults and what the file imports.

        Args:
            file: the configuration; None: the one it uses itself.

        Raises:
            ConfigurationError: it refuses the configuration.
        """
        chosen = ("--config", str(file)) if file else ()
        try:
            text = _run(self.program, *chosen, "config", "dump")
            return tomllib.loads(text)
        except (_FailedError, tomllib.TOMLDecodeError) as error:
            raise ConfigurationError("containerd config dump", str(error)) from error


class _FailedError(Exception):
    """A program that failed; the text is its last line."""


def find_containerd() -> Containerd | None:
    """Give the installed containerd, or None.

    Raises:
        ConfigurationError: it does not say its version.
    """
    program = shutil.which("containerd")
    if program is None:
        return None
    try:
        return Containerd(program, parse_version(_run(program, "--version")))
    except _FailedError as error:
        raise ConfigurationError(f"{program} --version", str(error)) from error


def restart_containerd() -> None:
    """Have systemd restart containerd. Containers run on.

    Raises:
        NotFoundError: there is no systemd.
        LazyimgError: containerd does not start.
    """
    program = shutil.which("systemctl")
    if program is None:
        raise NotFoundError("systemctl", "there is none", "restart containerd by hand")
    try:
        _run(program, "restart", "containerd.service", limit=RESTART_LIMIT)
    except _FailedError as error:
        raise LazyimgError("systemctl restart containerd", str(error)) from error


def _run(*command: str, limit: float = ANSWER_LIMIT) -> str:
    try:
        ended = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=limit,
        )
    except subprocess.TimeoutExpired as error:
        raise _FailedError(f"no answer within {limit:g} s") from error
    except OSError as error:
        raise _FailedError(f"cannot be run: {error.strerror}") from error
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
        raise _FailedError(lines[-1])
    return ended.stdout
