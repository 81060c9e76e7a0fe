"""Honest images that are larger than an image may be by default."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest
import zstandard

from lazyimg.errors import CorruptError
from lazyimg.images.build import BuildRequest, LayerSource, build_image
from lazyimg.layers.locate import IndexLocation
from lazyimg_formats.erofs.reader import Image
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.zstd_frames import SKIPPABLE_HEADER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENTRIES: Final = 500_000
PER_DIRECTORY: Final = 50
SIZE: Final = 1000
FRAME: Final = 100


def entries() -> Iterator[dict[str, Any]]:
    """Give directories of files, each with a frame of its own."""
    for number in range(ENTRIES):
        directory, index = divmod(number, PER_DIRECTORY)
        name = f"usr/share/package{directory:05}"
        times = {"modtime": "2023-11-14T22:13:20Z"}
        if index == 0:
            yield {"type": "dir", "name": name, "mode": 0o755, **times}
            continue
        yield {
            "type": "reg",
            "name": f"{name}/file{index:03}.txt",
            "mode": 0o644,
            "size": SIZE,
            "digest": f"sha256:{number:064x}",
            "offset": number * FRAME,
            "endOffset": (number + 1) * FRAME,
            **times,
        }


async def test_image_of_half_a_million_entries(tmp_path: Path) -> None:
    toc = json.dumps({"version": 1, "entries": list(entries())}).encode()
    stored = zstandard.ZstdCompressor(level=1).compress(toc)
    (tmp_path / "index").write_bytes(stored)
    (tmp_path / "bootstraps").mkdir()
    end = ENTRIES * FRAME + SKIPPABLE_HEADER
    digest = str(Digest.of(stored))
    location = IndexLocation("zstd:chunked", end, len(stored), len(toc), digest)
    layer = LayerSource("layer", location, str(tmp_path / "index"), str(tmp_path / "table"))
    place = str(tmp_path / "bootstraps")
    with pytest.raises(CorruptError) as caught:
        await build_image("image", BuildRequest([layer], place))
    assert str(caught.value) == (
        "image: takes over 448 MiB of memory to build; if it is to be trusted,"
        " set build.memory to more"
    )
    built = await build_image("image", BuildRequest([layer], place, memory=2 << 30))
    image = Image((tmp_path / "bootstraps" / built.fsid).read_bytes())
    assert image.superblock.inodes == ENTRIES + 3
