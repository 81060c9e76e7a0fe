"""Images of ordinary layers in a registry, and the indexes of their layers."""

from __future__ import annotations

import gzip
import tempfile
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lazyimg.images.indexing import IndexRequest, index
from lazyimg_formats.index_artifact import (
    EMPTY,
    LAYER_INDEX,
    StoredIndex,
    embed_index,
    make_artifact,
)
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import (
    OCI_EMPTY,
    OCI_LAYER_GZIP,
    Manifest,
    describe,
    parse_document,
)
from lazyimg_formats.oci.referrers import add_referrer, describe_referrer, referrers_tag
from tests.fakes.gzip_layer import make_tar

if TYPE_CHECKING:
    from lazyimg_formats.oci.documents import Descriptor
    from tests.fakes.registry import FakeRegistry


class PlainLayer:
    """A gzip layer with these files, and its index (which is in no registry yet).

    Attributes:
        tar: the layer's.
        blob: the layer.
        index: as `lazyimg index create` makes it.
    """

    def __init__(self, files: dict[str, bytes], level: int = 1) -> None:
        self.tar = make_tar(files)
        self.blob = gzip.compress(self.tar, level, mtime=0)
        self.index = make_index(self.blob, self.tar)

    @property
    def descriptor(self) -> Descriptor:
        return describe(self.blob, OCI_LAYER_GZIP)

    @property
    def stored(self) -> StoredIndex:
        return StoredIndex(Digest.of(self.index), len(self.index))


def make_index(blob: bytes, tar: bytes) -> bytes:
    """Give the index of a layer."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "index")
        request = IndexRequest(str(Digest.of(blob)), len(blob), str(Digest.of(tar)), str(path))
        index(request, iter([blob]))
        return path.read_bytes()


def add_plain_image(
    registry: FakeRegistry, name: str, tag: str, *layers: PlainLayer, committed: bool = False
) -> Descriptor:
    """Put an image of ordinary layers into a registry; with its indexes, if it commits to them."""
    made = registry.add_image(name, "", {layer.blob: layer.tar for layer in layers})
    document = parse_document(registry.manifests[name][str(made.digest)][1])
    assert isinstance(document, Manifest)
    descriptors = [layer.descriptor for layer in layers]
    if committed:
        descriptors = [embed_index(one.descriptor, one.stored) for one in layers]
        for layer in layers:
            registry.add_blob(name, layer.index, LAYER_INDEX)
    return registry.add_manifest(name, tag, replace(document, layers=tuple(descriptors)))


def lie(layer: PlainLayer, index: bytes) -> PlainLayer:
    """Give a layer with another index."""
    lying = copy(layer)
    lying.index = index
    return lying


def refer(registry: FakeRegistry, name: str, image: Descriptor, *layers: PlainLayer) -> Descriptor:
    """Have an artifact with the indexes of layers refer to an image."""
    registry.add_blob(name, EMPTY, OCI_EMPTY)
    for layer in layers:
        registry.add_blob(name, layer.index, LAYER_INDEX)
    artifact = make_artifact(image, {one.descriptor.digest: one.stored for one in layers})
    made = registry.add_manifest(name, "", artifact)
    listed = add_referrer(None, describe_referrer(made, artifact))
    registry.add_manifest(name, referrers_tag(image.digest), listed)
    return made
