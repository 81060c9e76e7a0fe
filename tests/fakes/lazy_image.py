"""Images whose layers are zstd:chunked, made by the real converter and put into a registry."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from lazyimg.convert.layer import LayerConversion
from lazyimg.registry.resolve import local_platform
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import OCI_CONFIG, OCI_LAYER_ZSTD, Descriptor, Manifest
from lazyimg_formats.zstd_chunked.location import TocLocation, serialize_annotations
from lazyimg_formats.zstd_chunked.writer import serialize_tail
from lazyimg_formats.zstd_frames import serialize_skippable
from tests.fakes.gzip_layer import make_tar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tests.fakes.registry import FakeRegistry
    from tests.fakes.stargz_layer import StargzLayer


@dataclass(frozen=True)
class LazyLayer:
    """A layer: its blob, the digest of its tar, and where its index is."""

    blob: bytes
    diff_id: Digest
    toc: TocLocation

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(
            media_type=OCI_LAYER_ZSTD,
            digest=Digest.of(self.blob),
            size=len(self.blob),
            annotations=serialize_annotations(self.toc),
        )

    @property
    def index(self) -> bytes:
        """The index's bytes in the blob."""
        return self.blob[self.toc.offset : self.toc.offset + self.toc.length]


async def make_lazy_layer(files: dict[str, bytes]) -> LazyLayer:
    """Give the layer that holds these files (names may be those of whiteouts)."""
    tar = make_tar(files)
    diff_id = Digest.of(tar)

    async def source() -> AsyncIterator[bytes]:
        yield tar

    with ThreadPoolExecutor(1) as executor:
        conversion = LayerConversion("layer", diff_id, level=1, executor=executor, depth=1)
        blob = b"".join([piece async for piece in conversion.convert(source())])
    return LazyLayer(blob, diff_id, conversion.result.toc)


def lying_layer(honest: LazyLayer, planted: LazyLayer) -> LazyLayer:
    """Give a layer that unpacks to one tar, and is served as another.

    The blob is both blobs, one behind the other, the second out of sight of those who decompress
    it: in skippable frames. The index is the second's, moved.
    """
    data_end = honest.toc.data_end
    hidden = planted.blob[: planted.toc.data_end]
    prefix = honest.blob[:data_end] + serialize_skippable(hidden)
    shift = len(prefix) - len(hidden)
    document = msgspec.json.decode(planted.toc.decode(planted.index))
    for entry in document["entries"]:
        for name in ("offset", "endOffset"):
            if name in entry:
                entry[name] += shift
    tail, toc = serialize_tail(msgspec.json.encode(document), len(prefix), 1)
    return LazyLayer(b"".join((prefix, *tail)), honest.diff_id, toc)


def add_lazy_image(
    registry: FakeRegistry,
    name: str,
    tag: str,
    layers: Sequence[LazyLayer | StargzLayer],
    architecture: str = "",
) -> Descriptor:
    """Put an image for one platform, this machine's by default, into a repository."""
    platform = local_platform()
    config = {
        "os": platform.os,
        "architecture": architecture or platform.architecture,
        "variant": "" if architecture else platform.variant,
        "rootfs": {"type": "layers", "diff_ids": [str(layer.diff_id) for layer in layers]},
    }
    for layer in layers:
        registry.add_blob(name, layer.blob)
    manifest = Manifest(
        config=registry.add_blob(name, msgspec.json.encode(config), OCI_CONFIG),
        layers=tuple(layer.descriptor for layer in layers),
    )
    return registry.add_manifest(name, tag, manifest)
