"""The real containerd, as Debian packages it, with everything below one directory.

    with running_containerd(directory) as containerd:
        containerd.ctr("image", "import", archive)
        with containerd.mounted("127.0.0.1/name:tag") as root:
            ...

Needs root, the packages containerd and runc, and a directory on a file system on which overlayfs
can have its upper directories.
"""

from __future__ import annotations

import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIGURATION: Final = """\
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = "{directory}/socket"
"""
START_LIMIT: Final = 60.0
"""Seconds until it must answer."""


class Containerd(NamedTuple):
    """A running containerd."""

    directory: Path

    def ctr(self, *arguments: str | Path) -> str:
        """Run a command of ctr; return what it prints."""
        command = ["ctr", "--address", self.directory / "socket", *arguments]
        ended = subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        assert ended.returncode == 0, f"{arguments}: {ended.stderr}"
        return ended.stdout

    @contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        """Mount an image unpacked onto overlayfs, as it would be a container's root."""
        target = self.directory / "mounted"
        target.mkdir()
        self.ctr("image", "mount", image, target)
        try:
            yield target
        finally:
            self.ctr("image", "unmount", "--rm", target)
            target.rmdir()

    def native_tree(self) -> Path:
        """Return the tree of the one image that is unpacked with the native snapshotter."""
        lines = self.ctr("snapshots", "--snapshotter", "native", "list").splitlines()[1:]
        snapshots = {line.split()[0]: line.split()[1:-1] for line in lines}
        (top,) = snapshots.keys() - {parent for parents in snapshots.values() for parent in parents}
        self.ctr("snapshots", "--snapshotter", "native", "view", "seen", top)
        command = self.ctr("snapshots", "--snapshotter", "native", "mounts", "/", "seen").split()
        return Path(command[command.index("bind") + 1])


@contextmanager
def running_containerd(
    directory: Path, more: str = "", *, configuration: str = CONFIGURATION
) -> Iterator[Containerd]:
    """Run containerd until the block ends; what it keeps is below `directory`.

    Args:
        directory: made when missing.
        more: further configuration.
        configuration: names the socket `{directory}/socket`.
    """
    with serving_containerd(directory, more, configuration=configuration) as (containerd, _):
        yield containerd


@contextmanager
def serving_containerd(
    directory: Path, more: str = "", *, configuration: str = CONFIGURATION
) -> Iterator[tuple[Containerd, subprocess.Popen[bytes]]]:
    """Run containerd, as `running_containerd`; gives its process, too, which may be killed."""
    directory.mkdir(exist_ok=True)
    file = directory / "config.toml"
    file.write_text(configuration.replace("{directory}", str(directory)) + more)
    containerd = Containerd(directory)
    with (
        (directory / "log").open("ab") as log,
        subprocess.Popen(["containerd", "--config", file], stderr=log) as process,
    ):
        try:
            wait_until_it_answers(containerd, process)
            yield containerd, process
        finally:
            process.terminate()


def wait_until_it_answers(containerd: Containerd, process: subprocess.Popen[bytes]) -> None:
    """Ask for its version until it answers."""
    limit = time.monotonic() + START_LIMIT
    command = ["ctr", "--address", str(containerd.directory / "socket"), "version"]
    while subprocess.run(command, capture_output=True, check=False).returncode:
        assert process.poll() is None, (containerd.directory / "log").read_text()
        assert time.monotonic() < limit, (containerd.directory / "log").read_text()
        time.sleep(0.1)
