"""Images as others make them, mounted: equal to what they were made of.

Those of stargz-snapshotter, those with SOCI's indexes, and ordinary ones, of gzip layers, of which
the node makes indexes.

Over any transport: `tests/kernel` and `tests/transports` run these.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.real.debian_images import debian_images
from tests.real.debian_trees import expected_tree
from tests.real.nasty_tree import nasty_tree
from tests.real.soci_images import soci_images
from tests.real.stargz_images import FORMS, StargzImages
from tests.real.tree_manifest import Tree, differences, read_tree

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real.lazyimg_process import Lazyimg

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


def check_soci(lazyimg: Lazyimg, target: Path, tag: str) -> None:
    """Mount an image of gzip layers with soci's own index of them."""
    expected = nasty_tree().expected() if tag == "nasty" else expected_tree(debian_images(), tag)
    image = f"oci:{soci_images().layout(tag)}:{tag}"
    with lazyimg.serving():
        lazyimg.verb("mount", image, target)
        assert differences(expected, read_tree(target)) == []
        assert json.loads(lazyimg.verb("index", "ls", "--json")) == []
        lazyimg.verb("umount", target)
