"""Images as stargz-snapshotter's ctr-remote converts them, and what their trees must be.

    images = stargz_images()
    images.layout("nasty", "estargz")     # an OCI layout with the tag "estargz"
    images.expected("nasty")

`nasty` is the tree that has everything (tests.real.nasty_tree) without what these formats cannot
say, and without its gigabyte of zeros; `nginx` is the image of tests.real.debian_images. The forms
are those of FORMS. They are made once, in some minutes, and kept below ~/.cache/lazyimg/stargz:

    python -m tests.real.stargz_images

Needs root, the network, and the packages containerd and mmdebstrap.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tests.real.containerd import Containerd, running_containerd
from tests.real.debian_images import debian_images
from tests.real.debian_packages import unpacked
from tests.real.nasty_tree import Layer, nasty_layers, zeros_in_order
from tests.real.oci_layout import LayoutWriter

if TYPE_CHECKING:
    from tests.real.tree_manifest import Tree

FORMS: Final = {
    "estargz": ("--estargz", "--estargz-compression-level=1", "--estargz-record-in={record}"),
    "joined": ("--estargz", "--estargz-compression-level=1", "--estargz-min-chunk-size=50000"),
    "zstd": ("--zstdchunked", "--zstdchunked-chunk-size=65536"),
}
"""The converter's options: with files that are wanted first, several in one member, and zstd."""

EXTERNAL: Final = ("--estargz", "--estargz-compression-level=1", "--estargz-external-toc")
WANTED: Final = ("etc/passwd", "usr/sbin/nginx", "etc/nginx/nginx.conf", "kinds/fifo", "sizes/4097")
RECIPE: Final = ("stargz_images.py", "nasty_tree.py", "debian_images.py", "debian_packages.py")
SECOND: Final = 1_000_000_000

UNSAYABLE: Final = (os.fsdecode(b"names/\xff\xfe not UTF-8 \x80"), "names/link")
"""Names, and a link's target, that are not UTF-8."""

LARGE: Final = "sizes/gibibyte"
REPEATED: Final = "zeros"
"""What the layer in which names come twice changes: the converter keeps the last of them only."""


class StargzImages(NamedTuple):
    """The images, in the cache."""

    directory: Path

    def layout(self, image: str, form: str) -> Path:
        """Return the OCI layout that has one image in one form."""
        return self.directory / f"{image}-{form}"

    def expected(self, tree: Tree) -> Tree:
        """Return what a tree becomes: times are rounded to seconds, and of 1970's first none."""
        left = {name: fact for name, fact in tree.items() if not self.is_left_out(name)}
        return {
            name: replace(fact, mtime_ns=round_time(fact.mtime_ns)) for name, fact in left.items()
        }

    @staticmethod
    def is_left_out(name: str) -> bool:
        """Whether `nasty` does not have it, or has it without what comes twice."""
        return name in {*UNSAYABLE, LARGE} or name.partition("/")[0] == REPEATED


def round_time(nanoseconds: int) -> int:
    if nanoseconds // SECOND == 0:
        return 0
    return (nanoseconds + SECOND // 2) // SECOND * SECOND


class SayableLayer(Layer):
    """A layer under construction, without what is left out."""

    def add(
        self, name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", **values: object
    ) -> None:
        if name not in UNSAYABLE:
            super().add(name, kind, content, **values)

    def add_zeros(self, name: str, size: int, marks: dict[int, bytes]) -> None:
        assert name == LARGE


def stargz_images() -> StargzImages:
    """Return the images, which are made first where the cache lacks them."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lazyimg/stargz"
    recipe = hashlib.sha256()
    for name in RECIPE:
        recipe.update(Path(__file__).with_name(name).read_bytes())
    images = StargzImages(cache / recipe.hexdigest()[:16])
    if images.directory.exists():
        return images
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not images.directory.exists():
            make(images.directory)
    return images


def make(directory: Path) -> None:
    """Make everything aside, then rename it; what other recipes made goes."""
    for outdated in directory.parent.glob("*/"):
        shutil.rmtree(outdated)
    with tempfile.TemporaryDirectory(dir=directory.parent) as aside:
        made, work = Path(aside, "made"), Path(aside)
        made.mkdir()
        write_nasty(work / "nasty-layout", work)
        layouts = {"nasty": work / "nasty-layout", "nginx": debian_images().layout}
        with running_containerd(work / "containerd") as containerd:
            for image, layout in layouts.items():
                source = import_image(containerd, layout, image)
                record = write_record(work / "record", layout, image)
                for form, options in FORMS.items():
                    chosen = [option.replace("{record}", str(record)) for option in options]
                    convert(containerd, source, f"127.0.0.1/{image}:{form}", chosen)
                    export(containerd, f"127.0.0.1/{image}:{form}", made / f"{image}-{form}")
            convert(containerd, source, "127.0.0.1/nginx:external", EXTERNAL)
            export(containerd, "127.0.0.1/nginx:external", made / "nginx-external")
        made.rename(directory)


def write_nasty(layout: Path, work: Path) -> None:
    """Write the tree's layers into a layout."""
    writer = LayoutWriter(layout)
    stored = []
    for write in nasty_layers():
        if write is zeros_in_order:
            continue
        with tarfile.open(work / "layer.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            write(SayableLayer(tar))
        stored.append(writer.add_layer(work / "layer.tar"))
    writer.add_image("nasty", stored, ["/true"])


def import_image(containerd: Containerd, layout: Path, image: str) -> str:
    """Import an image from a layout without unpacking it; return its name."""
    archive = containerd.directory / "image.tar"
    subprocess.run(["tar", "-C", str(layout), "-cf", str(archive), "."], check=True)
    containerd.ctr("image", "import", "--base-name", "127.0.0.1/source", "--no-unpack", archive)
    archive.unlink()
    return f"127.0.0.1/source:{image}"


def write_record(path: Path, layout: Path, image: str) -> Path:
    """Write what a program has read, as the converter takes it."""
    index = json.loads((layout / "index.json").read_text())
    name = "org.opencontainers.image.ref.name"
    (entry,) = [one for one in index["manifests"] if one["annotations"][name] == image]
    layers = read_json(layout, entry["digest"])["layers"]
    lines = []
    for number, layer in enumerate(layers):
        with tarfile.open(blob_path(layout, layer["digest"])) as tar:
            lines += [
                {"path": wanted, "manifestDigest": entry["digest"], "layerIndex": number}
                for wanted in sorted(
                    {name.removeprefix("./") for name in tar.getnames()} & set(WANTED)
                )
            ]
    assert lines
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def blob_path(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def read_json(layout: Path, digest: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(blob_path(layout, digest).read_bytes())
    return document


def convert(
    containerd: Containerd, source: str, target: str, options: list[str] | tuple[str, ...]
) -> None:
    """Run stargz-snapshotter's converter."""
    program = unpacked("trixie", "stargz-snapshotter") / "usr/bin/ctr-remote"
    socket = containerd.directory / "socket"
    command = [program, "-a", socket, "images", "convert", "--oci", *options, source, target]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def export(containerd: Containerd, image: str, layout: Path) -> None:
    """Write an image of containerd's into a layout, under its tag."""
    archive = containerd.directory / "image.tar"
    containerd.ctr("image", "export", archive, image)
    layout.mkdir()
    subprocess.run(["tar", "-C", str(layout), "-xf", str(archive)], check=True)
    archive.unlink()


if __name__ == "__main__":
    print(stargz_images().directory, file=sys.stderr)  # noqa: T201 - for whoever runs it
