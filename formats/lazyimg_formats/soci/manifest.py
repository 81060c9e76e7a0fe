"""A SOCI index: which zTOC belongs to which layer of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import Manifest, parse_document
from lazyimg_formats.soci.ztoc import MAX_ZTOC

if TYPE_CHECKING:
    from lazyimg_formats.oci.documents import Descriptor

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
