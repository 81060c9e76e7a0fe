"""The mounts of images: one of the kernel's for each image, under ROOT/mnt, held by its users.

A user's directory is a bind mount of it, or an overlay on top of it; a prefetch holds it without a
directory. The last one to let go unmounts it. The kernel takes an image's name once in a domain,
so there can never be two.

Rules:
  - the daemon itself never looks into a mount, nor at a user's directory, which may lie in one:
    all of that happens in `lazyimg.host.mounts`' child;
  - whatever fails half-way is undone before the failure is reported;
  - what somebody else has unmounted already is as good as unmounted here.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections import defaultdict
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from lazyimg.errors import InUseError, LazyimgError, NotFoundError, StorageError
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
        self._held: set[str] = set()  # fsids that are mounted under mnt/
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
            if directory in self._mounted and not await self._forget_gone(directory):
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
            scratch = mounted.scratch
            try:
                await host.unmount(Path(directory))
            except NotFoundError:
                _log.warning("%s: was unmounted by somebody else", directory)
                scratch = None  # who is still in it has its files until the next start
            except InUseError:
                if not lazy:
                    raise
                await host.unmount(Path(directory), lazy=True)
                del self._mounted[directory]
                return mounted  # who is in it keeps the kernel's mount, and its scratch directory
            del self._mounted[directory]
            if scratch is not None:
                await asyncio.to_thread(_remove_tree, scratch)
            await self._release(mounted.image)
        return mounted

    async def _forget_gone(self, directory: str) -> bool:
        """Whether somebody else has unmounted a directory; then it is forgotten."""
        if any(mount.mount_point == directory for mount in await host.mount_table()):
            return False
        _log.warning("%s: was unmounted by somebody else", directory)
        await self._release(self._mounted.pop(directory).image)
        return True

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
        for fsid in sorted(self._held):
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
            with suppress(NotFoundError):  # it went with one that it was propagated from
                await host.unmount(Path(target), lazy=True)
        try:
            await asyncio.to_thread(self._remove_leftovers)
        except OSError as error:
            raise StorageError(
                str(error.filename), f"cannot be removed: {error.strerror}", "remove it"
            ) from error

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
            if fsid not in self._held:
                _make_directory(path)
                try:
                    await host.mount_erofs(
                        fsid, self._domain_id, path, read_ahead_kb=self._read_ahead // 1024
                    )
                except BaseException:
                    _remove_mount_point(path)
                    raise
                self._held.add(fsid)
            self._users[fsid] += 1
        return path

    async def _release(self, image: Image) -> None:
        """Unmount an image that nobody uses any more; if that fails, the next user finds it."""
        fsid = image.chain.fsid
        path = self._root / "mnt" / fsid
        async with self._locks[fsid]:
            self._users[fsid] -= 1
            if self._users[fsid]:
                return
            del self._users[fsid]
            try:
                await host.unmount(path)
            except NotFoundError:
                _log.warning("%s: was unmounted by somebody else", path)
            except LazyimgError as error:
                _log.warning("%s; it stays until it is used again, or the daemon ends", error)
                return
            self._held.discard(fsid)
            _remove_mount_point(path)

    async def _put(self, lower: Path, directory: str, *, read_write: bool) -> Path | None:
        if not read_write:
            await host.bind_mount(lower, Path(directory))
            return None
        scratch = self._root / "scratch" / uuid4().hex
        upper, work = scratch / "upper", scratch / "work"
        try:
            for path in (scratch, upper, work):
                _make_directory(path)
            upper.chmod(0o755)  # it becomes the root's mode, whatever the umask
            await host.mount_overlay([lower], upper, work, Path(directory))
        except BaseException:
            _remove_tree(scratch)
            raise
        return scratch


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(str(path), f"cannot be made: {error.strerror}") from error


def _remove_mount_point(path: Path) -> None:
    try:
        path.rmdir()
    except OSError as error:  # the next start tries again
        _log.warning("%s: cannot be removed: %s", path, error.strerror)


def _remove_tree(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError as error:  # the next start tries again
        _log.warning("%s: cannot be removed: %s", path, error)
