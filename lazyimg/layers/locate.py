"""Which format a layer is in, and where its index lies: from its descriptor alone.

An eStargz layer's descriptor has the digest of its index; where it lies stands at the blob's end,
which `lazyimg.layers.fetch.find_index` reads.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import msgspec

from lazyimg.errors import CorruptError, NotLazyError
from lazyimg_formats.errors import FormatError
from lazyimg_formats.estargz.location import TOC_DIGEST
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import (
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_LAYER_ZSTD,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
)
from lazyimg_formats.zstd_chunked.location import parse_annotations

if TYPE_CHECKING:
    from lazyimg_formats.oci.documents import Descriptor

BOOTSTRAP: Final = "containerd.io/snapshot/nydus-bootstrap"
"""Annotation of the layer with a Nydus image's bootstrap."""

ZSTD_CHUNKED: Final = "zstd:chunked"
ESTARGZ: Final = "estargz"

ZSTD_STARGZ: Final = "zstd:chunked (stargz)"
"""What stargz-snapshotter calls zstd:chunked, and old versions of containers/storage did."""

STARGZ: Final = frozenset({ESTARGZ, ZSTD_STARGZ})
"""The formats of stargz-snapshotter."""

LAZY: Final = frozenset({ZSTD_CHUNKED}) | STARGZ
"""The formats that can be loaded lazily."""

SOCI: Final = "soci"
"""A plain layer with a zTOC: an artifact. No layer's descriptor says so."""

NYDUS: Final = "nydus"
"""A blob of a Nydus image."""

NYDUS_BOOTSTRAP: Final = "nydus bootstrap"
"""The layer that has the index of a whole Nydus image."""

PLAIN: Final = frozenset({"gzip", "zstd", "tar"})
"""The formats that have no index, and of which a node can make its own."""

_FORMATS: Final = {
    OCI_LAYER: "tar",
    DOCKER_LAYER: "tar",
    OCI_LAYER_GZIP: "gzip",
    DOCKER_LAYER_GZIP: "gzip",
    OCI_LAYER_ZSTD: "zstd",
    DOCKER_LAYER_ZSTD: "zstd",
    "application/vnd.oci.image.layer.nydus.blob.v1": NYDUS,
}


class IndexLocation(msgspec.Struct, frozen=True):
    """Where a layer's index is.

    Attributes:
        format: of the layer; one of `LAZY`, or of `PLAIN`: then the index is an artifact, or the
            node has made it; or `SOCI`.
        offset: of the index's first byte in the layer's blob.
        length: its bytes in the blob, or as a blob of its own; of eStargz, up to the blob's end.
            0: not known yet.
        decoded_length: its bytes when decoded; of eStargz: 0.
        digest: of its bytes in the blob, of eStargz when decoded; the manifest commits to it.
        blob: digest of the layer's blob, where `digest` does not cover where the index lies in it.
        artifact: digest of the blob that is the index, in the image's repository, of `length`
            bytes; "": it is in the layer's blob, or this node has made it.
        loose: the manifest of the platform's image does not commit to `digest`: it is what the
            image's repository says, and good for no other one.
    """

    format: str
    offset: int
    length: int
    decoded_length: int
    digest: str
    blob: str = ""
    artifact: str = ""
    loose: bool = False

    @property
    def place(self) -> str:
        """Where it is, in one word: in the "layer", in the "repository", on the "node"."""
        if self.artifact:
            return "repository"
        return "node" if self.format in PLAIN else "layer"

    @property
    def name(self) -> str:
        """What files made from this index are called."""
        if self.blob:
            return hashlib.sha256(f"{self.digest} in {self.blob}".encode()).hexdigest()
        return self.digest.partition(":")[2]


def name_format(layer: Descriptor) -> str:
    """Give the format of a layer in one word: one of `LAZY`, or another."""
    known = _FORMATS.get(layer.media_type, layer.media_type)
    if BOOTSTRAP in layer.annotations:
        return NYDUS_BOOTSTRAP
    if known == "gzip" and TOC_DIGEST in layer.annotations:
        return ESTARGZ
    if known != "zstd":
        return known
    try:
        toc = parse_annotations(layer.annotations, layer.size)
    except FormatError:
        return ZSTD_CHUNKED  # a broken one; `locate_index` says how
    if toc is None:
        return known
    return ZSTD_STARGZ if toc.stargz else ZSTD_CHUNKED


def locate_index(layer: Descriptor, what: str) -> IndexLocation:
    """Give where a layer's index is.

    Args:
        layer: from the manifest.
        what: what an error calls it: the image, and which layer.

    Raises:
        NotLazyError: a layer of this format cannot be loaded lazily.
        CorruptError: the annotations contradict each other.
    """
    kind = name_format(layer)
    if kind in {NYDUS, NYDUS_BOOTSTRAP}:
        raise NotLazyError(
            what, "a part of a Nydus image: only all of it can be loaded lazily", "mount the image"
        )
    if kind not in LAZY:
        raise NotLazyError(
            what,
            f"a layer of format {kind} cannot be loaded lazily, only {', '.join(sorted(LAZY))}",
            "convert the image: lazyimg convert SRC DST"
            + (", or: lazyimg index create REF --local" if kind in PLAIN else ""),
        )
    try:
        if kind == ESTARGZ:
            digest = str(Digest.parse(layer.annotations[TOC_DIGEST]))
            return IndexLocation(kind, 0, 0, 0, digest, str(layer.digest))
        toc = parse_annotations(layer.annotations, layer.size)
    except FormatError as error:
        raise CorruptError(what, str(error), "convert the image again") from error
    if toc is None or toc.digest is None:
        raise AssertionError(kind)
    return IndexLocation(kind, toc.offset, toc.length, toc.decoded_length, str(toc.digest))
