"""What the snapshotter needs of the rest of lazyimg, from its own side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lazyimg.snapshotter.lifecycle import RemoteLayer, Unpacked


class LazyImages(Protocol):
    """Shows layers that were not downloaded."""

    async def find(
        self, chain: str, labels: Mapping[str, str], below: RemoteLayer | None
    ) -> RemoteLayer | Unpacked:
        """Give what shows a chain of layers, or why its uppermost layer is to be unpacked as usual.

        Never raises for an image's or a registry's sake: it logs why, and the layer is unpacked.

        Args:
            chain: the chain ID of a layer and those below it.
            labels: of the Prepare.
            below: what shows the chain without its uppermost layer; None: it has no other.
        """
        ...

    async def mount(self, layer: RemoteLayer, user: int, *, comparable: bool = False) -> Path:
        """Mount layers for a snapshot, or give where they are mounted for it already.

        Args:
            layer: what to mount.
            user: the snapshot.
            comparable: with times by which containerd can compare two trees without reading files,
                if that can be had.

        Raises:
            LazyimgError: the kernel refuses, or the registry is needed and does not answer.
        """
        ...

    async def mount_again(self, layer: RemoteLayer, users: Sequence[int]) -> None:
        """Mount layers for snapshots that a process before this one mounted them for.

        Asks no registry; nobody else calls meanwhile.

        Raises:
            LazyimgError: the kernel refuses, or it is not known what to mount.
        """
        ...

    async def release(self, user: int) -> None:
        """Take back what was mounted for a snapshot; nothing, if nothing was. Never raises."""
        ...
