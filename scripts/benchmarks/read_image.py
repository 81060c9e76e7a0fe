"""One image of one large file, in the form that the daemon keeps it in, made without a registry."""

from __future__ import annotations

import hashlib
import random
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

import zstandard

from lazyimg.images.library import ChainRecord, ImageRecord, LayerRecord, Library, SourceRecord
from lazyimg_formats.device_table import (
    BLOCK_SIZE,
    Codec,
    DeviceTable,
    Extent,
    Span,
    serialize_device_table,
)
from lazyimg_formats.erofs.tree import Device, FlatData, Node
from lazyimg_formats.erofs.writer import serialize_image

if TYPE_CHECKING:
    from pathlib import Path

FILE: Final = "file"
"""The name of the only file."""


class ReadImage(NamedTuple):
    """Files of an image: a root as the daemon has it, the blob, and the device's plain bytes."""

    root: Path
    fsid: str
    device: str

    @property
    def blob(self) -> Path:
        """The compressed layer."""
        return self.root / "blob"

    @property
    def content(self) -> Path:
        """What the device must read as."""
        return self.root / "device"

    @property
    def bootstrap(self) -> Path:
        """The metadata image."""
        return self.root / "bootstraps" / self.fsid


def make_read_image(root: Path, size: int, span_size: int, *, seed: int = 1) -> ReadImage:
    """Make an image of `size` bytes in spans of `span_size`: zstd frames of level 3.

    The bytes compress to about half, as those of programs do.
    """
    source = random.Random(seed)  # noqa: S311 - bytes to tell apart, not secrets
    for name in ("bootstraps", "tables"):
        (root / name).mkdir(parents=True)
    compressor = zstandard.ZstdCompressor(level=3)
    blob, content, spans, extents = bytearray(), bytearray(), list[Span](), list[Extent]()
    for number in range(size // span_size):
        data = _text(source, span_size)
        frame = compressor.compress(data)
        digest = hashlib.sha256(data).digest()
        spans.append(Span(len(blob), len(frame), span_size, digest, Codec.ZSTD))
        extents.append(Extent(len(content), span_size, number, 0))
        blob += frame
        content += data
    table = DeviceTable(serialize_device_table(size, extents, spans))
    node = Node(stat.S_IFREG | 0o644, size=size, data=FlatData(0, 0))
    tree = Node(stat.S_IFDIR | 0o755, children={FILE.encode(): node})
    bootstrap = serialize_image(tree, [Device(table.name, size // BLOCK_SIZE)])
    image = ReadImage(root, hashlib.sha256(bootstrap).hexdigest(), table.name)
    image.blob.write_bytes(blob)
    image.content.write_bytes(content)
    image.bootstrap.write_bytes(bootstrap)
    (root / "tables" / "table").write_bytes(table.data)
    _record(image, len(bootstrap), len(blob), size)
    return image


def _text(source: random.Random, size: int) -> bytes:
    """Give bytes of which half are random and half repeat, in stretches as in machine code."""
    parts = []
    for _ in range(size // 64):
        parts += [source.randbytes(28), b"\x48\x8b\x05\0\0\0\0\xe8" * 4, b"\0\0\0\0"]
    return b"".join(parts)


def _record(image: ReadImage, bootstrap_size: int, blob_size: int, size: int) -> None:
    blob = f"sha256:{hashlib.sha256(image.blob.read_bytes()).hexdigest()}"
    layer = LayerRecord(blob, blob_size, "layer", "zstd:chunked", "table", image.device, size)
    library = Library(image.root / "library.sqlite")
    library.add_chain(ChainRecord("chain", image.fsid, bootstrap_size, [layer]))
    record = ImageRecord("benchmark", "linux/amd64", blob, "chain")
    source = SourceRecord("benchmark", blob, blob_size, "table", b"{}")
    library.add_image(record, [(image.device, source)])
    library.close()
