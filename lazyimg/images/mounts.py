"""Images on users' directories: bind mounts of the kernel's mounts, or overlays on top of them.

Rules:
  - the daemon itself never looks into a mount, nor at a user's directory, which may lie in one:
    all of that happens in `lazyimg.host.mounts`' child;
  - whatever fails half-way is undone before the failure is reported; of a mount that was cancelled
    or took too long, the mount table says whether it came about;
  - what somebody else has unmounted already is as good as unmounted here, and what somebody else
    has mounted is never unmounted;
  - each step is recorded before it is done, so that `recover` knows what a process that died was
    doing: a mount that it had not finished is undone, an unmount is finished.

What `recover` finds after a worker died while the supervisor kept the kernel's fd: mounts that
work, which are taken over. After both died, or a reboot: dead ones or none; what was recorded is
mounted again in its place, with what had been written to it. Who was in a dead mount keeps it, and
the kernel refuses to mount the image again until they are gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import stat
from collections import defaultdict
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from lazyimg.errors import CorruptError, InUseError, LazyimgError, NotFoundError, StorageError
from lazyimg.host import mounts as host
from lazyimg.host.mount_table import mount_at
from lazyimg.images.kernel_mounts import KernelMounts, make_directory
from lazyimg.images.library import ImageRecord, MountRecord, MountState
from lazyimg.images.service import Image
from lazyimg_formats.erofs.reader import Image as ErofsImage
from lazyimg_formats.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from lazyimg.host.mount_table import MountEntry
    from lazyimg.images.kernel_mounts import Objects
    from lazyimg.images.library import Library

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
        library: keeps the records.
        objects: knows the cache's files.
    """

    def __init__(
        self, root: Path, domain_id: str, read_ahead: int, library: Library, objects: Objects
    ) -> None:
        self._root = root.resolve()  # as the mount table has it
        self._domain_id = domain_id
        self._library = library
        self._kernel = KernelMounts(self._root, domain_id, read_ahead, objects)
        self._mounted: dict[str, Mounted] = {}
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
            scratch = self._root / "scratch" / uuid4().hex if read_write else None
            mounted = Mounted(image, directory, scratch)
            try:
                await asyncio.to_thread(self._library.add_mount, _record(mounted))
                await self._put(mounted)
            except BaseException:
                await asyncio.shield(self._undo(mounted))
                raise
        return mounted

    async def _put(self, mounted: Mounted) -> None:
        """Mount what is recorded as being mounted."""
        lower = await self._kernel.hold(mounted.image.chain)
        try:
            await self._show(lower, mounted)
            await self._note(mounted.directory, MountState.MOUNTED)
        except BaseException:
            await asyncio.shield(self._take_back(mounted))
            raise
        self._mounted[mounted.directory] = mounted

    async def _show(self, lower: Path, mounted: Mounted) -> None:
        """Show an image's mount on a user's directory."""
        directory, scratch = Path(mounted.directory), mounted.scratch
        if scratch is None:
            await host.bind_mount(lower, directory)
            return
        upper, work = scratch / "upper", scratch / f"work-{uuid4().hex}"  # a dead one is used yet
        new = not upper.exists()
        for path in (scratch, upper, work):
            make_directory(path)
        if new:
            bootstrap = self._root / "bootstraps" / mounted.image.chain.fsid
            await asyncio.to_thread(_dress_as_root, upper, bootstrap)
        await host.mount_overlay([lower], upper, work, directory)

    async def unmount(self, directory: str, *, lazy: bool) -> Mounted:
        """Take an image off a directory.

        Raises:
            NotFoundError: none of ours is there.
            InUseError: it is busy, and `lazy` was not asked for; or it is covered by another mount.
        """
        async with self._locks[directory]:
            mounted = self.find(directory)
            with _logged(directory):
                await self._note(directory, MountState.UNMOUNTING)
            try:
                await self._take_off(mounted, lazy=lazy)
            except BaseException:
                with _logged(directory):
                    await asyncio.shield(self._note(directory, MountState.MOUNTED))
                raise
        return mounted

    async def _take_off(self, mounted: Mounted, *, lazy: bool) -> None:
        directory, scratch = mounted.directory, mounted.scratch
        try:
            await _unmount_ours(mounted)
        except NotFoundError:
            _log.warning("%s: was unmounted by somebody else", directory)
            scratch = None  # who is still in it has its files until all is over
        except InUseError as error:
            if not lazy or isinstance(error, _CoveredError):
                raise
            with _logged(directory):
                await self._note(directory, MountState.DETACHING)
            await host.unmount(Path(directory), lazy=True)
            del self._mounted[directory]
            with _logged(directory):
                await self._forget(directory)
            return  # who is in it keeps the kernel's mount, and its scratch directory
        del self._mounted[directory]
        if scratch is not None:
            await asyncio.to_thread(_remove_tree, scratch)
        with _logged(directory):
            await self._forget(directory)
        await self._kernel.release(mounted.image.chain.fsid)

    async def _forget_gone(self, directory: str) -> bool:
        """Whether somebody else has unmounted a directory; then it is forgotten."""
        if any(mount.mount_point == directory for mount in await host.mount_table()):
            return False
        _log.warning("%s: was unmounted by somebody else", directory)
        await self._kernel.release(self._mounted.pop(directory).image.chain.fsid)
        return True

    @asynccontextmanager
    async def hold(self, image: Image) -> AsyncIterator[Path]:
        """Keep an image mounted, out of users' sight."""
        path = await self._kernel.hold(image.chain)
        try:
            yield path
        finally:
            await asyncio.shield(self._kernel.release(image.chain.fsid))

    async def close(self) -> None:
        """Unmount everything; what is busy is detached, and what cannot be is said."""
        for directory in reversed(list(self._mounted)):  # one may lie in an earlier one
            try:
                await self.unmount(directory, lazy=True)
            except LazyimgError as error:
                _log.warning("%s", error)
        await self._kernel.close()

    async def recover(self, *, served: bool) -> None:
        """Make the mount table and the records agree, before anything else is mounted.

        Args:
            served: the mounts of the process before this one work; otherwise they are dead.

        Raises:
            LazyimgError: the kernel refuses, or the records cannot be used.
        """
        if not await host.wait_for_calls():
            _log.warning("a mount or unmount of the process before this one does not end")
        if served:
            await self._adopt(await asyncio.to_thread(self._library.mounts))
        else:
            await self._mount_again()

    async def _adopt(self, records: Sequence[MountRecord]) -> None:
        entries = await host.mount_table()
        for record in records:
            mounted = await self._describe(record)
            if mounted is not None and await self._is_kept(record.state, mounted, entries):
                self._mounted[record.directory] = mounted
                await self._note(record.directory, MountState.MOUNTED)
            else:
                await self._forget(record.directory)
        used = [mounted.image.chain.fsid for mounted in self._mounted.values()]
        await self._kernel.adopt(entries, used)
        if used:
            _log.info("%d mounts were taken over", len(used))

    async def _is_kept(
        self, state: MountState, mounted: Mounted, entries: Sequence[MountEntry]
    ) -> bool:
        """Finish or undo what was begun with a mount; gives whether it is there to stay."""
        directory, scratch = mounted.directory, mounted.scratch
        ours = [
            entry for entry in entries if entry.mount_point == directory and _is_of(entry, mounted)
        ]
        try:
            if ours and state is MountState.UNMOUNTING:
                await _unmount_ours(mounted)
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
            await asyncio.to_thread(_remove_tree, scratch)
        return False

    async def _describe(self, record: MountRecord) -> Mounted | None:
        image = record.image
        chain = await asyncio.to_thread(self._library.find_chain, image.chain)
        if chain is None:
            _log.warning("%s: %s is not known any more", record.directory, image.reference)
            return None
        scratch = self._root / "scratch" / record.scratch if record.scratch else None
        known = Image(image.reference, image.digest, image.platform, chain)
        return Mounted(known, record.directory, scratch)

    async def _mount_again(self) -> None:
        """Detach what is dead, and put what is recorded in its place."""
        stale = [mount.mount_point for mount in await host.mount_table() if self._is_ours(mount)]
        for target in reversed(stale):
            _log.warning("%s: left by a daemon that died; unmounted", target)
            with suppress(NotFoundError):  # it went with one that it was propagated from
                await host.unmount(Path(target), lazy=True)
        records = await asyncio.to_thread(self._library.mounts)
        wanted = [record for record in records if record.state is MountState.MOUNTED]
        try:
            kept = {record.scratch for record in wanted}
            await asyncio.to_thread(self._remove_leftovers, kept)
        except OSError as error:
            raise StorageError(
                str(error.filename), f"cannot be removed: {error.strerror}", "remove it"
            ) from error
        for record in records:
            mounted = await self._describe(record) if record in wanted else None
            if mounted is None:
                await self._forget(record.directory)
                continue
            try:
                await self._put(mounted)
            except LazyimgError as error:
                await self._forget(record.directory)
                _log.error(
                    "%s: %s is not mounted again: %s",
                    mounted.directory, mounted.image.reference, error,
                )  # fmt: skip
            else:
                _log.warning("%s: %s is mounted again", mounted.directory, record.image.reference)

    def _is_ours(self, mount: MountEntry) -> bool:
        if mount.fs_type == "erofs":
            return mount.super_option("domain_id") == self._domain_id
        upper = mount.super_option("upperdir") or ""
        return mount.fs_type == "overlay" and upper.startswith(f"{self._root}/scratch/")

    def _remove_leftovers(self, kept: set[str]) -> None:
        for path in (self._root / "mnt").iterdir():
            path.rmdir()
        for path in (self._root / "scratch").iterdir():
            if path.name not in kept:
                shutil.rmtree(path)

    async def _take_back(self, mounted: Mounted) -> None:
        """Undo a mount on a user's directory that may, or may not, have come about."""
        try:
            there = mount_at(await host.mount_table(), mounted.directory)
            if there is not None and _is_of(there, mounted):
                await host.unmount(Path(mounted.directory), lazy=True)
        except LazyimgError as error:
            _log.warning("%s: %s", mounted.directory, error)
        await self._kernel.release(mounted.image.chain.fsid)

    async def _undo(self, mounted: Mounted) -> None:
        """Remove what is left of a mount that did not come about."""
        if mounted.scratch is not None:
            await asyncio.to_thread(_remove_tree, mounted.scratch)
        await self._forget(mounted.directory)

    async def _note(self, directory: str, state: MountState) -> None:
        await asyncio.to_thread(self._library.set_mount, directory, state)

    async def _forget(self, directory: str) -> None:
        await asyncio.to_thread(self._library.remove_mount, directory)


@contextmanager
def _logged(directory: str) -> Iterator[None]:
    """Go on without the records: on a full disk, unmounting is what makes room."""
    try:
        yield
    except StorageError as error:
        _log.warning("%s: its unmounting is not recorded: %s", directory, error)


class _CoveredError(InUseError):
    """Somebody has mounted something else on top of a mount of ours."""


def _record(mounted: Mounted) -> MountRecord:
    image = mounted.image
    return MountRecord(
        mounted.directory,
        ImageRecord(image.reference, image.platform, image.digest, image.chain.key),
        mounted.scratch.name if mounted.scratch else "",
        MountState.MOUNTING,
    )


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


def _dress_as_root(upper: Path, bootstrap: Path) -> None:
    """Give an overlay's upper directory what the image's root has: it becomes the root."""
    try:
        root = ErofsImage(bootstrap.read_bytes()).root
        os.chown(upper, root.uid, root.gid)
        upper.chmod(stat.S_IMODE(root.mode))
        mtime = root.mtime * 1_000_000_000 + root.mtime_ns
        os.utime(upper, ns=(mtime, mtime))
    except FormatError as error:
        raise CorruptError(str(bootstrap), str(error), "remove it, and mount again") from error
    except OSError as error:
        raise StorageError(str(upper), f"cannot be made: {error.strerror}") from error


def _remove_tree(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError as error:  # the next start tries again
        _log.warning("%s: cannot be removed: %s", path, error)
