"""SOCI indexes that lazyimg makes, and the soci command: it takes them for its own.

Of the second version there is no command in Debian that could; the bytes of the first one differ by
its subject and its config's media type.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from lazyimg.images.artifacts import Gone
from lazyimg.images.check import CheckReply, CheckRequest, check
from lazyimg.images.locating import Sought
from lazyimg.images.soci_places import NamedSoci
from lazyimg.layers.fetch import fetch_index
from lazyimg.registry.client import RegistryClient
from lazyimg.registry.ports import Access
from lazyimg.registry.resolve import open_source, parse_location, parse_platform, resolve_image
from lazyimg_formats.index_artifact import StoredIndex
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import (
    Descriptor,
    Manifest,
    describe,
    parse_document,
    serialize_document,
)
from lazyimg_formats.soci.manifest import INDEX_DIGEST, make_soci_index, parse_soci_index
from lazyimg_formats.soci.toc import parse_ztoc
from tests.real.containerd import running_containerd
from tests.real.debian_images import debian_images
from tests.real.soci_images import CONTENT, NAME, find_index, soci, soci_images
from tests.real.stargz_images import blob_path, import_image, read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a layout with an image of Debian, and the same with its SOCI index."""
    target = tmp_path_factory.mktemp("soci") / "layout"
    shutil.copytree(debian_images().layout, target)
    command = [sys.executable, "-m", "lazyimg", "index", "create", f"oci:{target}:nginx"]
    ended = subprocess.run(
        [*command, "--soci", "--embed", "soci", "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert {layer["problem"] for layer in json.loads(ended.stdout)["layers"]} == {""}
    return target


def named(layout: Path, tag: str) -> dict[str, Any]:
    index = json.loads((layout / "index.json").read_text())
    (entry,) = [one for one in index["manifests"] if one["annotations"].get(NAME) == tag]
    return dict(entry)


def ztocs_of(layout: Path) -> Mapping[Digest, Descriptor]:
    """Return the zTOCs of the image, as its manifest leads to them."""
    manifest = read_json(
        layout, read_json(layout, named(layout, "soci")["digest"])["manifests"][0]["digest"]
    )
    index = blob_path(layout, manifest["annotations"][INDEX_DIGEST]).read_bytes()
    return parse_soci_index(index)


def test_devices_are_those_of_its_own_indexes(layout: Path) -> None:
    """Points of entry, windows and places are the same."""
    images = soci_images()
    theirs = find_index(images.artifacts("nginx"), named(layout, "nginx")["digest"])
    by_layer = {
        Digest.parse(one["annotations"]["com.amazon.soci.image-layer-digest"]): one["digest"]
        for one in theirs["layers"]
    }
    ztocs = ztocs_of(layout)
    assert set(ztocs) == set(by_layer)
    for layer, ztoc in ztocs.items():
        ours = parse_ztoc(blob_path(layout, str(ztoc.digest)).read_bytes())
        path = images.artifacts("nginx") / by_layer[layer].partition(":")[2]
        other = parse_ztoc(path.read_bytes())
        assert ours.layer.entries == other.layer.entries
        assert ours.layer.table.name == other.layer.table.name


def test_command_takes_them(layout: Path, tmp_path: Path) -> None:
    entry = named(layout, "nginx")
    manifest = parse_document(blob_path(layout, entry["digest"]).read_bytes())
    assert isinstance(manifest, Manifest)
    ztocs = ztocs_of(layout)
    subject = Descriptor(
        media_type=entry["mediaType"], digest=Digest.parse(entry["digest"]), size=entry["size"]
    )
    stored = [
        (layer, StoredIndex(ztocs[layer.digest].digest, ztocs[layer.digest].size))
        for layer in manifest.layers
    ]
    index = serialize_document(make_soci_index(stored, subject))
    content = tmp_path / "state" / CONTENT
    content.mkdir(parents=True)
    for data in (
        b"{}", index, *(blob_path(layout, str(one.digest)).read_bytes() for one in ztocs.values())
    ):  # fmt: skip
        (content / Digest.of(data).hex).write_bytes(data)
    state = tmp_path / "state"
    with running_containerd(tmp_path / "containerd") as containerd:
        import_image(containerd, layout, "nginx")
        soci(containerd, state, "rebuild-db")
        digest = str(describe(index, "").digest)
        assert digest in soci(containerd, state, "index", "list")
        assert json.loads(soci(containerd, state, "index", "info", digest)) == json.loads(index)
        listed = soci(containerd, state, "ztoc", "list")
        for layer, ztoc in ztocs.items():
            assert f"{ztoc.digest} " in listed
            assert str(layer) in listed
            info = json.loads(soci(containerd, state, "ztoc", "info", str(ztoc.digest)))
            data = blob_path(layout, str(ztoc.digest)).read_bytes()
            assert info["num_files"] == len(parse_ztoc(data).layer.entries)
            assert info["build_tool"] == "lazyimg"
        base = manifest.layers[0]
        with tarfile.open(blob_path(layout, str(base.digest))) as tar:
            for name in ("./etc/debian_version", "./usr/bin/tar", "./var/lib/dpkg/status"):
                taken = tmp_path / "taken"
                used = str(ztocs[base.digest].digest)
                soci(containerd, state, "ztoc", "get-file", "--output", taken, used, name)
                file = tar.extractfile(name)
                assert file is not None
                assert taken.read_bytes() == file.read()


@pytest.mark.parametrize("image", ["nginx", "nasty"])
async def test_blob_diff_id_and_its_own_index_agree(tmp_path: Path, image: str) -> None:
    images = soci_images()
    async with RegistryClient(environ={}) as client:
        place = parse_location(f"oci:{images.layout(image)}:{image}")
        source, wanted = await open_source(place, client, Access())
        resolved = await resolve_image(source, wanted, parse_platform("linux/amd64"))
        layers = resolved.manifest.layers
        numbers = range(len(layers))
        found = await NamedSoci(Gone()).find(Sought.of(image, resolved), numbers, source)
        assert len(found) == len(layers)
        for number, location in found.items():
            path = await fetch_index(source, layers[number], location, tmp_path)
            device = parse_ztoc(path.read_bytes()).layer.table.name
            digest = layers[number].digest
            request = CheckRequest(
                str(digest), layers[number].size, str(resolved.config.diff_ids[number]), location,
                str(path), device,
            )  # fmt: skip
            blob = blob_path(images.layout(image), str(digest)).read_bytes()
            pieces = (blob[at : at + (1 << 20)] for at in range(0, len(blob), 1 << 20))
            assert check(request, pieces) == CheckReply()
