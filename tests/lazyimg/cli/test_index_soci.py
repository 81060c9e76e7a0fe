"""`lazyimg index create --soci`: into the image's repository, or its layout."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import tarfile
from typing import TYPE_CHECKING

from lazyimg.registry.oci_layout import create_layout
from lazyimg_formats.soci.manifest import SOCI_V1, parse_soci_index
from tests.fakes.gzip_layer import make_layer
from tests.fakes.layout_image import add_image, add_layer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fakes.registry import FakeRegistry
    from tests.lazyimg.cli.conftest import Result

LOCAL = ("--platform", "linux/amd64")


def test_index_that_refers_to_the_image(run: Callable[..., Result], registry: FakeRegistry) -> None:
    manifest = registry.add_image("app", "1", make_layer())
    image = f"{registry.host}/app:1"
    result = run("index", "create", image, "--soci", "--json", *LOCAL)
    assert (result.code, result.err) == (0, "")
    reply = json.loads(result.out)
    media_type, data = registry.manifests["app"][reply["referring"]]
    assert SOCI_V1.encode() in data
    (ztoc,) = parse_soci_index(data, manifest.digest).values()
    assert reply == {
        "reference": image, "referring": reply["referring"], "image": "",
        "layers": [{
            "layer": reply["layers"][0]["layer"], "size": reply["layers"][0]["size"],
            "ztoc": str(ztoc.digest), "ztoc_size": ztoc.size, "problem": "",
        }],
    }  # fmt: skip
    assert media_type == manifest.media_type


def test_image_that_names_its_index(run: Callable[..., Result], registry: FakeRegistry) -> None:
    registry.add_image("app", "1", make_layer() | {gzip.compress(b"no tar"): b"no tar"})
    result = run("index", "create", f"{registry.host}/app:1", "--soci", "--embed", "2", *LOCAL)
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0].split() == ["LAYER", "SIZE", "ZTOC"]
    assert re.fullmatch(r"sha256:\w{12} +\S+ \w+ +\S+ \w+", lines[1].rstrip())
    assert re.fullmatch(r"sha256:\w{12} +\S+ \w+ +none: no index can be made of it.*", lines[2])
    assert re.fullmatch(r"refers to it: sha256:\w{64}", lines[-2])
    assert re.fullmatch(r"tagged 2: sha256:\w{64}", lines[-1])
    assert lines[-1].split()[-1] in registry.manifests["app"]


def test_image_layout(run: Callable[..., Result], tmp_path: Path) -> None:
    async def make() -> None:
        layout = await create_layout(tmp_path / "layout")
        await add_image(layout, "1", [await add_layer(layout, {"a": b"b"})])

    asyncio.run(make())
    image = f"oci:{tmp_path / 'layout'}:1"
    refused = run("index", "create", image, "--soci", *LOCAL)
    assert refused.code == 64
    assert "nothing would find what refers to it; name a tag: --embed" in refused.err
    result = run("index", "create", image, "--soci", "--embed", "lazy", "--json", *LOCAL)
    assert result.code == 0
    reply = json.loads(result.out)
    assert (reply["referring"], bool(reply["image"])) == ("", True)
    named = json.loads((tmp_path / "layout/index.json").read_text())["manifests"]
    assert reply["image"] in {one["digest"] for one in named}


def test_archive_is_not_written(run: Callable[..., Result], tmp_path: Path) -> None:
    async def make() -> None:
        layout = await create_layout(tmp_path / "layout")
        await add_image(layout, "1", [await add_layer(layout, {"a": b"b"})])

    asyncio.run(make())
    archive = tmp_path / "image.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "layout", arcname=".")
    result = run("index", "create", f"oci-archive:{archive}:1", "--soci", *LOCAL)
    assert result.code == 64
    assert "indexes cannot be written there" in result.err


def test_nothing_is_kept_on_this_node(run: Callable[..., Result]) -> None:
    result = run("index", "create", "app", "--soci", "--local")
    assert result == (64, "", "lazyimg: index: --soci keeps nothing on this node\n")
