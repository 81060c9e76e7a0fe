"""A daemon with an empty directory, images for it, and what its processes take."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.real.lazyimg_process import Lazyimg
from tests.real.oci_layout import LayoutWriter

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

TICKS: Final = os.sysconf("SC_CLK_TCK")


class Process(NamedTuple):
    """One process of the daemon.

    Attributes:
        name: "supervisor", "mounter" (the process kept for mounts) or "daemon".
        cpu: seconds, its ended children's among them.
        memory: bytes that are resident.
        own: bytes of those that are no file's.
    """

    name: str
    cpu: float
    memory: int
    own: int


@contextmanager
def running_daemon(work: Path) -> Iterator[tuple[Lazyimg, subprocess.Popen[bytes]]]:
    """Run a daemon with an empty directory."""
    with tempfile.TemporaryDirectory(dir=work) as directory:
        lazyimg = Lazyimg(Path(directory, "state"))
        with lazyimg.serving() as process:
            yield lazyimg, process


def push_image(work: Path, registry: str, name: str, tar: bytes) -> str:
    """Convert a layer into an image of a registry; gives its reference."""
    path = work / "layer.tar"
    path.write_bytes(tar)
    writer = LayoutWriter(work / f"{name}-layout")
    writer.add_image(name, [writer.add_layer(path)], ["none"])
    path.unlink()
    reference = f"{registry}/{name}"
    Lazyimg(work / "nowhere").verb("convert", f"oci:{writer.directory}:{name}", reference)
    return reference


def processes_of(daemon: subprocess.Popen[bytes]) -> list[Process]:
    """Give the daemon's processes: those of its session, and the one it keeps for mounts."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
            status = (directory / "status").read_text()
            command = (directory / "cmdline").read_bytes().decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        sizes = {name: int(size) * 1024 for name, size in re.findall(r"(\w+):\s*(\d+) kB", status)}
        mounter = "mount_child.py" in command
        if "VmRSS" in sizes and (mounter or int(fields[3]) == daemon.pid):
            name = "supervisor" if "supervisor" in command else "daemon"
            cpu = sum(map(int, fields[11:15])) / TICKS
            found.append(
                Process("mounter" if mounter else name, cpu, sizes["VmRSS"], sizes["RssAnon"])
            )
    return found


def cpu_of(daemon: subprocess.Popen[bytes]) -> float:
    """Give the seconds of CPU that all its processes took."""
    return sum(one.cpu for one in processes_of(daemon))
