"""What a Nydus image's manifest says of its layers. Pure.

The last layer has the bootstrap. The others are blobs with chunks; or, of an image that refers to
ordinary gzip layers, blobs with contexts, each annotated with the digest of the layer that it is
about, which is in the same repository.

Source: nydus-snapshotter, pkg/converter/constant.go and pkg/label/label.go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from lazyimg.errors import NotLazyError
from lazyimg.layers.locate import NYDUS, NYDUS_BOOTSTRAP, name_format

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lazyimg_formats.oci.documents import Descriptor

_REF: Final = "containerd.io/snapshot/nydus-ref"
_ENCRYPTED: Final = "+encrypted"


class NydusLayers(NamedTuple):
    """The layers of a Nydus image.

    Attributes:
        bootstrap: the layer that has it.
        blobs: the others, by digest.
        originals: those of them with the context of a gzip layer, by that layer's digest.
    """

    bootstrap: Descriptor
    blobs: dict[str, Descriptor]
    originals: dict[str, Descriptor]


def is_nydus(layers: Sequence[Descriptor]) -> bool:
    """Whether these are the layers of a Nydus image."""
    return any(name_format(layer) in {NYDUS, NYDUS_BOOTSTRAP} for layer in layers)


def sort_layers(what: str, layers: Sequence[Descriptor]) -> NydusLayers:
    """Give the layers of a Nydus image by what they are.

    Args:
        what: what an error calls the image.
        layers: of its manifest.

    Raises:
        NotLazyError: it has no bootstrap, or an encrypted one.
    """
    bootstrap = layers[-1]
    if name_format(bootstrap) != NYDUS_BOOTSTRAP:
        raise NotLazyError(
            what, "a Nydus image whose last layer is no bootstrap", "convert the image again"
        )
    if bootstrap.media_type.endswith(_ENCRYPTED):
        raise NotLazyError(what, "an encrypted Nydus image", "convert it without encryption")
    blobs = {str(layer.digest): layer for layer in layers[:-1]}
    originals = {layer.annotations[_REF]: layer for layer in layers if _REF in layer.annotations}
    return NydusLayers(bootstrap, blobs, originals)
