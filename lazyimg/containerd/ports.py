"""What a pull tells others, from its own side."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from lazyimg_formats.oci.documents import Descriptor


class Outcome(StrEnum):
    """What became of a layer."""

    LAZY = "lazy"  # the snapshotter shows it without a download
    PRESENT = "present"  # containerd had it already
    UNPACKED = "unpacked"


class Progress(Protocol):
    """Told of every layer. Called in the event loop."""

    def advance(self, layer: Descriptor, done: int) -> None:
        """Say how many bytes of a layer that must be unpacked were fetched, in all.

        Duties: return at once, raise nothing.
        """
        ...

    def end(self, layer: Descriptor, outcome: Outcome) -> None:
        """Say that containerd has a layer; duties as above."""
        ...
