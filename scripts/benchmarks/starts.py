"""What starting images costs that are loaded as they are, gzip layers with our index beside them.

Each image's start is run twice over FUSE, with an empty cache, and what leaves a real registry is
counted: once so that nothing is fetched but the spans that are read, each alone, and once as the
daemon is. SOCI's figure is computed from the first: its spans are as large by default, but layers
of less than 10 MiB have none, so that they are fetched whole.

Needs root, docker-registry, skopeo and mmdebstrap, and /dev/fuse.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scripts.benchmarks.measure import Figure, ratio
from tests.real.debian_images import debian_images
from tests.real.docker_registry import running_registry
from tests.real.lazyimg_process import Lazyimg
from tests.real.safety import guarded, loop_disk, safety_net
from tests.real.server_images import server_images

if TYPE_CHECKING:
    from tests.real.docker_registry import Registry
    from tests.real.safety import Guard

MB: Final = 1_000_000
DISK: Final = 8 << 30
SMALL: Final = 10 << 20
"""Bytes of a layer below which SOCI makes no zTOC by default."""

STARTS: Final = {
    "python": ("python3", "-c", "import json, ssl, asyncio, http.client"),
    "nginx": ("nginx", "-t"),
    "redis": ("redis-server", "--version"),
    "java": ("java", "-version"),
}
"""What runs in each image."""

EXACT: Final = {
    "LAZYIMG_FILL_MIN_FETCH": "0",
    "LAZYIMG_FILL_MERGE_GAP": "0",
    "LAZYIMG_FILL_AHEAD": "0",
    "LAZYIMG_MOUNT_READ_AHEAD": "4096",
}
"""Settings with which only spans that are read are fetched."""


def measure_starts(work: Path, *, rounds: int, quick: bool) -> list[Figure]:
    """Start each image `rounds` times in both ways; in a hurry only the first two."""
    names = list(STARTS)[:2] if quick else list(STARTS)
    figures = []
    with (
        running_registry(work) as registry,
        guarded(work) as guard,
        loop_disk(work, size=DISK) as disk,
    ):
        for name in names:
            push(registry, name)
            spans, soci, ours = [], [], []
            for _ in range(rounds):
                sent = start(registry, guard, disk, name, EXACT)
                spans.append(sum(taken for taken, _ in sent) / MB)
                soci.append(sum(taken if size >= SMALL else size for taken, size in sent) / MB)
                ours.append(sum(taken for taken, _ in start(registry, guard, disk, name, {})) / MB)
            figures += [
                Figure(f"{name} | spans that are read", "MB", spans),
                Figure(f"{name} | fetched", "MB", ours),
                Figure(f"{name} | SOCI, computed", "MB", soci),
                ratio(f"{name}: fetched, to the spans that are read", ours, spans, 1.5, most=True),
            ]
    return figures


def push(registry: Registry, name: str) -> None:
    """Put an image into the registry as it is."""
    debian = debian_images()
    layout = debian.layout if name in {"python", "nginx"} else server_images()
    command = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]
    target = f"docker://{registry.address}/{name}:1"
    subprocess.run([*command, f"oci:{layout}:{name}", target], check=True, timeout=600)


def start(
    registry: Registry, guard: Guard, disk: Path, name: str, settings: dict[str, str]
) -> list[tuple[int, int]]:
    """Start an image on an empty node; give what was fetched of each layer, and its size."""
    reference = f"{registry.address}/{name}:1"
    with (
        tempfile.TemporaryDirectory(dir=disk) as directory,
        safety_net(guard, disk, kept=disk) as net,
    ):
        lazyimg = Lazyimg(Path(directory, "state"), {"LAZYIMG_TRANSPORT": "fuse", **settings})
        root = Path(directory, "root")
        root.mkdir()
        with lazyimg.serving():
            lazyimg.verb("index", "create", "--local", reference)
            layers = lazyimg.client.indexes().layers
            lazyimg.mount(reference, root, read_write=True)
            registry.counts.clear()
            own = ["unshare", "--mount", "--pid", "--fork", f"--mount-proc={root}/proc"]
            net.run([*own, "chroot", root, *STARTS[name]])  # java looks into /proc
            sent = [(registry.counts.sent(layer.layer), layer.size) for layer in layers]
            lazyimg.unmount(root)
    return sent
