"""SOCI indexes of images, as the soci command makes them, and what their trees must be.

    images = soci_images()
    images.layout("nasty")       # an OCI layout with the tag "nasty", whose manifest has the index
    images.layout("sparse")      # "nginx", with a zTOC of its lowest layer only
    images.artifacts("nasty")    # the index as soci wrote it, and its zTOCs: a directory of blobs

The command, of Debian trixie, writes indexes of the first version only. Those of the second one are
made of them here, as later versions of the command do (soci_convert.go): without a subject, of
another media type, named by an annotation of the image's manifest.

`nasty` is the tree that has everything (tests.real.nasty_tree); `nginx` is the image of
tests.real.debian_images. They are made once and kept below ~/.cache/lazyimg/soci:

    python -m tests.real.soci_images

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
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tests.real.containerd import Containerd, running_containerd
from tests.real.debian_images import debian_images
from tests.real.debian_packages import unpacked
from tests.real.nasty_tree import nasty_tree
from tests.real.stargz_images import blob_path, import_image, read_json

if TYPE_CHECKING:
    from collections.abc import Sequence

RECIPE: Final = ("soci_images.py", "nasty_tree.py", "debian_images.py", "debian_packages.py")
V1: Final = "application/vnd.amazon.soci.index.v1+json"
V2: Final = "application/vnd.amazon.soci.index.v2+json"
INDEX_DIGEST: Final = "com.amazon.soci.index-digest"
MANIFEST_DIGEST: Final = "com.amazon.soci.image-manifest-digest"
NAME: Final = "org.opencontainers.image.ref.name"
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX: Final = "application/vnd.oci.image.index.v1+json"


class SociImages(NamedTuple):
    """The images, in the cache."""

    directory: Path

    def layout(self, image: str) -> Path:
        """Return the OCI layout that has one image with an index of the second version."""
        return self.directory / image

    def artifacts(self, image: str) -> Path:
        """Return the directory of what soci wrote, by the hexadecimal digits of its digests."""
        return self.directory / f"{image}-soci"


def soci_images() -> SociImages:
    """Return the images, which are made first where the cache lacks them."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lazyimg/soci"
    recipe = hashlib.sha256()
    for name in RECIPE:
        recipe.update(Path(__file__).with_name(name).read_bytes())
    images = SociImages(cache / recipe.hexdigest()[:16])
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
    layouts = {"nasty": nasty_tree().layout(), "nginx": debian_images().layout}
    with tempfile.TemporaryDirectory(dir=directory.parent) as aside:
        made = Path(aside, "made")
        made.mkdir()
        with running_containerd(Path(aside, "containerd")) as containerd:
            for image, layout in layouts.items():
                state = Path(aside, f"state-{image}")
                source = import_image(containerd, layout, image)
                soci(containerd, state, "create", "--min-layer-size", "0", source)
                write_image(layout, image, state / CONTENT, made / image)
                if image == "nginx":
                    write_image(layout, image, state / CONTENT, made / "sparse", count=1)
                shutil.copytree(state / CONTENT, made / f"{image}-soci")
        made.rename(directory)


CONTENT: Final = "soci-snapshotter-grpc/content/blobs/sha256"


def soci(containerd: Containerd, state: Path, *arguments: str | Path) -> str:
    """Run the soci command with `state` as /var/lib, which it knows no other word for."""
    state.mkdir(exist_ok=True)
    program = unpacked("trixie", "soci-snapshotter") / "usr/bin/soci"
    return run(
        "unshare", "--mount", "sh", "-ec", 'mount --bind "$1" /var/lib; shift; exec "$@"', "sh",
        state, program, "--address", containerd.directory / "socket", *arguments,
    )  # fmt: skip


def run(*command: str | Path) -> str:
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert ended.returncode == 0, f"{command}: {ended.stdout}{ended.stderr}"
    return ended.stdout


def write_image(
    source: Path, image: str, artifacts: Path, layout: Path, count: int | None = None
) -> None:
    """Write an image into a layout of its own, with an index (v2) of the first `count` layers."""
    (layout / "blobs/sha256").mkdir(parents=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (entry,) = [
        one
        for one in json.loads((source / "index.json").read_text())["manifests"]
        if one["annotations"][NAME] == image
    ]
    manifest = read_json(source, entry["digest"])
    for blob in (manifest["config"], *manifest["layers"]):
        link(blob_path(source, blob["digest"]), blob_path(layout, blob["digest"]))
    index = find_index(artifacts, entry["digest"])
    index["layers"] = index["layers"][:count]
    for blob in index["layers"]:
        link(artifacts / blob["digest"].partition(":")[2], blob_path(layout, blob["digest"]))
    write_v2(layout, manifest, index, layout.name)


def write_v2(layout: Path, manifest: dict[str, Any], index: dict[str, Any], tag: str) -> None:
    """Write an image index with a manifest, and an index of it made of one of version 1."""
    config = write(layout, b"{}")
    index = {**index, "config": {**config, "mediaType": V2}}
    index.pop("subject", None)
    soci_index = write(layout, json.dumps(index).encode())
    manifest = {**manifest, "annotations": {INDEX_DIGEST: soci_index["digest"]}}
    described = write(layout, json.dumps(manifest).encode())
    platform = read_json(layout, manifest["config"]["digest"])
    entries = [
        {**described, "mediaType": MANIFEST, "annotations": manifest["annotations"]},
        {**soci_index, "mediaType": MANIFEST, "artifactType": V2,
         "annotations": {MANIFEST_DIGEST: described["digest"]}},
    ]  # fmt: skip
    for one in entries:
        one["platform"] = {name: platform[name] for name in ("os", "architecture")}
    top = write_index(layout, entries)
    named = {**top, "mediaType": INDEX, "annotations": {NAME: tag}}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))


def write_index(layout: Path, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
    return write(layout, json.dumps(document).encode())


def find_index(artifacts: Path, manifest: str) -> dict[str, Any]:
    """Return the index that soci made of an image."""
    found = []
    for path in artifacts.iterdir():
        if path.stat().st_size < 1 << 20 and path.read_bytes().startswith(b"{"):
            document = json.loads(path.read_bytes())
            if document.get("subject", {}).get("digest") == manifest:
                found.append(document)
    (index,) = found
    assert index["config"]["mediaType"] == V1
    return dict(index)


def write(layout: Path, data: bytes) -> dict[str, Any]:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    blob_path(layout, digest).write_bytes(data)
    return {"digest": digest, "size": len(data)}


def link(source: Path, target: Path) -> None:
    if not target.exists():
        os.link(source, target)


if __name__ == "__main__":
    print(soci_images().directory, file=sys.stderr)  # noqa: T201 - for whoever runs it
