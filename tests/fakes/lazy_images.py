"""Lazily loaded layers for the snapshotter, without images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lazyimg.errors import KernelError
from lazyimg.snapshotter.lifecycle import RemoteLayer, Unpacked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class FakeLazyImages:
    """Some chains are lazy; their mounts are paths.

    Attributes:
        chains: those that are lazy.
        mounted: the layer that is mounted for each user.
        asked: the chains that were asked for.
        broken: nothing can be mounted.
    """

    def __init__(self, *chains: str) -> None:
        self.chains = set(chains)
        self.mounted: dict[int, RemoteLayer] = {}
        self.asked: list[str] = []
        self.broken = False

    async def find(
        self, chain: str, labels: Mapping[str, str], below: RemoteLayer | None
    ) -> RemoteLayer | Unpacked:
        self.asked.append(chain)
        if chain not in self.chains:
            return Unpacked("image", "", "format", "cannot be loaded lazily")
        return RemoteLayer(chain, "image", "linux/amd64", 1 + (below.depth if below else 0))

    async def mount(self, layer: RemoteLayer, user: int, *, comparable: bool = False) -> Path:
        if self.broken:
            raise KernelError("/dev/cachefiles", "is gone")
        self.mounted[user] = layer
        return Path("/mnt") / (f"{layer.chain}-comparable" if comparable else layer.chain)

    async def mount_again(self, layer: RemoteLayer, users: Sequence[int]) -> None:
        for user in users:
            await self.mount(layer, user)

    async def release(self, user: int) -> None:
        self.mounted.pop(user, None)
