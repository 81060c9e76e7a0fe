"""Labels of a snapshot that say which image its layer belongs to.

Whoever has containerd unpack an image may send them with each Prepare:

| by                                | reference               | manifest                     |
|-----------------------------------|-------------------------|------------------------------|
| CRI, the transfer service, lazyimg| cri.image-ref           | cri.manifest-digest          |
| soci image rpull, since 0.3       | the same                | the same                     |
| soci image rpull, before          | remote/soci.reference   | remote/image.manifest.digest |
| ctr-remote images rpull (stargz)  | remote/stargz.reference |                              |

all behind ``containerd.io/snapshot/``. Annotations of a layer in its manifest become labels, too,
if they are called so: what an image says of itself must not overrule what its puller says, so
labels that name two images are refused. Sources: containerd, pkg/snapshotters/annotations.go and
core/snapshots/snapshotter.go (FilterInheritedLabels); soci-snapshotter and stargz-snapshotter,
fs/source/source.go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.digest import Digest

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX: Final = "containerd.io/snapshot/"
REFERENCE: Final = f"{PREFIX}cri.image-ref"
MANIFEST: Final = f"{PREFIX}cri.manifest-digest"
LAYER: Final = f"{PREFIX}cri.layer-digest"

_REFERENCES: Final = (
    REFERENCE,
    f"{PREFIX}remote/soci.reference",
    f"{PREFIX}remote/stargz.reference",
)
_MANIFESTS: Final = (MANIFEST, f"{PREFIX}remote/image.manifest.digest")


@dataclass(frozen=True, slots=True)
class ImageLabels:
    """The image that a layer is pulled for.

    Attributes:
        reference: as the user named it.
        manifest: the digest of the platform's manifest; None where that is not said.
    """

    reference: str
    manifest: Digest | None


def parse_image_labels(labels: Mapping[str, str]) -> ImageLabels | None:
    """Give the image that labels name; None if they name none.

    Raises:
        FormatError: they name two images, or the manifest's digest is none.
    """
    references = {labels[name] for name in _REFERENCES if labels.get(name)}
    if not references:
        return None
    if len(references) > 1:
        raise FormatError("labels of a snapshot", "they name two images")
    digest = next((labels[name] for name in _MANIFESTS if labels.get(name)), None)
    try:
        return ImageLabels(references.pop(), None if digest is None else Digest.parse(digest))
    except FormatError as error:
        raise FormatError("labels of a snapshot", str(error)) from error


def serialize_image_labels(reference: str, manifest: Digest, layer: Digest) -> dict[str, str]:
    """Give the labels for one layer of an image."""
    return {REFERENCE: reference, MANIFEST: str(manifest), LAYER: str(layer)}
