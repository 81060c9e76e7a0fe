"""Converted images, as other programs see them: zstd and skopeo; and their lazy images, as we do.

Needs the Debian packages skopeo and zstd.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from lazyimg.convert.image import convert_image
from lazyimg.layers.locate import locate_index
from lazyimg.layers.parse import parse_index
from lazyimg.registry.oci_layout import OciLayout, create_layout, open_layout
from lazyimg_formats.layer import Kind
from lazyimg_formats.oci.documents import Descriptor, parse_document
from lazyimg_formats.zstd_chunked.location import parse_annotations, parse_footer
from lazyimg_formats.zstd_chunked.toc import parse_toc
from lazyimg_formats.zstd_frames import decode_frame
from tests.fakes.gzip_layer import make_tar
from tests.fakes.layout_image import add_image, add_layer

if TYPE_CHECKING:
    from pathlib import Path

    from lazyimg_formats.oci.digest import Digest

NOISE = random.Random(7).randbytes(3 << 20)  # noqa: S311 - the same each time
FILES = {
    "etc/hostname": b"lazy\n",
    "usr/large": NOISE,
    "usr/mixed": NOISE[:300_000] + bytes(1 << 21) + NOISE[:70_000],
    "usr/zeros": bytes(1 << 21),
    "usr/" + "n" * 200: b"long name",
    "usr/\u00e4": "ä".encode(),
}


def run(*command: str) -> bytes:
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture
async def converted(tmp_path: Path) -> OciLayout:
    source = await create_layout(tmp_path / "source")
    target = await create_layout(tmp_path / "converted")
    await add_image(source, "app", [await add_layer(source, FILES)])
    await convert_image(source, "app", target, "app")
    return target


async def only_layer(layout: OciLayout, tag: str) -> tuple[Descriptor, dict[str, Any]]:
    descriptor, data = await layout.fetch_manifest(tag)
    (layer,) = parse_document(data, descriptor.media_type).layers  # type: ignore[union-attr]
    return layer, json.loads(data)


def blob(path: Path, digest: Digest) -> Path:
    return path / "blobs" / "sha256" / digest.hex


async def test_zstd_gives_the_same_tar(converted: OciLayout, tmp_path: Path) -> None:
    layer, _ = await only_layer(converted, "app")
    path = blob(tmp_path / "converted", layer.digest)
    run("zstd", "-q", "-t", "-c", str(path))
    assert run("zstd", "-q", "-d", "-c", str(path)) == make_tar(FILES)


async def test_tar_reads_it(converted: OciLayout, tmp_path: Path) -> None:
    layer, _ = await only_layer(converted, "app")
    path = blob(tmp_path / "converted", layer.digest)
    listed = run("tar", "--zstd", "-tf", str(path), "--quoting-style=literal")
    assert listed.decode().splitlines() == list(FILES)


async def test_skopeo_copies_it(converted: OciLayout, tmp_path: Path) -> None:
    source, copy = f"oci:{tmp_path}/converted:app", f"oci:{tmp_path}/copy:app"
    run("skopeo", "--insecure-policy", "copy", "--preserve-digests", source, copy)
    layer, manifest = await only_layer(converted, "app")
    copied, copied_manifest = await only_layer(await open_layout(tmp_path / "copy"), "app")
    assert copied_manifest == manifest
    assert blob(tmp_path / "copy", copied.digest).stat().st_size == layer.size


async def test_skopeo_unpacks_it(converted: OciLayout, tmp_path: Path) -> None:
    source, plain = f"{converted.name}:app", tmp_path / "plain"
    run("skopeo", "--insecure-policy", "copy", "--dest-decompress", source, f"dir:{plain}")
    tar = make_tar(FILES)
    assert (plain / hashlib.sha256(tar).hexdigest()).read_bytes() == tar


async def test_what_skopeo_makes_zstd_chunked_is_read(converted: OciLayout, tmp_path: Path) -> None:
    run(
        "skopeo", "--insecure-policy", "copy", "--dest-compress-format", "zstd:chunked",
        f"oci:{tmp_path}/source:app", f"oci:{tmp_path}/theirs:app",
    )  # fmt: skip
    theirs = await open_layout(tmp_path / "theirs")
    layer, _ = await only_layer(theirs, "app")
    data = blob(tmp_path / "theirs", layer.digest).read_bytes()
    location = parse_annotations(layer.annotations, layer.size)
    assert location is not None
    footer = parse_footer(data[-72:])
    assert (footer.offset, footer.length) == (location.offset, location.length)
    toc = data[location.offset :][: location.length]
    index = parse_index(locate_index(layer, "theirs"), toc)
    theirs_alone = parse_toc(location.decode(toc), end=location.data_end)
    assert index.table.name == theirs_alone.table.name  # whatever its annotations say it is
    table = index.table
    device = bytearray(table.size)
    for number in range(table.extent_count):
        extent = table.extent(number)
        span = table.span(extent.span)
        decoded = decode_frame(data[span.blob_offset :][: span.blob_length], span.length)
        assert hashlib.sha256(decoded).digest() == span.digest
        start = extent.device_offset
        device[start : start + extent.length] = decoded[extent.inner_offset :][: extent.length]
    plain = {
        entry.path.decode(): device[entry.data :][: entry.size]
        for entry in index.entries
        if entry.kind is Kind.REGULAR and isinstance(entry.data, int)
    }
    assert plain == {name: content for name, content in FILES.items() if name in plain}
    assert len(plain) >= len(FILES) - 1


async def test_what_skopeo_made_is_taken_over(converted: OciLayout, tmp_path: Path) -> None:
    run(
        "skopeo", "--insecure-policy", "copy", "--dest-compress-format", "zstd:chunked",
        f"oci:{tmp_path}/source:app", f"oci:{tmp_path}/theirs:app",
    )  # fmt: skip
    theirs = await open_layout(tmp_path / "theirs")
    layer, _ = await only_layer(theirs, "app")
    await convert_image(theirs, "app", converted, "theirs")
    kept, _ = await only_layer(converted, "theirs")
    assert (kept.digest, kept.size) == (layer.digest, layer.size)
    assert parse_annotations(kept.annotations, kept.size) == parse_annotations(
        layer.annotations, layer.size
    )
