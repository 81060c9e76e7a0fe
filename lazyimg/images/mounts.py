"""Images on users' directories: bind mounts of the kernel's mounts, or overlays on top of them.

Rules:
  - the daemon itself never looks into a mount, nor at a user's directory, which may lie in one:
    all of that happens in `lazyimg.host.mounts`' child;
  - whatever fails half-way is undone before the failure is reported; of a mount that was cancelled
    or took too long, the mount table says whether it came about;
  - what somebody else has unmounted already is as good as unmounted here, and what somebody else
    has mounted is never unmounted;
  - each step is recorded before it is done, so that `recovery` knows what a process that died was
    doing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from lazyimg.errors import InUseError, LazyimgError, NotFoundError, StorageError
from lazyimg.host import mounts as host
from lazyimg.images.kernel_mounts import KernelMounts
from lazyimg.images.library import MountState
from lazyimg.images.lost import LostMounts
from lazyimg.images.mounted import CoveredError, Mounted, is_of, record_of, unmount_ours
from lazyimg.images.recovery import Recovery
from lazyimg.images.scratch import prepare_scratch, remove_scratch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence

    from lazyimg.host.own_mounts import OwnMounts
    from lazyimg.images.image import Image
    from lazyimg.images.library import Library
    from lazyimg.images.lost import Lost
    from lazyimg.images.ports import Way
    from lazyimg.images.readers import Readers

_log = logging.getLogger(__name__)


class Mounts:
    """Mounts images.

    Args:
        own: the daemon's directory, which has mnt/ and scratch/, and what tells its mounts.
        way: how the kernel comes by an image.
        library: keeps the records.
        readers: are told what is mounted.

    Attributes:
        used: is called with an image that has a user more, be it a directory or a snapshot.
        unused: is called with one that has a user less.
    """

    def __init__(self, own: OwnMounts, way: Way, library: Library, *, readers: Readers) -> None:
        self._own = own
        self._root = own.root
        self._library = library
        self.used: Callable[[Image], object] = lambda _: None
        self.unused: Callable[[Image], object] = lambda _: None
        self._readers = readers
        self._kernel = KernelMounts(self._root, way)
        self._mounted: dict[str, Mounted] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._lost = LostMounts(self._put, self._locks)
        self._late: set[asyncio.Task[None]] = set()

    def lost(self) -> list[Lost]:
        """Give those of a process before this one that could not be made again yet."""
        return self._lost.list()

    def list(self) -> list[Mounted]:
        """Give all mounts on users' directories."""
        return list(self._mounted.values())

    async def dead(self) -> set[str]:
        """Give the fsids of what is mounted that somebody is also in a dead mount of."""
        dead = await self._kernel.dead()
        every = {mounted.image.chain.fsid for mounted in self._mounted.values()}
        every |= {lost.mounted.image.chain.fsid for lost in self.lost()}
        return {fsid for fsid in every if fsid.startswith(dead)}

    async def reconcile(self) -> None:
        """Forget the mounts that somebody else has unmounted.

        Raises:
            LazyimgError: the mount table or the records cannot be used.
        """
        entries = await host.mount_table()
        for mounted in self.list():
            directory = mounted.directory
            if self._locks[directory].locked() or any(
                entry.mount_point == directory and is_of(entry, mounted) for entry in entries
            ):
                continue
            async with self._locks[directory]:
                if self._mounted.get(directory) is mounted:
                    await self._forget_gone(directory)

    def find(self, directory: str) -> Mounted:
        """Give the mount on a directory, be it lost.

        Raises:
            NotFoundError: none of ours is there.
        """
        mounted = self._mounted.get(directory) or self._lost.find(directory)
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
            lost = self._lost.find(directory)
            if lost is not None:
                await self._lost.make(directory)
                if _are_same(lost, image, read_write=read_write):
                    return lost
            if directory in self._mounted and not await self._forget_gone(directory):
                other = self._mounted[directory].image.reference
                raise InUseError(
                    directory, f"{other} is mounted there", f"lazyimg umount {directory}"
                )
            scratch = self._root / "scratch" / uuid4().hex if read_write else None
            mounted = Mounted(image, directory, scratch)
            try:
                await asyncio.to_thread(self._library.add_mount, record_of(mounted))
                await self._put(mounted)
            except BaseException:
                await asyncio.shield(self._undo(mounted))
                raise
        return mounted

    async def _put(self, mounted: Mounted) -> None:
        """Mount what is recorded as being mounted."""
        lower = await self.hold(mounted.image)
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
        bootstrap = self._root / "bootstraps" / mounted.image.chain.fsid
        upper, work = await asyncio.to_thread(prepare_scratch, scratch, bootstrap)
        await host.mount_overlay([lower], upper, work, directory)

    async def unmount(self, directory: str, *, lazy: bool) -> Mounted:
        """Take an image off a directory.

        Raises:
            NotFoundError: none of ours is there.
            InUseError: it is busy, and `lazy` was not asked for; or it is covered by another mount.
        """
        async with self._locks[directory]:
            mounted = self.find(directory)
            if directory not in self._mounted:
                await self._undo(mounted)
                self._lost.give_up(directory)
                return mounted
            with _logged(directory):
                await self._note(directory, MountState.UNMOUNTING)
            try:
                await self._take_off(mounted, lazy=lazy)
            except BaseException:
                if directory in self._mounted:  # else it is unmounted, and not to come back
                    with _logged(directory):
                        await asyncio.shield(self._note(directory, MountState.MOUNTED))
                raise
        return mounted

    async def _take_off(self, mounted: Mounted, *, lazy: bool) -> None:
        directory, scratch = mounted.directory, mounted.scratch
        try:
            await unmount_ours(mounted)
        except NotFoundError:
            _log.warning("%s: was unmounted by somebody else", directory)
            scratch = None  # who is still in it has its files until all is over
        except InUseError as error:
            if not lazy or isinstance(error, CoveredError):
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
            await asyncio.to_thread(remove_scratch, scratch)
        with _logged(directory):
            await self._forget(directory)
        await self.release(mounted.image)

    async def _forget_gone(self, directory: str) -> bool:
        """Whether somebody else has unmounted a directory; then it is forgotten."""
        mounted = self._mounted[directory]
        entries = await host.mount_table()
        if any(entry.mount_point == directory and is_of(entry, mounted) for entry in entries):
            return False
        _log.warning("%s: was unmounted by somebody else", directory)
        await self._forget(directory)
        del self._mounted[directory]
        await self.release(mounted.image)
        return True

    async def prepare(self, image: Image) -> str:
        """Make an image ready to be mounted by hand, so that what it caches survives a power cut.

        Gives the domain that mount(8) is to be told.

        Raises:
            LazyimgError: it cannot be mounted by hand, or the kernel refuses to mount it.
        """
        return await self._kernel.prepare(image.chain)

    @asynccontextmanager
    async def held(self, image: Image) -> AsyncIterator[Path]:
        """Keep an image mounted, out of users' sight, while the block runs."""
        path = await self._hold(image, 1)
        try:
            yield path
        finally:
            await asyncio.shield(self._release(image))

    async def close(self) -> None:
        """Unmount everything; what is busy is detached, and what cannot be is said."""
        await self._lost.close()
        for task in self._late:
            task.cancel()
        lost = [each.mounted.directory for each in self._lost.list()]
        for directory in [*lost, *reversed(list(self._mounted))]:  # one may lie in an earlier one
            try:
                await self.unmount(directory, lazy=True)
            except LazyimgError as error:
                _log.warning("%s", error)
        await self._kernel.close()

    async def recover(self, *, served: bool, kept: Collection[str] = ()) -> None:
        """Make the mount table and the records agree, before anything else is mounted.

        Args:
            served: the mounts of the process before this one work; otherwise they are dead.
            kept: fsids that stay mounted, since somebody will `hold` them.

        Raises:
            LazyimgError: the kernel refuses, or the records cannot be used.
        """
        if not await host.wait_for_calls():
            _log.warning("a mount or unmount of the process before this one does not end")
        recovery = Recovery(self._own, self._library, self._kernel)
        if served:
            adopted, wanted = await recovery.adopt(kept)
            self._mounted.update({mounted.directory: mounted for mounted in adopted})
            images = [mounted.image for mounted in adopted]
            self._readers.replace((image.reference, image.chain) for image in images)
        else:
            self._readers.replace(())
            wanted = await recovery.clear()
        for mounted in wanted:
            await self._make_again(mounted)

    async def _make_again(self, mounted: Mounted) -> None:
        directory, name = mounted.directory, mounted.image.reference
        try:
            await self._put(mounted)
        except LazyimgError as error:
            _log.error("%s: %s is not mounted again: %s", directory, name, error)
            await self._note(directory, MountState.LOST)
            self._lost.add(mounted, error)
        else:
            _log.warning("%s: %s is mounted again", directory, name)

    async def _take_back(self, mounted: Mounted) -> None:
        """Undo a mount on a user's directory that may have come about, or may yet do so."""
        await self._take_off_what_came(mounted)
        await self.release(mounted.image)
        if late := host.late_calls():
            task = asyncio.create_task(self._take_back_late(mounted, late))
            self._late.add(task)
            task.add_done_callback(self._late.discard)

    async def _take_back_late(
        self, mounted: Mounted, calls: Sequence[asyncio.subprocess.Process]
    ) -> None:
        await asyncio.gather(*(call.wait() for call in calls))
        await self._take_off_what_came(mounted)

    async def _take_off_what_came(self, mounted: Mounted) -> None:
        try:
            there = await host.mounts_on(mounted.directory)
            if there and is_of(there[-1], mounted):
                await host.unmount(Path(mounted.directory), lazy=True)
        except LazyimgError as error:
            _log.warning("%s: %s", mounted.directory, error)

    async def _undo(self, mounted: Mounted) -> None:
        """Remove what is left of a mount that did not come about."""
        if mounted.scratch is not None:
            await asyncio.to_thread(remove_scratch, mounted.scratch)
        await self._forget(mounted.directory)

    async def hold(self, image: Image, users: int = 1) -> Path:
        """Mount an image out of users' sight, for some users more.

        Raises:
            LazyimgError: the kernel refuses; nothing is left.
        """
        path = await self._hold(image, users)
        for _ in range(users):
            self.used(image)
        return path

    async def _hold(self, image: Image, users: int) -> Path:
        for _ in range(users):
            self._readers.begin(image.reference, image.chain)
        try:
            return await self._kernel.hold(image.chain, users)
        except BaseException:
            for _ in range(users):
                self._readers.end(image.reference, image.chain)
            raise

    def path(self, image: Image) -> Path:
        """Where an image is that somebody holds."""
        return self._kernel.path(image.chain.fsid)

    async def release(self, image: Image) -> None:
        """Take one `hold` back, also if this is cancelled."""
        self.unused(image)
        await self._release(image)

    async def _release(self, image: Image) -> None:
        try:
            await asyncio.shield(self._kernel.release(image.chain.fsid))
        finally:
            self._readers.end(image.reference, image.chain)

    async def _note(self, directory: str, state: MountState) -> None:
        await asyncio.to_thread(self._library.set_mount, directory, state)

    async def _forget(self, directory: str) -> None:
        await asyncio.to_thread(self._library.remove_mount, directory)


def _are_same(mounted: Mounted, image: Image, *, read_write: bool) -> bool:
    same = mounted.image.chain.fsid == image.chain.fsid
    return same and (mounted.scratch is not None) == read_write


@contextmanager
def _logged(directory: str) -> Iterator[None]:
    """Go on without the records: on a full disk, unmounting is what makes room."""
    try:
        yield
    except StorageError as error:
        _log.warning("%s: its unmounting is not recorded: %s", directory, error)
