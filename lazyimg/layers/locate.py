"""Which format a layer is in, and where its index lies: from its descriptor alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from lazyimg.errors import CorruptError, NotLazyError
from lazyimg_formats.errors import FormatError
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

ZSTD_CHUNKED: Final = "zstd:chunked"

LAZY: Final = frozenset({ZSTD_CHUNKED})
"""The formats that can be loaded lazily."""

_FORMATS: Final = {
    OCI_LAYER: "tar",
    DOCKER_LAYER: "tar",
    OCI_LAYER_GZIP: "gzip",
    DOCKER_LAYER_GZIP: "gzip",
    OCI_LAYER_ZSTD: "zstd",
    DOCKER_LAYER_ZSTD: "zstd",
    "application/vnd.oci.image.layer.nydus.blob.v1": "nydus",
}

_STARGZ_TOC: Final = "containerd.io/snapshot/stargz/toc.digest"


class IndexLocation(msgspec.Struct, frozen=True):
    """Where a layer's index is.

    Attributes:
        format: of the layer; one of `LAZY`.
        offset: of the index's first byte in the layer's blob.
        length: its bytes in the blob.
        decoded_length: its bytes when decoded.
        digest: of its bytes in the blob; the manifest commits to it.
    """

    format: str
    offset: int
    length: int
    decoded_length: int
    digest: str

    @property
    def name(self) -> str:
        """What files made from this index are called."""
        return self.digest.partition(":")[2]


def name_format(layer: Descriptor) -> str:
    """Give the format of a layer in one word: one of `LAZY`, or another."""
    known = _FORMATS.get(layer.media_type, layer.media_type)
    if known == "gzip" and _STARGZ_TOC in layer.annotations:
        return "estargz"
    try:
        if known == "zstd" and parse_annotations(layer.annotations, layer.size) is not None:
            return ZSTD_CHUNKED
    except FormatError:
        return ZSTD_CHUNKED  # a broken one; `locate_index` says how
    return known


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
    if kind not in LAZY:
        raise NotLazyError(
            what,
            f"a layer of format {kind} cannot be loaded lazily, only {', '.join(sorted(LAZY))}",
            "convert the image: lazyimg convert SRC DST",
        )
    try:
        toc = parse_annotations(layer.annotations, layer.size)
    except FormatError as error:
        raise CorruptError(what, str(error), "convert the image again") from error
    if toc is None or toc.digest is None:
        raise AssertionError(kind)
    return IndexLocation(kind, toc.offset, toc.length, toc.decoded_length, str(toc.digest))
