"""Images as others make them, mounted: equal to what they were made of.

Those of stargz-snapshotter, those with SOCI's indexes, Nydus's, and ordinary ones, of gzip layers,
of which the node makes indexes.

Over any transport: `tests/kernel` and `tests/transports` run these.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from tests.fakes.nydus import NydusImage, merged_files, source_files, source_members
from tests.real.debian_images import debian_images
from tests.real.debian_trees import expected_tree
from tests.real.nasty_tree import nasty_tree
from tests.real.soci_images import soci_images
from tests.real.stargz_images import FORMS, StargzImages
from tests.real.tree_manifest import Tree, differences, read_tree

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real.lazyimg_process import Lazyimg

NYDUS = ("none", "lz4", "gzip", "sha256", "batch-lz4", "batch-zstd", "zran", "merged")
FORMATS = {"estargz": "estargz", "joined": "estargz", "zstd": "zstd:chunked (stargz)"}


def seen(images: StargzImages, root: Path) -> Tree:
    """Return the tree that is mounted, as far as it is compared."""
    tree = read_tree(root)
    return {name: fact for name, fact in tree.items() if not images.is_left_out(name)}


def reference(images: StargzImages, image: str, form: str) -> str:
    return f"oci:{images.layout(image, form)}:{form}"


def layers(lazyimg: Lazyimg, target: str) -> list[dict[str, Any]]:
    described = json.loads(lazyimg.verb("inspect", "--json", target))
    found: list[dict[str, Any]] = described["layers"]
    return found


def check_one_image_in_every_form(images: StargzImages, lazyimg: Lazyimg, directory: Path) -> None:
    """Mount the tree that has everything; chunks of the same size make the same devices."""
    expected = images.expected(nasty_tree().expected())
    assert len([path for path in expected if path.startswith("many/")]) == 10_000
    with lazyimg.serving():
        for form in FORMS:
            target = directory / form
            target.mkdir()
            lazyimg.verb("mount", reference(images, "nasty", form), target)
        for form in FORMS:
            assert differences(expected, seen(images, directory / form)) == [], form
            found = layers(lazyimg, reference(images, "nasty", form))
            assert {layer["format"] for layer in found} == {FORMATS[form]}
        devices = [
            {layer["device"] for layer in layers(lazyimg, reference(images, "nasty", form))}
            for form in ("joined", "estargz", "zstd")
        ]
        assert len(devices[0] & devices[1]) > 50
        for form in FORMS:
            lazyimg.verb("umount", directory / form)


def check_debian(images: StargzImages, lazyimg: Lazyimg, target: Path, form: str) -> None:
    """Mount an image of Debian in one form."""
    with lazyimg.serving():
        lazyimg.verb("mount", reference(images, "nginx", form), target)
        expected = images.expected(expected_tree(debian_images(), "nginx"))
        assert differences(expected, seen(images, target)) == []
        lazyimg.verb("umount", target)


def check_nasty_tree_streamed(lazyimg: Lazyimg, target: Path) -> None:
    """Mount that tree the first time, its layers read whole and without an index."""
    tree = nasty_tree()
    image = f"oci:{tree.layout()}:nasty"
    with lazyimg.serving():
        lazyimg.verb("mount", image, target)
        assert differences(tree.expected(), read_tree(target)) == []
        found = layers(lazyimg, image)
        assert {layer["format"] for layer in found} == {"gzip"}
        assert all(layer["present"] == layer["device_size"] for layer in found)
        lazyimg.verb("umount", target)


def check_debian_as_it_is(lazyimg: Lazyimg, target: Path, tag: str) -> None:
    """Mount an image of gzip layers, as they are."""
    images = debian_images()
    image = f"oci:{images.layout}:{tag}"
    _mount_as_it_is(lazyimg, image, target, expected_tree(images, tag))


def check_nasty_tree_as_it_is(lazyimg: Lazyimg, target: Path) -> None:
    """Mount the tree that has everything, of gzip layers as they are."""
    tree = nasty_tree()
    _mount_as_it_is(lazyimg, f"oci:{tree.layout()}:nasty", target, tree.expected())


def _mount_as_it_is(lazyimg: Lazyimg, image: str, target: Path, expected: Tree) -> None:
    lazyimg.settings["LAZYIMG_MOUNT_UNINDEXED"] = "refuse"
    with lazyimg.serving():
        refused = lazyimg.failure("mount", image, target, status=67)
        assert "lazyimg index create REF --local" in refused
        made = json.loads(lazyimg.verb("index", "create", image, "--local", "--json"))["layers"]
        assert all(layer["made"] for layer in {layer["layer"]: layer for layer in made}.values())
        lazyimg.verb("mount", image, target)
        assert differences(expected, read_tree(target)) == []
        assert {layer["format"] for layer in layers(lazyimg, image)} == {"gzip"}
        lazyimg.verb("umount", target)


def check_nydus(lazyimg: Lazyimg, directory: Path) -> None:
    """Mount images that Nydus's builder made, of every kind, at once."""
    images = {name: NydusImage.of(name) for name in NYDUS}
    with lazyimg.serving():
        for name, image in images.items():
            image.write(directory / f"{name}.layout")
            target = directory / name
            target.mkdir()
            lazyimg.verb("mount", f"oci:{directory}/{name}.layout:1", target)
        for name in images:
            found = _read_files(directory / name)
            assert found == (merged_files() if name == "merged" else source_files()), name
            if name != "merged":
                _check_attributes(directory / name)
        for name in images:
            lazyimg.verb("umount", directory / name)


def _read_files(root: Path) -> dict[str, bytes]:
    found = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def _check_attributes(root: Path) -> None:
    for member in source_members():
        path = root / member.name
        seen = path.lstat()
        assert (seen.st_mode & 0o7777, seen.st_uid, seen.st_gid, seen.st_mtime) == (
            member.mode, member.uid, member.gid, member.mtime
        ), member.name  # fmt: skip
        if member.issym():
            assert str(path.readlink()) == member.linkname
        if member.islnk():
            assert path.samefile(root / member.linkname)
        if member.ischr():
            assert seen.st_rdev == os.makedev(member.devmajor, member.devminor)
    assert os.getxattr(root / "usr/cap", "user.color") == b"blue"


def check_soci(lazyimg: Lazyimg, target: Path, tag: str) -> None:
    """Mount an image of gzip layers with soci's own index of them."""
    expected = nasty_tree().expected() if tag == "nasty" else expected_tree(debian_images(), tag)
    image = f"oci:{soci_images().layout(tag)}:{tag}"
    with lazyimg.serving():
        lazyimg.verb("mount", image, target)
        assert differences(expected, read_tree(target)) == []
        assert {layer["format"] for layer in layers(lazyimg, image)} == {"soci"}
        assert json.loads(lazyimg.verb("index", "ls", "--json")) == []
        lazyimg.verb("umount", target)


def check_sparse_soci(lazyimg: Lazyimg, target: Path) -> None:
    """Mount an image of which SOCI's index has one layer only: the others are read whole, once."""
    image = f"oci:{soci_images().layout('sparse')}:sparse"
    with lazyimg.serving():
        lazyimg.verb("mount", image, target)
        assert differences(expected_tree(debian_images(), "nginx"), read_tree(target)) == []
        assert [layer["format"] for layer in layers(lazyimg, image)] == ["soci", "gzip", "gzip"]
        assert len(json.loads(lazyimg.verb("index", "ls", "--json"))) == 2
        lazyimg.verb("umount", target)
