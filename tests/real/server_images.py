"""Images of two more servers, redis and java, over the base that debian_images has.

    layout = server_images()    # an OCI layout with the tags in SERVERS

Each is the base, and the difference that one package and what it needs make. They are kept in
~/.cache/lazyimg/server-images (or below $XDG_CACHE_HOME) under a digest of the recipe, and made
when they are not there:

    python -m tests.real.server_images

Making them needs root, the network and the package mmdebstrap.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tests.real.debian_images import debian_images, make_root
from tests.real.layer_difference import write_difference
from tests.real.oci_layout import LayoutWriter

SERVERS: Final = {"redis": "redis-server", "java": "openjdk-17-jre-headless"}
"""Tag -> package."""

RECIPE: Final = ("server_images.py", "layer_difference.py", "oci_layout.py")


def server_images() -> Path:
    """Return the layout, which is made first where the cache lacks it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lazyimg"
    below = debian_images()
    recipe = hashlib.sha256(below.directory.name.encode())
    for name in RECIPE:
        recipe.update(Path(__file__).with_name(name).read_bytes())
    kept = cache / "server-images"
    layout = kept / recipe.hexdigest()[:16]
    if layout.exists():
        return layout
    kept.mkdir(parents=True, exist_ok=True)
    with (kept / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not layout.exists():
            make_layout(below.layout, layout)
    return layout


def make_layout(below: Path, layout: Path) -> None:
    """Make it aside, then rename it; what other recipes made goes."""
    for outdated in layout.parent.glob("*/"):
        shutil.rmtree(outdated)
    with tempfile.TemporaryDirectory(dir=layout.parent) as aside, ThreadPoolExecutor() as pool:
        work = Path(aside)
        roots = pool.map(lambda item: make_root(work / f"{item[0]}.tar", item[1]), SERVERS.items())
        base = read_base(below, work / "base.tar")
        writer = LayoutWriter(work / "layout")
        base_layer = writer.add_layer(base)
        for tag, root in zip(SERVERS, roots, strict=True):
            write_difference(base, root, work / "layer.tar")
            writer.add_image(tag, [base_layer, writer.add_layer(work / "layer.tar")], [tag])
        writer.directory.rename(layout)


def read_base(layout: Path, tar: Path) -> Path:
    """Unpack the lowest layer of a layout's first image into a tar."""
    (descriptor, *_) = json.loads((layout / "index.json").read_text())["manifests"]
    (lowest, *_) = json.loads(blob(layout, descriptor["digest"]).read_text())["layers"]
    with gzip.open(blob(layout, lowest["digest"])) as source, tar.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    return tar


def blob(layout: Path, digest: str) -> Path:
    """Return the file of a blob."""
    return layout / "blobs" / digest.replace(":", "/")


if __name__ == "__main__":
    print(server_images(), file=sys.stderr)  # noqa: T201 - for whoever runs it
