"""Manifests that refer to another one, their subject: the list of them, and where it is kept.

A registry lists them itself (GET ``referrers/<digest>``); where it does not, clients keep the list
as an image index under a tag that is made of the subject's digest. Source: distribution-spec 1.1,
"Listing Referrers" and "Referrers Tag Schema".
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.documents import Descriptor, Index, parse_document

if TYPE_CHECKING:
    from lazyimg_formats.oci.digest import Digest
    from lazyimg_formats.oci.documents import Manifest

MAX_REFERRERS: Final = 4096
"""Entries of a list that are read."""

_ALGORITHM: Final = 32  # characters of a tag that name the algorithm, and the hash
_HEX: Final = 64


def referrers_tag(subject: Digest) -> str:
    """Give the tag under which clients list what refers to `subject`."""
    return f"{subject.algorithm[:_ALGORITHM]}-{subject.hex[:_HEX]}"


def parse_referrers(data: bytes, media_type: str = "") -> Index:
    """Give a list of referrers.

    Args:
        data: the document.
        media_type: what its transport calls it; "" when it does not say.

    Raises:
        FormatError: no such list, or one with over `MAX_REFERRERS` entries.
    """
    document = parse_document(data, media_type)
    if not isinstance(document, Index):
        raise FormatError("list of referrers", "is a manifest")
    if len(document.manifests) > MAX_REFERRERS:
        raise FormatError("list of referrers", f"has over {MAX_REFERRERS} entries")
    return document


def describe_referrer(descriptor: Descriptor, manifest: Manifest) -> Descriptor:
    """Give the entry of a list for a manifest: what it is, and what it says of itself."""
    return replace(
        descriptor,
        artifact_type=manifest.artifact_type or manifest.config.media_type,
        annotations=manifest.annotations,
    )


def add_referrer(known: Index | None, entry: Descriptor) -> Index:
    """Give a list with an entry more, or with the same one again."""
    return replace(known or Index(manifests=()), manifests=(*_without(known, entry.digest), entry))


def remove_referrer(known: Index, digest: Digest) -> Index:
    """Give a list without an entry."""
    return replace(known, manifests=_without(known, digest))


def _without(known: Index | None, digest: Digest) -> tuple[Descriptor, ...]:
    return tuple(entry for entry in (known.manifests if known else ()) if entry.digest != digest)
