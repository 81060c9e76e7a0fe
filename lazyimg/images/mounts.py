"""The mounts of images: one of the kernel's for each image, under ROOT/mnt, held by its users.

A user's directory is a bind mount of it, or an overlay on top of it; a prefetch holds it without a
directory. The last one to let go unmounts it. The kernel takes an image's name once in a domain,
so there can never be two.

Rules:
  - the daemon itself never looks into a mount, nor at a user's directory, which may lie in one:
    all of that happens in `lazyimg.host.mounts`' child;
  - whatever fails half-way is undone before the failure is reported; of a mount that was cancelled
    or took too long, the mount table says whether it came about;
  - what somebody else has unmounted already is as good as unmounted here, and what somebody else
    has mounted is never unmounted;
  - the first mount of an image, or of a layer, is ended at once and made again: only then have the
    kernel's files of it a name, and survive a power cut;
  - an image that somebody mounted by hand is shown under ROOT/mnt too, and used from there.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections import defaultdict
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

from lazyimg.errors import InUseError, KernelError, LazyimgError, NotFoundError, StorageError
from lazyimg.host import mounts as host
from lazyimg.host.mount_table import mount_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lazyimg.host.mount_table import MountEntry
    from lazyimg.images.library import ChainRecord
    from lazyimg.images.service import Image

_log = logging.getLogger(__name__)


class Objects(Protocol):
    """What mounts need of a transport."""

    def backing_path(self, cookie: str) -> Path | None:
        """Give the named file of an object; None if it has none. Blocks; raises OSError."""
        ...

    async def opened(self, cookie: str) -> object:
        """Return when the kernel has opened an object of a mount; raises LazyimgError."""
        ...


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
        objects: the transport.
    """

    def __init__(self, root: Path, domain_id: str, read_ahead: int, objects: Objects) -> None:
        self._root = root.resolve()  # as the mount table has it
        self._domain_id = domain_id
        self._read_ahead = read_ahead
        self._objects = objects
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
            scratch = self._root / "scratch" / uuid4().hex if read_write else None
            mounted = Mounted(image, directory, scratch)
            try:
                await _put(lower, mounted)
            except BaseException:
                await asyncio.shield(self._take_back(mounted))
                raise
            self._mounted[directory] = mounted
        return mounted

    async def unmount(self, directory: str, *, lazy: bool) -> Mounted:
        """Take an image off a directory.

        Raises:
            NotFoundError: none of ours is there.
            InUseError: it is busy, and `lazy` was not asked for; or it is covered by another mount.
        """
        async with self._locks[directory]:
            mounted = self.find(directory)
            scratch = mounted.scratch
            try:
                await _unmount_ours(mounted)
            except NotFoundError:
                _log.warning("%s: was unmounted by somebody else", directory)
                scratch = None  # who is still in it has its files until the next start
            except InUseError as error:
                if not lazy or isinstance(error, _CoveredError):
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
        for directory in reversed(list(self._mounted)):  # one may lie in an earlier one
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
                    await self._mount_first(image.chain, path)
                except BaseException:
                    await asyncio.shield(_take_off(path))
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

    async def _mount_first(self, chain: ChainRecord, path: Path) -> None:
        """Mount an image, or show the mount that somebody made by hand here as well."""
        fsid = chain.fsid
        try:
            await self._mount_kernel(fsid, path)
            if not await asyncio.to_thread(self._is_named, chain):
                await self._mount_again(chain, path)
        except InUseError:
            entries = await host.mount_table()
            found = [entry for entry in entries if self._is_whole(entry, fsid)]
            found = [entry for entry in found if mount_at(entries, entry.mount_point) is entry]
            if not found:
                raise
            _log.info("%s: mounted by hand on %s, used from there", fsid, found[0].mount_point)
            await host.bind_mount(Path(found[0].mount_point), path)
            shown = mount_at(await host.mount_table(), str(path))
            if shown is None or not self._is_whole(shown, fsid):  # a mount above it hides it
                raise KernelError(fsid, f"is out of reach on {found[0].mount_point}") from None

    async def _mount_kernel(self, fsid: str, path: Path) -> None:
        kilobytes = self._read_ahead // 1024
        await host.mount_erofs(fsid, self._domain_id, path, read_ahead_kb=kilobytes)

    async def _mount_again(self, chain: ChainRecord, path: Path) -> None:
        """End a mount, by which the kernel's files get names, and make it anew."""
        try:
            for cookie in _cookies(chain):
                await self._objects.opened(cookie)
            await host.unmount(path)
        except LazyimgError as error:  # it is mounted, and that is what was asked for
            _log.warning("%s: may be lost in a power cut: %s", chain.fsid, error)
        else:
            await self._mount_kernel(chain.fsid, path)

    def _is_named(self, chain: ChainRecord) -> bool:
        """Whether the kernel's files of an image have names. Blocks."""
        try:
            return all(self._objects.backing_path(cookie) for cookie in _cookies(chain))
        except OSError as error:
            _log.warning("the cache cannot be looked into: %s", error)
            return True

    def _is_whole(self, mount: MountEntry, fsid: str) -> bool:
        """Whether a mount shows the whole of an image."""
        options = (mount.super_option("fsid"), mount.super_option("domain_id"))
        return mount.root == "/" and options == (fsid, self._domain_id)

    async def _take_back(self, mounted: Mounted) -> None:
        """Undo a mount on a user's directory that may, or may not, have come about."""
        try:
            there = mount_at(await host.mount_table(), mounted.directory)
            if there is not None and _is_of(there, mounted):
                await host.unmount(Path(mounted.directory), lazy=True)
        except LazyimgError as error:
            _log.warning("%s: %s", mounted.directory, error)
        if mounted.scratch is not None:
            await asyncio.to_thread(_remove_tree, mounted.scratch)
        await self._release(mounted.image)


def _cookies(chain: ChainRecord) -> list[str]:
    return [chain.fsid, *(layer.device for layer in chain.layers if layer.device_size)]


class _CoveredError(InUseError):
    """Somebody has mounted something else on top of a mount of ours."""


def _is_of(mount: MountEntry, mounted: Mounted) -> bool:
    """Whether an entry of the mount table is the mount on a user's directory."""
    if mounted.scratch is None:
        return mount.super_option("fsid") == mounted.image.chain.fsid
    upper = mount.super_option("upperdir") or ""
    return mount.fs_type == "overlay" and upper.endswith(f"/{mounted.scratch.name}/upper")


async def _unmount_ours(mounted: Mounted) -> None:
    """Unmount a user's directory.

    Raises:
        NotFoundError: our mount is not there.
        InUseError: it is busy, or covered.
    """
    directory = mounted.directory
    there = [entry for entry in await host.mount_table() if entry.mount_point == directory]
    ours = [_is_of(entry, mounted) for entry in there]
    if any(ours) and not ours[-1]:
        raise _CoveredError(
            directory, f"a mount of {there[-1].source} lies on top of it", "unmount that first"
        )
    if ours and not any(ours):
        raise NotFoundError(directory, "only mounts of others are there")
    await host.unmount(Path(directory))


async def _take_off(path: Path) -> None:
    """Undo a mount under ROOT/mnt that may, or may not, have come about."""
    try:
        if mount_at(await host.mount_table(), str(path)) is not None:
            await host.unmount(path, lazy=True)
    except LazyimgError as error:
        _log.warning("%s: %s", path, error)
    _remove_mount_point(path)


async def _put(lower: Path, mounted: Mounted) -> None:
    """Show an image's mount on a user's directory."""
    directory, scratch = Path(mounted.directory), mounted.scratch
    if scratch is None:
        await host.bind_mount(lower, directory)
        return
    upper, work = scratch / "upper", scratch / "work"
    for path in (scratch, upper, work):
        _make_directory(path)
    upper.chmod(0o755)  # it becomes the root's mode, whatever the umask
    await host.mount_overlay([lower], upper, work, directory)


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
