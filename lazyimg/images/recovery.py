"""What a process that died left: its mounts are taken over, or made again.

After a worker died while the supervisor kept the kernel's fd: mounts that work, which are taken
over; a mount that it had not finished is undone, an unmount is finished. After both died, or a
reboot: dead mounts or none; what was recorded is mounted again in its place, with what had been
written to it, and what cannot be is tried again later (`lazyimg.images.lost`). Who was in a dead
mount keeps it.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lazyimg.errors import LazyimgError, NotFoundError, StorageError
from lazyimg.host import mounts as host
from lazyimg.images.image import Image
from lazyimg.images.library import MountState
from lazyimg.images.mounted import Mounted, is_of, unmount_ours
from lazyimg.images.scratch import remove_scratch

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from lazyimg.host.mount_table import MountEntry
    from lazyimg.host.own_mounts import OwnMounts
    from lazyimg.images.kernel_mounts import KernelMounts
    from lazyimg.images.library import Library, MountRecord

_log = logging.getLogger(__name__)


class Recovery:
    """Makes the mount table and the records agree, before anything else is mounted.

    Args:
        own: the daemon's directory, and what tells its mounts.
        library: has the records.
        kernel: takes the kernel's mounts over.
    """

    def __init__(self, own: OwnMounts, library: Library, kernel: KernelMounts) -> None:
        self._own = own
        self._root = own.root
        self._library = library
        self._kernel = kernel

    async def adopt(self, fsids: Collection[str]) -> tuple[list[Mounted], list[Mounted]]:
        """Take over the mounts of the process before this one, which work.

        Gives those, and others that were lost by a process before that one.

        Args:
            fsids: what stays mounted even if no directory shows it.

        Raises:
            LazyimgError: the records cannot be used, or the mount table cannot be read.
        """
        kept: list[Mounted] = []
        lost: list[Mounted] = []
        records = await asyncio.to_thread(self._library.mounts)
        entries = await host.mount_table()
        for record in records:
            mounted = await self._describe(record)
            if mounted is not None and record.state is MountState.LOST:
                lost.append(mounted)
            elif mounted is not None and await self._is_kept(record.state, mounted, entries):
                kept.append(mounted)
                await asyncio.to_thread(
                    self._library.set_mount, record.directory, MountState.MOUNTED
                )
            else:
                await self._forget(record)
        await self._kernel.adopt(entries, [mounted.image.chain.fsid for mounted in kept], fsids)
        if kept:
            _log.info("%d mounts were taken over", len(kept))
        return kept, lost

    async def _is_kept(
        self, state: MountState, mounted: Mounted, entries: Sequence[MountEntry]
    ) -> bool:
        """Finish or undo what was begun with a mount; gives whether it is there to stay."""
        directory, scratch = mounted.directory, mounted.scratch
        ours = [
            entry for entry in entries if entry.mount_point == directory and is_of(entry, mounted)
        ]
        try:
            if ours and state is MountState.UNMOUNTING:
                await unmount_ours(mounted)
            elif ours and state in {MountState.MOUNTING, MountState.DETACHING}:
                await host.unmount(Path(directory), lazy=True)
            elif ours:
                return True
        except LazyimgError as error:
            _log.warning("%s: it stays mounted: %s", directory, error)
            return True
        if state is MountState.MOUNTED:
            _log.warning("%s: was unmounted by somebody else", directory)
        elif scratch is not None and state is not MountState.DETACHING:
            await asyncio.to_thread(remove_scratch, scratch)
        return False

    async def clear(self) -> list[Mounted]:
        """Detach what is dead, and give what is to be put in its place.

        Raises:
            LazyimgError: the kernel refuses, or the records cannot be used.
        """
        await self._detach_dead()
        await self._kernel.begin()
        records = await asyncio.to_thread(self._library.mounts)
        lasting = {MountState.MOUNTED, MountState.LOST}
        wanted = [record for record in records if record.state in lasting]
        try:
            kept = {record.scratch for record in wanted}
            await asyncio.to_thread(self._remove_leftovers, kept)
        except OSError as error:
            raise StorageError(
                str(error.filename), f"cannot be removed: {error.strerror}", "remove it"
            ) from error
        found: list[Mounted] = []
        for record in records:
            mounted = await self._describe(record) if record in wanted else None
            if mounted is None:
                await self._forget(record)
            else:
                found.append(mounted)
        return found

    async def _detach_dead(self) -> None:
        stale = [mount.mount_point for mount in await host.mount_table() if self._is_ours(mount)]
        await self._kernel.leave(stale)
        for target in reversed(stale):
            _log.warning("%s: left by a daemon that died; unmounted", target)
            with suppress(NotFoundError):  # it went with one that it was propagated from
                await host.unmount(Path(target), lazy=True)

    def _is_ours(self, mount: MountEntry) -> bool:
        if self._own.is_image(mount):
            return True
        upper = mount.super_option("upperdir") or ""
        return mount.fs_type == "overlay" and upper.startswith(f"{self._root}/scratch/")

    def _remove_leftovers(self, kept: set[str]) -> None:
        for path in (self._root / "mnt").iterdir():
            path.rmdir()
        for path in (self._root / "scratch").iterdir():
            if path.name not in kept:
                remove_scratch(path)

    async def _describe(self, record: MountRecord) -> Mounted | None:
        image = record.image
        chain = await asyncio.to_thread(self._library.find_chain, image.chain)
        if chain is None:
            _log.warning("%s: %s is not known any more", record.directory, image.reference)
            return None
        scratch = self._root / "scratch" / record.scratch if record.scratch else None
        known = Image(image.reference, image.digest, image.platform, chain)
        return Mounted(known, record.directory, scratch)

    async def _forget(self, record: MountRecord) -> None:
        await asyncio.to_thread(self._library.remove_mount, record.directory)
