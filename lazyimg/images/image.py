"""An image, as far as this node has it: ready to be mounted, described, or to be read whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from lazyimg.images.library import LayerClaim

if TYPE_CHECKING:
    from pathlib import Path

    from lazyimg.images.library import ChainRecord
    from lazyimg.layers.locate import IndexLocation
    from lazyimg.registry.ports import ImageSource
    from lazyimg_formats.oci.documents import Descriptor


@dataclass(frozen=True, slots=True)
class Image:
    """An image of this node.

    Attributes:
        reference: canonical, with the tag or digest asked for.
        digest: of the platform's manifest.
        platform: os/arch[/variant].
        chain: its bootstrap and layers.
        streamed: bytes of blobs that were read whole for it now: of layers without an index.
    """

    reference: str
    digest: str
    platform: str
    chain: ChainRecord
    streamed: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Description:
    """An image as its manifest describes it.

    Attributes:
        reference: canonical, with the tag or digest asked for.
        digest: of the platform's manifest.
        platform: os/arch[/variant].
        layers: their descriptors, lowest first.
        formats: of each layer, in the words of `lazyimg.layers`.
        indexes: where the index of each layer is: an `IndexLocation.place`, or "".
        chain: its bootstrap and devices, if it was made ready on this node.
    """

    reference: str
    digest: str
    platform: str
    layers: tuple[Descriptor, ...]
    formats: tuple[str, ...]
    indexes: tuple[str, ...]
    chain: ChainRecord | None


class ImageLayer(NamedTuple):
    """One layer of an image, and what the image says of it.

    Attributes:
        source: has its blob.
        descriptor: of the blob.
        diff_id: digest of its tar.
        location: of its index in the blob.
        path: the file of its index.
    """

    source: ImageSource
    descriptor: Descriptor
    diff_id: str
    location: IndexLocation
    path: Path

    @property
    def claim(self) -> LayerClaim:
        """What a check of it is recorded under."""
        return LayerClaim(str(self.descriptor.digest), self.diff_id, self.location.name)
