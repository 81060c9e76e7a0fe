"""Gzip layers with zTOCs, whose points of entry libz has found."""

from __future__ import annotations

import hashlib
import io
import random
import zlib
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lazyimg.layers.indexer import LayerIndexer
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import (
    OCI_LAYER_GZIP,
    Descriptor,
    Manifest,
    describe,
    parse_document,
)
from lazyimg_formats.soci.manifest import INDEX_DIGEST, LAYER_DIGEST, SOCI_V2, ZTOC_TYPE
from lazyimg_formats.soci.writer import make_ztoc
from lazyimg_formats.soci.ztoc import POINT, POINTS, Ztoc
from lazyimg_formats.stream_index import iterate_spans
from tests.fakes.gzip_layer import make_tar

if TYPE_CHECKING:
    from tests.fakes.registry import FakeRegistry

FILES = {
    "etc/name": b"lazyimg\n",
    "bin/tool": bytes(random.Random(1).choices(range(97, 123), k=40_000)),  # noqa: S311 - the same each time
    "bin/other": b"more" * 999,
}


def compress(tar: bytes) -> bytes:
    """Give a gzip member of small blocks."""
    stream = zlib.compressobj(1, zlib.DEFLATED, 31, 1)
    return stream.compress(tar) + stream.flush()


def make_index(blob: bytes, tar: bytes, spacing: int) -> bytes:
    """Give the index that a node makes of a layer."""
    file = io.BytesIO()
    with closing(LayerIndexer(Digest.of(blob), Digest.of(tar), file, spacing)) as indexer:
        indexer.feed(blob)
        indexer.finish()
    return file.getvalue()


def stored_digests(blob: bytes, index: bytes) -> list[bytes]:
    """Give the digest of each span's bytes in the blob, as SOCI cuts it."""
    spans = list(iterate_spans(index))
    ends = [span.blob_offset + bool(span.bit) for span in spans[1:]]
    return [
        hashlib.sha256(blob[span.blob_offset : end]).digest()
        for span, end in zip(spans, [*ends, len(blob)], strict=True)
    ]


@dataclass
class SociLayer:
    """A layer: its tar, its blob, its zTOC."""

    tar: bytes = field(default_factory=lambda: make_tar(FILES))
    blob: bytes = b""
    ztoc: bytes = b""
    spacing: int = 2000

    def __post_init__(self) -> None:
        self.blob = self.blob or compress(self.tar)
        index = make_index(self.blob, self.tar, self.spacing)
        self.ztoc = self.ztoc or make_ztoc(index, stored_digests(self.blob, index), self.spacing)

    @property
    def descriptor(self) -> Descriptor:
        return describe(self.blob, OCI_LAYER_GZIP)

    def point(self, number: int) -> int:
        """Give where in the zTOC a point of entry stands."""
        count = len(Ztoc(self.ztoc).points)
        head = self.ztoc.index(POINTS.pack(count, self.spacing))
        return head + POINTS.size + number * POINT.size

    @property
    def diff_id(self) -> Digest:
        return Digest.of(self.tar)


def make_soci_index(
    layers: list[SociLayer], kind: str = SOCI_V2, subject: Descriptor | None = None
) -> Manifest:
    """Give the SOCI index of an image."""
    ztocs = tuple(
        Descriptor(
            media_type=ZTOC_TYPE,
            digest=Digest.of(layer.ztoc),
            size=len(layer.ztoc),
            annotations={LAYER_DIGEST: str(layer.descriptor.digest)},
        )
        for layer in layers
    )
    return Manifest(config=describe(b"{}", kind), layers=ztocs, subject=subject)


def add_soci_image(registry: FakeRegistry, name: str, tag: str, *layers: SociLayer) -> Descriptor:
    """Put an image into a registry whose manifest names its SOCI index."""
    made = registry.add_image(name, "", {layer.blob: layer.tar for layer in layers})
    document = parse_document(registry.manifests[name][str(made.digest)][1])
    assert isinstance(document, Manifest)
    for layer in layers:
        registry.add_blob(name, layer.ztoc, ZTOC_TYPE)
    index = registry.add_manifest(name, "", make_soci_index(list(layers)))
    annotations = {INDEX_DIGEST: str(index.digest)}
    return registry.add_manifest(name, tag, replace(document, annotations=annotations))
