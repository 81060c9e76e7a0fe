"""A SOCI index: which zTOC belongs to which layer of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import Descriptor, Manifest, describe, parse_document
from lazyimg_formats.soci.ztoc import MAX_ZTOC

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lazyimg_formats.index_artifact import StoredIndex

SOCI_V1: Final = "application/vnd.amazon.soci.index.v1+json"
"""The media type of the config of an index that refers to its image."""

SOCI_V2: Final = "application/vnd.amazon.soci.index.v2+json"
"""The same of an index that the image names."""

ZTOC_TYPE: Final = "application/octet-stream"
"""The media type of a zTOC."""

INDEX_DIGEST: Final = "com.amazon.soci.index-digest"
"""The annotation of an image's manifest that has the digest of its index."""

MANIFEST_DIGEST: Final = "com.amazon.soci.image-manifest-digest"
"""The annotation of an index's entry, in the image index, that says which image it is of."""

LAYER_TYPE: Final = "com.amazon.soci.image-layer-mediaType"
"""The annotation of a zTOC that says what media type its layer has."""

BUILD_TOOL: Final = "com.amazon.soci.build-tool-identifier"
"""The annotation of an index that says what has made it."""

EMPTY: Final = b"{}"
"""The config of an index."""

LAYER_DIGEST: Final = "com.amazon.soci.image-layer-digest"
"""The annotation of a zTOC that says which layer it is of."""

_WHAT: Final = "SOCI index"


def parse_soci_index(data: bytes, subject: Digest | None = None) -> dict[Digest, Descriptor]:
    """Give the zTOC of each layer that has one.

    Args:
        data: the index.
        subject: the manifest that it must refer to; None: whoever names it has vouched for it.

    Raises:
        FormatError: it is none, is another image's, or has two zTOCs of one layer.
    """
    document = parse_document(data)
    if not isinstance(document, Manifest) or document.config.media_type not in {SOCI_V1, SOCI_V2}:
        raise FormatError(_WHAT, "it is another document")
    if subject is not None and (document.subject is None or document.subject.digest != subject):
        found = "nothing" if document.subject is None else str(document.subject.digest)
        raise FormatError(_WHAT, f"it refers to {found}, expected {subject}")
    ztocs: dict[Digest, Descriptor] = {}
    for one in document.layers:
        layer = one.annotations.get(LAYER_DIGEST)
        if one.media_type != ZTOC_TYPE or layer is None:
            continue  # what is to be fetched first
        if not 0 < one.size <= MAX_ZTOC:
            raise FormatError(_WHAT, f"a zTOC of {one.size} bytes, the limit is {MAX_ZTOC}")
        if ztocs.setdefault(Digest.parse(layer), one).digest != one.digest:
            raise FormatError(_WHAT, f"two zTOCs of layer {layer[:80]}")
    return ztocs


def make_soci_index(
    ztocs: Iterable[tuple[Descriptor, StoredIndex]], subject: Descriptor | None
) -> Manifest:
    """Give the SOCI index of an image.

    Args:
        ztocs: layers, and their zTOCs.
        subject: the manifest that it refers to: version 1. None: version 2.
    """
    kind = SOCI_V2 if subject is None else SOCI_V1
    layers = tuple(
        Descriptor(
            media_type=ZTOC_TYPE,
            digest=ztoc.digest,
            size=ztoc.size,
            annotations={LAYER_TYPE: layer.media_type, LAYER_DIGEST: str(layer.digest)},
        )
        for layer, ztoc in ztocs
    )
    return Manifest(
        config=describe(EMPTY, kind),
        layers=layers,
        subject=subject,
        annotations={BUILD_TOOL: "lazyimg"},
    )
