"""The mounts of images: one of the kernel's for each image, under ROOT/mnt, held by its users.

A user's directory is a bind mount of it, or an overlay on top of it; a prefetch holds it without a
directory. The last one to let go unmounts it. The kernel takes an image's name once in a domain,
so there can never be two.

Rules:
  - the daemon itself never looks into a mount, nor at a user's directory, which may lie in one:
    all of that happens in `lazyimg.host.mounts`' child;
  - whatever fails half-way is undone before the failure is reported.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lazyimg.errors import InUseError, LazyimgError, NotFoundError
from lazyimg.host import mounts as host

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lazyimg.host.mount_table import MountEntry
    from lazyimg.images.service import Image

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mounted:
    """An image on a user's directory.

    Attributes:
        image: what is mounted.
        directory: where; absolute.
        scratch: of a read-write mount: holds its upper and work directories.
    """

    image: Image
    directory: str
    scratch: Path | None


class Mounts:
    """Mounts images.

    Args:
        root: the daemon's directory; has mnt/ and scratch/.
        domain_id: in which all images are mounted.
        read_ahead: bytes.
    """

    def __init__(self, root: Path, domain_id: str, read_ahead: int) -> None:
        self._root = root
        self._domain_id = domain_id
        self._read_ahead = read_ahead
        self._mounted: dict[str, Mounted] = {}
        self._users: defaultdict[str, int] = defaultdict(int)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def list(self) -> list[Mounted]:
        """Give all mounts on users' directories."""
        return list(self._mounted.values())

    def find(self, directory: str) -> Mounted:
        """Give the mount on a directory.

        Raises:
            NotFoundError: none of ours is there.
        """
        mounted = self._mounted.get(directory)
        if mounted is None:
            raise NotFoundError(
                directory, "no image is mounted there", "'lazyimg mount' lists what is mounted"
            )
        return mounted

    async def mount(self, image: Image, directory: str, *, read_write: bool) -> Mounted:
        """Put an image on a directory.

        Raises:
            InUseError: an image is mounted there.
            LazyimgError: the kernel refuses.
        """
        async with self._locks[directory]:
            if directory in self._mounted:
                other = self._mounted[directory].image.reference
                raise InUseError(
                    directory, f"{other} is mounted there", f"lazyimg umount {directory}"
                )
            lower = await self._hold(image)
            try:
                scratch = await self._put(lower, directory, read_write=read_write)
            except BaseException:
                await asyncio.shield(self._release(image))
                raise
            mounted = self._mounted[directory] = Mounted(image, directory, scratch)
        return mounted

    async def unmount(self, directory: str, *, lazy: bool) -> Mounted:
        """Take an image off a directory.

        Raises:
            NotFoundError: none of ours is there.
            InUseError: it is busy, and `lazy` was not asked for.
        """
        async with self._locks[directory]:
            mounted = self.find(directory)
            try:
                await host.unmount(Path(directory))
            except InUseError:
                if not lazy:
                    raise
                await host.unmount(Path(directory), lazy=True)
                del self._mounted[directory]
                return mounted  # who is in it keeps the kernel's mount, and its scratch directory
            del self._mounted[directory]
            if mounted.scratch is not None:
                await asyncio.to_thread(shutil.rmtree, mounted.scratch)
            await self._release(mounted.image)
        return mounted

    @asynccontextmanager
    async def hold(self, image: Image) -> AsyncIterator[Path]:
        """Keep an image mounted, out of users' sight."""
        path = await self._hold(image)
        try:
            yield path
        finally:
            await asyncio.shield(self._release(image))

    async def close(self) -> None:
        """Unmount everything; what is busy is detached, and what cannot be is said."""
        for directory in list(self._mounted):
            try:
                await self.unmount(directory, lazy=True)
            except LazyimgError as error:
                _log.warning("%s", error)
        for fsid, users in list(self._users.items()):
            if users:
                try:
                    await host.unmount(self._root / "mnt" / fsid, lazy=True)
                except LazyimgError as error:
                    _log.warning("%s", error)

    async def clean(self) -> None:
        """Take away what a daemon that died left mounted: nobody can serve it any more.

        Raises:
            LazyimgError: the kernel refuses.
        """
        stale = [mount.mount_point for mount in await host.mount_table() if self._is_ours(mount)]
        for target in reversed(stale):
            _log.warning("%s: left by a daemon that died; unmounted", target)
            await host.unmount(Path(target), lazy=True)
        await asyncio.to_thread(self._remove_leftovers)

    def _is_ours(self, mount: MountEntry) -> bool:
        if mount.fs_type == "erofs":
            return mount.super_option("domain_id") == self._domain_id
        upper = mount.super_option("upperdir") or ""
        return mount.fs_type == "overlay" and upper.startswith(f"{self._root}/scratch/")

    def _remove_leftovers(self) -> None:
        for path in (self._root / "mnt").iterdir():
            path.rmdir()
        for path in (self._root / "scratch").iterdir():
            shutil.rmtree(path)

    async def _hold(self, image: Image) -> Path:
        fsid = image.chain.fsid
        path = self._root / "mnt" / fsid
        async with self._locks[fsid]:
            if not self._users[fsid]:
                path.mkdir(exist_ok=True)
                try:
                    await host.mount_erofs(
                        fsid, self._domain_id, path, read_ahead_kb=self._read_ahead // 1024
                    )
                except BaseException:
                    path.rmdir()
                    raise
            self._users[fsid] += 1
        return path

    async def _release(self, image: Image) -> None:
        fsid = image.chain.fsid
        path = self._root / "mnt" / fsid
        async with self._locks[fsid]:
            self._users[fsid] -= 1
            if not self._users[fsid]:
                await host.unmount(path)
                path.rmdir()

    async def _put(self, lower: Path, directory: str, *, read_write: bool) -> Path | None:
        if not read_write:
            await host.bind_mount(lower, Path(directory))
            return None
        scratch = Path(tempfile.mkdtemp(dir=self._root / "scratch"))
        try:
            upper, work = scratch / "upper", scratch / "work"
            upper.mkdir(mode=0o755)
            work.mkdir()
            await host.mount_overlay([lower], upper, work, Path(directory))
        except BaseException:
            shutil.rmtree(scratch)
            raise
        return scratch
