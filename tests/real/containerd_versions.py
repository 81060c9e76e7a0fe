"""Later containerds than this machine's, as Debian packages them, each below one directory.

    with running_version("sid", directory, more) as containerd:
        containerd.ctr("image", "pull", "--plain-http", "--snapshotter", "lazyimg", reference)

CRI is off. Needs root and the package runc; `tests.real.debian_packages` has the programs.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.real.debian_packages import unpacked

if TYPE_CHECKING:
    from collections.abc import Iterator

SUITES: Final = ("trixie", "sid")
"""Debian's suites whose containerd is a later one: 1.7, and 2.1 or what has come since."""

INSTALLED: Final = "installed"
"""Stands for this machine's own containerd."""

CONFIGURATION: Final = """\
version = {version}
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = [
  "io.containerd.cri.v1.images",
  "io.containerd.cri.v1.runtime",
  "io.containerd.grpc.v1.cri",
  "io.containerd.internal.v1.opt",
  "io.containerd.nri.v1.nri",
  "io.containerd.podsandbox.controller.v1.podsandbox",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = "{directory}/socket"
"""
START_LIMIT: Final = 60.0
"""Seconds until it must answer."""


@dataclass(frozen=True)
class Containerd:
    """A running containerd.

    Attributes:
        directory: what it keeps, its configuration and its log.
        programs: the directory with containerd and ctr.
    """

    directory: Path
    programs: Path

    @property
    def socket(self) -> Path:
        return self.directory / "socket"

    def ctr(self, *arguments: str | Path) -> str:
        """Run a command of ctr; return what it prints."""
        return self.run(self.programs / "ctr", *arguments)

    def run(self, program: Path, *arguments: str | Path) -> str:
        """Run a client that takes ctr's options; return what it prints."""
        command: list[str | Path] = [program, "--address", self.socket, *arguments]
        ended = subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        assert ended.returncode == 0, f"{arguments}: {ended.stdout}{ended.stderr}"
        return ended.stdout

    @contextmanager
    def mounted(self, image: str, snapshotter: str) -> Iterator[Path]:
        """Mount an image that was unpacked, as it would be a container's root."""
        target = self.directory / "mounted"
        target.mkdir()
        self.ctr("image", "mount", "--snapshotter", snapshotter, image, target)
        try:
            yield target
        finally:
            self.ctr("image", "unmount", "--rm", "--snapshotter", snapshotter, target)
            target.rmdir()

    def snapshots(self, snapshotter: str) -> list[str]:
        """Return a line for each snapshot."""
        return self.ctr("snapshots", "--snapshotter", snapshotter, "list").splitlines()[1:]


def programs_of(suite: str) -> Path:
    """Return the directory with a suite's containerd and ctr."""
    return Path("/usr/bin") if suite == INSTALLED else unpacked(suite, "containerd") / "usr/bin"


def version_of(suite: str) -> tuple[int, int]:
    """Return the first two numbers of the version of a suite's containerd."""
    command: list[str | Path] = [programs_of(suite) / "containerd", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"\bv?(\d+)\.(\d+)", said)
    assert found is not None, said
    return int(found[1]), int(found[2])


def path_with(suite: str) -> str:
    """Return a PATH on which a suite's containerd comes first."""
    return f"{programs_of(suite)}:/usr/sbin:/usr/bin:/sbin:/bin"


@contextmanager
def running_version(suite: str, directory: Path, more: str = "") -> Iterator[Containerd]:
    """Run a suite's containerd until the block ends.

    Args:
        suite: of `SUITES`, or `INSTALLED`.
        directory: made when missing; on a file system that overlayfs takes for writing.
        more: further configuration.
    """
    directory.mkdir(exist_ok=True)
    containerd = Containerd(directory, programs_of(suite))
    version = 2 if version_of(suite) < (2, 0) else 3
    configuration = directory / "config.toml"
    configuration.write_text(CONFIGURATION.format(directory=directory, version=version) + more)
    command: list[str | Path] = [containerd.programs / "containerd", "--config", configuration]
    environment = {**os.environ, "PATH": path_with(suite)}
    with (
        (directory / "log").open("wb") as log,
        subprocess.Popen(command, stderr=log, env=environment) as process,
    ):
        try:
            _wait_until_it_answers(containerd, process)
            yield containerd
        finally:
            process.terminate()


def _wait_until_it_answers(containerd: Containerd, process: subprocess.Popen[bytes]) -> None:
    """Ask for its version until it answers."""
    limit = time.monotonic() + START_LIMIT
    ctr = containerd.programs / "ctr"
    command: list[str | Path] = [ctr, "--address", containerd.socket, "version"]
    while subprocess.run(command, capture_output=True, check=False).returncode:
        assert process.poll() is None, (containerd.directory / "log").read_text()
        assert time.monotonic() < limit, (containerd.directory / "log").read_text()
        time.sleep(0.1)
