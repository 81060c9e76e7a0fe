"""A node as its users have it: the daemon with its snapshotter, and the real containerd over it.

with running_node(directory) as node:
node.pull(reference)                                # lazily
node.run(reference, "python3", "-c", "print(1)")
"""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tests.real.containerd import Containerd, running_containerd
from tests.real.lazyimg_process import Lazyimg

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

LAZY: Final = "lazyimg"
"""The snapshotter that loads lazily."""

PROXY_PLUGIN: Final = """
[proxy_plugins.lazyimg]
type = "snapshot"
address = "{address}"
"""
LIMIT: Final = 120.0
"""Seconds that a container may take."""


class Ctr(subprocess.Popen[str]):
    """A running ctr, which is killed where its block fails: leaving a block waits for the end."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, error, trace)


class Node(NamedTuple):
    """A running daemon and a running containerd."""

    lazyimg: Lazyimg
    containerd: Containerd
    daemon: subprocess.Popen[bytes]

    def pull(self, image: str, namespace: str = "default") -> dict[str, int]:
        """Pull an image lazily; give how many of its layers became what."""
        socket = self.containerd.directory / "socket"
        where = ("--containerd", socket, "--namespace", namespace)
        printed = self.lazyimg.verb("pull", "--json", *where, image)
        layers: dict[str, int] = json.loads(printed)["layers"]
        return layers

    def run(
        self,
        image: str,
        *command: str,
        snapshotter: str = LAZY,
        name: str = "test",
        options: Sequence[str] = ("--rm",),
    ) -> str:
        """Run a container to its end, which must be a good one; give all that it prints.

        It writes to a file: containerd may lose the end of what a container prints. The file lies
        in /dev, which is no part of its snapshot.
        """
        said = self.lazyimg.root.parent / "said"
        said.write_text("")
        said.chmod(0o666)  # its user may be mapped to another
        mount = ("--mount", f"type=bind,src={said},dst=/dev/said,options=rbind:rw")
        words = ("sh", "-c", 'exec "$@" > /dev/said 2>&1', "sh", *command)
        with self.start(
            image, *words, snapshotter=snapshotter, name=name, options=(*options, *mount)
        ) as process:
            printed, _ = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, printed + said.read_text()
        return said.read_text()

    def start(
        self,
        image: str,
        *command: str,
        snapshotter: str = LAZY,
        name: str = "test",
        options: Sequence[str] = ("--rm",),
    ) -> Ctr:
        """Start a container; what it prints comes out of `stdout`."""
        more = ("--cgroup", "", "--snapshotter", snapshotter)  # not all kernels have all cgroups
        return Ctr(
            [*self._ctr, "run", *options, *more, image, name, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def difference(self, key: str, *options: str) -> bytes:
        """Give the layer that a container has written, as containerd's Diff service makes it."""
        command = [*self._ctr, "snapshots", "--snapshotter", LAZY, "diff", *options, key]
        return subprocess.run(command, capture_output=True, check=True).stdout

    @property
    def _ctr(self) -> list[str]:
        return ["ctr", "--address", str(self.containerd.directory / "socket")]


@contextmanager
def running_node(directory: Path, settings: dict[str, Any] | None = None) -> Iterator[Node]:
    """Run both until the block ends; what they keep is below `directory`."""
    directory.chmod(0o711)  # a container with a user namespace reaches its root by itself
    address = str(directory / "snapshotter.sock")
    lazyimg = Lazyimg(
        directory / "state", {"LAZYIMG_SNAPSHOTTER_ADDRESS": address, **(settings or {})}
    )
    with (
        lazyimg.serving() as daemon,
        running_containerd(
            directory / "containerd", PROXY_PLUGIN.format(address=address)
        ) as containerd,
    ):
        yield Node(lazyimg, containerd, daemon)
