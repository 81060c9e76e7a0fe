"""What a conversion tells others, from its own side."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from lazyimg_formats.oci.documents import Descriptor


class Outcome(StrEnum):
    """What became of a layer."""

    CONVERTED = "converted"
    COPIED = "copied"  # it was lazily loadable already
    PRESENT = "present"  # the target had it already


class Progress(Protocol):
    """Told of every layer, named by its descriptor in the source. Called in the event loop."""

    def begin(self, layer: Descriptor) -> None:
        """Say that a layer begins; `layer.size` compressed bytes will be read, unless it is there.

        Duties: return at once, raise nothing.
        """
        ...

    def advance(self, layer: Descriptor, read: int, written: int) -> None:
        """Say how many more bytes were read and written since the last call."""
        ...

    def end(self, layer: Descriptor, outcome: Outcome, whole: str = "") -> None:
        """Say that a layer is in the target.

        Args:
            layer: which.
            outcome: how it came there.
            whole: why the converted layer has no tar-split data, so that podman pulls it whole;
                "": it has.
        """
        ...


class Silence:
    """A Progress that nobody hears."""

    def begin(self, layer: Descriptor) -> None:
        """See Progress."""

    def advance(self, layer: Descriptor, read: int, written: int) -> None:
        """See Progress."""

    def end(self, layer: Descriptor, outcome: Outcome, whole: str = "") -> None:
        """See Progress."""
