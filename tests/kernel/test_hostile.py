"""An image whose index lies about what its blob holds: mounted, but no wrong byte, no harm."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import zstandard

from lazyimg_formats.device_table import MAX_SPAN_SIZE
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.zstd_chunked.location import TocLocation, serialize_annotations
from lazyimg_formats.zstd_frames import SKIPPABLE_HEADER, serialize_skippable
from tests.real.measured import peak_memory
from tests.real.oci_layout import LayoutWriter, StoredLayer, describe

if TYPE_CHECKING:
    from tests.real.lazyimg_process import Lazyimg

MEMORY: Final = 512 << 20  # bytes of the worker
SMALL: Final = b"small" * 1000


def pack(data: bytes, *, say_size: bool = True) -> bytes:
    return zstandard.ZstdCompressor(level=1, write_content_size=say_size).compress(data)


def write_layout(directory: Path, files: dict[str, tuple[bytes, int, bytes]]) -> str:
    """Write an image; each file is its stored frame, the size it is said to have, its bytes."""
    writer = LayoutWriter(directory)
    blob = bytearray()
    entries: list[dict[str, Any]] = []
    for name, (frame, size, data) in files.items():
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        entry = {"type": "reg", "name": name, "mode": 0o644, "size": size, "digest": digest}
        entries.append(entry | {"offset": len(blob), "endOffset": len(blob) + len(frame)})
        blob += frame
    toc = json.dumps({"version": 1, "entries": entries}).encode()
    stored = pack(toc)
    location = TocLocation(len(blob) + SKIPPABLE_HEADER, len(stored), len(toc), Digest.of(stored))
    blob += serialize_skippable(stored)
    name = hashlib.sha256(blob).hexdigest()
    (directory / "blobs/sha256" / name).write_bytes(blob)
    layer = describe("application/vnd.oci.image.layer.v1.tar+zstd", name, len(blob))
    layer["annotations"] = serialize_annotations(location)
    writer.add_image("lies", [StoredLayer(layer, f"sha256:{name}")], ["none"])
    return f"oci:{directory}:lies"


def test_frames_that_are_not_what_the_index_says(
    disk: Path, lazyimg: Lazyimg, tmp_path: Path
) -> None:
    bomb = bytes(MAX_SPAN_SIZE)
    largest = (8 * MAX_SPAN_SIZE).to_bytes(8, "little")
    lying = b"\x28\xb5\x2f\xfd\xe0" + largest + pack(SMALL)[6:]  # a header of half a gigabyte
    files = {
        "good": (pack(SMALL), len(SMALL), SMALL),
        "large": (pack(bomb), len(bomb), bomb),
        "other-bytes": (pack(SMALL), len(SMALL), b"other" * 1000),
        "longer": (pack(SMALL), len(SMALL) - 1, SMALL[:-1]),
        "shorter": (pack(SMALL), len(SMALL) + 1, SMALL + b"x"),
        "bomb": (pack(bomb), 100, bytes(100)),
        "silent-bomb": (pack(bomb, say_size=False), 100, bytes(100)),
        "half": (pack(SMALL)[:-7], len(SMALL), SMALL),
        "two": (pack(SMALL) + pack(SMALL), len(SMALL), SMALL),
        "no-frame": (b"no frame", len(SMALL), SMALL),
        "lying-header": (lying, len(SMALL), SMALL),
    }
    target = tmp_path / "mnt"
    target.mkdir()
    with tempfile.TemporaryDirectory(dir=disk) as directory:
        reference = write_layout(Path(directory, "layout"), files)
        with lazyimg.serving():
            lazyimg.verb("mount", reference, target)
            for name in files:
                if name not in {"good", "large"}:
                    with pytest.raises(OSError, match="Input/output error"):
                        (target / name).read_bytes()
            assert (target / "good").read_bytes() == SMALL
            with (target / "large").open("rb") as file:
                while piece := file.read(1 << 20):
                    assert not any(piece)
            assert peak_memory(lazyimg.status()["pid"]) < MEMORY
            lazyimg.verb("umount", target)
