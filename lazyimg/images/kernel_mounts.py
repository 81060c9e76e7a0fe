"""The kernel's mounts of images: one for each, under ROOT/mnt, counted by its users.

The last user to let go unmounts it. How the kernel comes by an image is the way's affair
(`ports.Way`): `cache_mounts` or `file_mounts`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from pathlib import PurePath
from typing import TYPE_CHECKING

from lazyimg.errors import LazyimgError, NotFoundError, StorageError, UsageError
from lazyimg.host import mounts as host
from lazyimg.host.mount_table import mount_at

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from pathlib import Path

    from lazyimg.host.mount_table import MountEntry
    from lazyimg.images.library import ChainRecord
    from lazyimg.images.ports import Way

_log = logging.getLogger(__name__)


class KernelMounts:
    """Mounts images out of users' sight.

    Args:
        root: the daemon's directory, as the mount table has it; has mnt/.
        way: how the kernel comes by them.
    """

    def __init__(self, root: Path, way: Way) -> None:
        self._directory = root / "mnt"
        self._way = way
        self._held: set[str] = set()  # fsids that are mounted under mnt/
        self._users: defaultdict[str, int] = defaultdict(int)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def begin(self) -> None:
        """Begin with nothing mounted but what is dead. Raises StorageError."""
        await self._way.begin()

    async def leave(self, dead: Iterable[str]) -> None:
        """Note that dead mounts on these paths are about to be detached."""
        for path in map(PurePath, dead):
            if path.parent == self._directory:
                await self._way.leave(path.name, self._directory / path.name)

    async def dead(self) -> tuple[str, ...]:
        """Give the fsids, or how they begin, of dead mounts that somebody is in."""
        return await self._way.dead()

    def path(self, fsid: str) -> Path:
        """Where an image is that somebody holds."""
        return self._directory / fsid

    async def hold(self, chain: ChainRecord, users: int = 1) -> Path:
        """Mount an image if it is not, and count so many users more; gives where it is.

        Raises:
            LazyimgError: the kernel refuses; nothing is left.
        """
        fsid = chain.fsid
        path = self._directory / fsid
        async with self._locks[fsid]:
            if fsid in self._held and not await host.mounts_on(str(path)):
                _log.warning("%s: was unmounted by somebody else", path)
                self._held.discard(fsid)
            if fsid not in self._held:
                make_directory(path)
                try:
                    await self._way.mount(chain, path)
                except BaseException:
                    await asyncio.shield(self._take_back(fsid, path))
                    raise
                self._held.add(fsid)
            self._users[fsid] += users
        return path

    async def release(self, fsid: str) -> None:
        """Count one user less, and unmount what has none; if that fails, the next user finds it."""
        path = self._directory / fsid
        async with self._locks[fsid]:
            self._users[fsid] -= 1
            if self._users[fsid]:
                return
            del self._users[fsid]
            await self._let_go(fsid, path)

    async def _take_back(self, fsid: str, path: Path) -> None:
        await _take_off(path)
        await self._way.unmounted(fsid)

    async def _let_go(self, fsid: str, path: Path) -> None:
        try:
            await host.unmount(path)
        except NotFoundError:
            _log.warning("%s: was unmounted by somebody else", path)
        except LazyimgError as error:
            _log.warning("%s; it stays until it is used again, or the daemon ends", error)
            return
        self._held.discard(fsid)
        await self._way.unmounted(fsid)
        _remove_mount_point(path)

    async def prepare(self, chain: ChainRecord) -> str:
        """Have an image ready to be mounted by hand; gives the domain to name there.

        Raises:
            LazyimgError: it cannot be, or the kernel refuses to mount it.
        """
        by_hand = self._way.by_hand
        if by_hand is None:
            raise UsageError(
                f"fsid {chain.fsid}",
                "images are mounted from files here, and not by their fsid",
                "`lazyimg mount REF DIR` mounts this one",
            )
        if await by_hand.is_new(chain):
            await self.hold(chain)
            await self.release(chain.fsid)
        return by_hand.domain_id

    async def adopt(
        self, entries: Sequence[MountEntry], fsids: Iterable[str], kept: Collection[str] = ()
    ) -> None:
        """Take over what another process has mounted; what has no user is unmounted.

        Args:
            entries: of the mount table.
            fsids: one for each user.
            kept: what stays mounted without a user, since it will have one soon.

        Raises:
            StorageError: mnt/, or what that process left, cannot be read.
        """
        for fsid in fsids:
            self._users[fsid] += 1
        for path in await asyncio.to_thread(_list, self._directory):
            if mount_at(entries, str(path)) is None:
                _remove_mount_point(path)
            else:
                self._held.add(path.name)
        await self._way.adopt(self._held | self._users.keys())
        for fsid in sorted(self._held - self._users.keys() - set(kept)):
            await self._let_go(fsid, self.path(fsid))

    async def close(self) -> None:
        """Unmount everything; what is busy is detached, and what cannot be is said."""
        for fsid in sorted(self._held):
            try:
                await host.unmount(self._directory / fsid, lazy=True)
            except LazyimgError as error:
                _log.warning("%s", error)


async def _take_off(path: Path) -> None:
    """Undo a mount under ROOT/mnt that may, or may not, have come about."""
    try:
        if await host.mounts_on(str(path)):
            await host.unmount(path, lazy=True)
    except LazyimgError as error:
        _log.warning("%s: %s", path, error)
    _remove_mount_point(path)


def make_directory(path: Path) -> None:
    """Make a directory that may exist. Raises StorageError."""
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(str(path), f"cannot be made: {error.strerror}") from error


def _list(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError as error:
        raise StorageError(str(directory), f"cannot be read: {error.strerror}") from error


def _remove_mount_point(path: Path) -> None:
    try:
        path.rmdir()
    except OSError as error:  # the next start tries again
        _log.warning("%s: cannot be removed: %s", path, error.strerror)
