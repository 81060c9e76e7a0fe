"""What mounting images needs of the ways to do it, from its own side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from lazyimg.errors import StorageError
    from lazyimg.images.library import ChainRecord


class ByHand(Protocol):
    """How images come to be mounted by mount(8)."""

    @property
    def domain_id(self) -> str:
        """What must be said there besides the fsid."""
        ...

    async def is_new(self, chain: ChainRecord) -> bool:
        """Tell whether an image must have been mounted here once before. Raises StorageError."""
        ...


class Way(Protocol):
    """How the kernel comes by an image: one for each kind of transport."""

    @property
    def by_hand(self) -> ByHand | None:
        """Say how it is mounted by mount(8); None: not at all."""
        ...

    async def adopt(self, fsids: Collection[str]) -> None:
        """Begin with images that the process before this one has mounted, which work.

        Raises:
            StorageError: what it left cannot be read.
        """
        ...

    async def leave(self, fsid: str, path: Path) -> None:
        """Note that a dead mount of an image is about to be detached. Raises nothing."""
        ...

    async def begin(self) -> None:
        """Begin with nothing mounted but what is dead, detached and in use.

        Raises:
            StorageError: what is kept for the next process cannot be written.
        """
        ...

    async def mount(self, chain: ChainRecord, path: Path) -> None:
        """Mount an image on an empty directory. Whether it succeeds or not, `unmounted` follows.

        Raises:
            LazyimgError: it cannot be mounted; then something may be mounted there.
        """
        ...

    async def unmounted(self, fsid: str) -> None:
        """Note that an image is mounted no more; somebody may be in it yet. Raises nothing."""
        ...

    async def dead(self) -> tuple[str, ...]:
        """Give the fsids, or how they begin, of dead mounts that somebody is in."""
        ...


class Staging(Protocol):
    """Where devices are made whole, before the cache has them. All of it blocks."""

    def stage(self) -> Path:
        """Give the path of a new file, to write a whole device to.

        It is to be given to `publish` or `abandon`; what is left is removed at the next start.

        Raises:
            StorageError: the disk is full or fails.
        """
        ...

    def publish(self, staged: Path, name: str) -> None:
        """Take a device that was staged whole, and synced; `staged` is gone afterwards.

        Raises:
            StorageError: the disk is full or fails.
        """
        ...

    def abandon(self, staged: Path) -> None:
        """Remove what `stage` gave, as far as it is there. Raises OSError."""
        ...

    def shortage(self) -> StorageError | None:
        """Say why nothing is stored now; None if there is room. Raises OSError."""
        ...

    def reserve(self) -> int:
        """Give the bytes that stay free beside what is stored. Raises OSError."""
        ...
