"""Indexes of layers in a registry: an artifact that refers to an image, and what names it there.

The artifact is an OCI image manifest that is no image: `artifact_type` says so, its config is the
empty one, and each of its layers is the index of one of the image's layers (a stream index, which
is compressed where that is worth it), with the digest of the layer's blob as annotation. Its
subject is the image's manifest. All of it follows from image and indexes: the same make the same
bytes.

An image can also commit to indexes: its manifest's descriptors of layers then have the digest and
size of the index as annotations. The names begin as those do that containerd gives to snapshotters.

Source: image-spec 1.1, manifest.md, "Guidelines for Artifact Usage".
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import OCI_EMPTY, Descriptor, Manifest
from lazyimg_formats.stream_index import HEADER_SIZE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lazyimg_formats.oci.documents import Index

ARTIFACT: Final = "application/vnd.lazyimg.index.v1"
"""What the artifact is."""

LAYER_INDEX: Final = "application/vnd.lazyimg.index.layer.v1"
"""What each of its layers is: the index of a layer, in the form of `stream_index`, version 1."""

LAYER_DIGEST: Final = "containerd.io/snapshot/lazyimg.layer-digest"
"""In the artifact: the digest of the blob that an index is of."""

INDEX_DIGEST: Final = "containerd.io/snapshot/lazyimg.index-digest"
"""In the manifest of an image, at a layer: the digest of its index."""

INDEX_SIZE: Final = "containerd.io/snapshot/lazyimg.index-size"
"""Beside `INDEX_DIGEST`: bytes of the index."""

EMPTY: Final = b"{}"
"""The config of what has none."""

MAX_INDEX: Final = 1 << 29
"""Bytes of an index that is taken from a registry."""

_WHAT: Final = "index artifact"
_DIGITS: Final = 10


class StoredIndex(NamedTuple):
    """The index of a layer as a registry has it: a blob of `size` bytes."""

    digest: Digest
    size: int


def make_artifact(subject: Descriptor, indexes: Mapping[Digest, StoredIndex]) -> Manifest:
    """Give the artifact that holds indexes of an image's layers.

    Args:
        subject: the image's manifest.
        indexes: by the digest of the layer's blob.
    """
    config = Descriptor(media_type=OCI_EMPTY, digest=Digest.of(EMPTY), size=len(EMPTY))
    layers = [
        Descriptor(
            media_type=LAYER_INDEX,
            digest=index.digest,
            size=index.size,
            annotations={LAYER_DIGEST: str(layer)},
        )
        for layer, index in indexes.items()
    ]
    plain = Descriptor(media_type=subject.media_type, digest=subject.digest, size=subject.size)
    return Manifest(config=config, layers=tuple(layers), artifact_type=ARTIFACT, subject=plain)


def parse_artifact(document: Manifest | Index, subject: Digest) -> dict[Digest, StoredIndex]:
    """Give the indexes in an artifact, by the digest of the layer's blob.

    Args:
        document: as a registry gave it.
        subject: the image's manifest.

    Raises:
        FormatError: it is no such artifact, or of another image.
    """
    if not isinstance(document, Manifest) or document.artifact_type != ARTIFACT:
        raise FormatError(_WHAT, f"is {document.artifact_type[:80]!r}")
    if document.subject is None or document.subject.digest != subject:
        raise FormatError(_WHAT, "refers to another image")
    found: dict[Digest, StoredIndex] = {}
    for layer in document.layers:
        if layer.media_type != LAYER_INDEX:
            continue
        of = Digest.parse(layer.annotations.get(LAYER_DIGEST, ""))
        if of in found:
            raise FormatError(_WHAT, f"has two indexes of {of}")
        found[of] = _stored(layer.digest, layer.size)
    return found


def embed_index(layer: Descriptor, index: StoredIndex) -> Descriptor:
    """Give the descriptor of a layer that commits to its index."""
    annotations = {INDEX_DIGEST: str(index.digest), INDEX_SIZE: str(index.size)}
    return replace(layer, annotations={**layer.annotations, **annotations})


def parse_embedded(layer: Descriptor) -> StoredIndex | None:
    """Give the index that the descriptor of a layer commits to; None if there is none.

    Raises:
        FormatError: its annotations say nothing.
    """
    if INDEX_DIGEST not in layer.annotations:
        return None
    text = layer.annotations.get(INDEX_SIZE, "")
    if not text.isascii() or not text.isdecimal() or len(text) > _DIGITS:
        raise FormatError("index", f"cannot have a size of {text[:20]!r}")
    return _stored(Digest.parse(layer.annotations[INDEX_DIGEST]), int(text))


def _stored(digest: Digest, size: int) -> StoredIndex:
    if not HEADER_SIZE <= size <= MAX_INDEX:
        raise FormatError("index", f"{size} bytes, {HEADER_SIZE} to {MAX_INDEX} allowed")
    return StoredIndex(digest, size)
