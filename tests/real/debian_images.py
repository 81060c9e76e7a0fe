"""Two images of Debian, made with mmdebstrap, and what their trees must be.

    images = debian_images()
    images.layout          # an OCI layout with the tags in TAGS
    images.tree("python")  # what `umoci unpack` made of that image, as root

`python` is a base and, as a second layer, python3. `nginx` is the same base, nginx, and a layer
that deletes, replaces and hides (nasty_layer). They are kept in ~/.cache/lazyimg/images (or below
$XDG_CACHE_HOME) under a digest of the recipe, and made when they are not there:

    python -m tests.real.debian_images

Making them needs root, the network and the packages mmdebstrap and umoci. Trees are read outside
kernel-vm and compared inside, because its view of the host's file system has no attributes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from tests.real.layer_difference import write_difference
from tests.real.nasty_layer import write_nasty_layer
from tests.real.oci_layout import LayoutWriter
from tests.real.tree_manifest import Tree, dump_tree, load_tree, read_tree

SUITE: Final = "bookworm"
SOURCE_DATE_EPOCH: Final = "1735689600"  # no time in the trees is later than this: 2025-01-01
TAGS: Final = ("python", "nginx")
RECIPE: Final = (
    "debian_images.py",
    "layer_difference.py",
    "nasty_layer.py",
    "oci_layout.py",
    "tree_manifest.py",
)


class DebianImages(NamedTuple):
    """The images, in the cache."""

    directory: Path

    @property
    def layout(self) -> Path:
        """The OCI layout that has them all."""
        return self.directory / "layout"

    def tree(self, tag: str) -> Tree:
        """Return the tree that an image must give."""
        return load_tree(self.directory / f"{tag}.json")


def debian_images() -> DebianImages:
    """Return the images, which are made first where the cache lacks them."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lazyimg/images"
    recipe = hashlib.sha256()
    for name in RECIPE:
        recipe.update(Path(__file__).with_name(name).read_bytes())
    images = DebianImages(cache / recipe.hexdigest()[:16])
    if images.directory.exists():
        return images
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not images.directory.exists():
            make_images(images.directory)
    return images


def make_images(directory: Path) -> None:
    """Make everything aside, then rename it; what other recipes made goes."""
    for outdated in directory.parent.glob("*/"):
        shutil.rmtree(outdated)
    with tempfile.TemporaryDirectory(dir=directory.parent) as aside:
        work, made = Path(aside), Path(aside, "made")
        made.mkdir()
        write_images(work, made / "layout")
        for tag in TAGS:
            dump_tree(unpack(made / "layout", tag, work / "bundle"), made / f"{tag}.json")
        made.rename(directory)


def write_images(work: Path, layout: Path) -> None:
    """Write both images into a layout."""
    packages = {"base": None, "python": "python3", "nginx": "nginx"}
    with ThreadPoolExecutor(len(packages)) as pool:
        base, python, nginx = pool.map(
            lambda item: make_root(work / f"{item[0]}.tar", item[1]), packages.items()
        )
    writer = LayoutWriter(layout)
    base_layer = writer.add_layer(base)
    write_difference(base, python, work / "python-layer.tar")
    python_layer = writer.add_layer(work / "python-layer.tar")
    writer.add_image("python", [base_layer, python_layer], ["python3"])
    write_difference(base, nginx, work / "nginx-layer.tar")
    write_nasty_layer(work / "nasty-layer.tar", base, work / "nginx-layer.tar")
    upper = [writer.add_layer(work / f"{name}-layer.tar") for name in ("nginx", "nasty")]
    writer.add_image("nginx", [base_layer, *upper], ["nginx", "-g", "daemon off;"])


def make_root(tar: Path, package: str | None) -> Path:
    """Make the root of a small Debian, with one package and what that needs, in a tar."""
    include = [f"--include={package}"] if package else []
    run("mmdebstrap", "--quiet", "--variant=minbase", *include, SUITE, tar)
    return tar


def unpack(layout: Path, tag: str, bundle: Path) -> Tree:
    """Return the tree that umoci makes of an image."""
    run("umoci", "unpack", "--image", f"{layout}:{tag}", bundle)
    tree = read_tree(bundle / "rootfs")
    shutil.rmtree(bundle)
    return tree


def run(*command: str | Path) -> None:
    """Run a program that is silent unless it fails."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": SOURCE_DATE_EPOCH}
    ended = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if ended.returncode:
        raise RuntimeError(f"{command[0]} failed: {ended.stderr.decode(errors='replace').strip()}")


if __name__ == "__main__":
    print(debian_images().directory, file=sys.stderr)  # noqa: T201 - for whoever runs it
