"""The kernel's mounts of images: one for each, under ROOT/mnt, counted by its users.

The kernel takes an image's name once in a domain, so there can never be two. The last user to let
go unmounts it. An image that somebody mounted by hand is shown here too, and used from there. One
that is in use where no mount shows it (an overlay in another mount namespace, left of a container
that was removed) is mounted once more in another domain, in which nothing of it is local.

The first use of a cache file: the kernel keeps a new file without a name until its object is
closed, so a power cut would lose all of it. An image that needs new files is therefore mounted
twice: once for the kernel to make them, and to name them when it is unmounted at once, and then
for its users. In between, files of a domain that was used before take the new ones' places.

Where the kernel still keeps dead mounts of a domain, another one is used (`lazyimg.host.domains`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from lazyimg.errors import InUseError, KernelError, LazyimgError, NotFoundError, StorageError
from lazyimg.host import mounts as host
from lazyimg.host.domains import choose_domain
from lazyimg.host.mount_table import mount_at

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from lazyimg.host.mount_table import MountEntry
    from lazyimg.images.library import ChainRecord

OPEN_WAIT: Final = 10.0
"""Seconds that the kernel may take to open the devices of an image whose files are new."""

LINK_WAIT: Final = 10.0
"""Seconds that the kernel may take to name the files of an image that was unmounted."""

_LINK_PAUSE: Final = 0.02  # seconds; nothing announces a name

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


class Objects(Protocol):
    """What is needed of a transport; what asks for files blocks, and raises OSError."""

    def use_domain(self, domain_id: str) -> None:
        """Be about the objects of a domain, from now on."""
        ...

    def linked(self, cookies: Iterable[str]) -> set[str]:
        """Give those that have a file with a name in the cache."""
        ...

    def strays(self, cookies: Iterable[str]) -> set[str]:
        """Give those that have a file in a domain that was used before."""
        ...

    def move_strays(self, cookies: Iterable[str]) -> None:
        """Let those files take the place of ones that are linked, and not open."""
        ...

    async def opened(self, cookie: str) -> object:
        """Wait until the kernel has opened an object. Raises KernelError."""
        ...

    def shortage(self) -> StorageError | None:
        """Say why nothing can be stored now; None if there is room. Blocks; raises OSError."""
        ...


class KernelMounts:
    """Mounts images out of users' sight.

    Args:
        root: the daemon's directory, as the mount table has it; has mnt/.
        domain_id: in which all images are mounted.
        read_ahead: bytes.
        objects: knows the cache's files.
    """

    def __init__(self, root: Path, domain_id: str, read_ahead: int, objects: Objects) -> None:
        self._directory = root / "mnt"
        self._first_domain = domain_id
        self._domain_id = domain_id
        self._read_ahead = read_ahead
        self._objects = objects
        self._held: set[str] = set()  # fsids that are mounted under mnt/
        self._users: defaultdict[str, int] = defaultdict(int)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @property
    def domain_id(self) -> str:
        """The domain in which images are mounted."""
        return self._domain_id

    def use_domain(self, domain_id: str) -> None:
        """Mount images in a domain, from now on; none is mounted yet."""
        self._domain_id = domain_id
        self._objects.use_domain(domain_id)

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
                    await self._mount_durably(chain, path)
                except BaseException:
                    await asyncio.shield(_take_off(path))
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

    async def _let_go(self, fsid: str, path: Path) -> None:
        try:
            await host.unmount(path)
        except NotFoundError:
            _log.warning("%s: was unmounted by somebody else", path)
        except LazyimgError as error:
            _log.warning("%s; it stays until it is used again, or the daemon ends", error)
            return
        self._held.discard(fsid)
        _remove_mount_point(path)

    async def prepare(self, chain: ChainRecord) -> None:
        """Have files of an image named in the cache, before somebody mounts it by hand.

        Raises:
            LazyimgError: the kernel refuses to mount it.
        """
        if await self._new(chain):
            await self.hold(chain)
            await self.release(chain.fsid)

    async def adopt(
        self, entries: Sequence[MountEntry], fsids: Iterable[str], kept: Collection[str] = ()
    ) -> None:
        """Take over what another process has mounted; what has no user is unmounted.

        Args:
            entries: of the mount table.
            fsids: one for each user.
            kept: what stays mounted without a user, since it will have one soon.

        Raises:
            StorageError: mnt/ cannot be read.
        """
        for fsid in fsids:
            self._users[fsid] += 1
        for path in await asyncio.to_thread(_list, self._directory):
            if mount_at(entries, str(path)) is None:
                _remove_mount_point(path)
                continue
            self._held.add(path.name)
            if path.name not in self._users and path.name not in kept:
                await self._let_go(path.name, path)

    async def close(self) -> None:
        """Unmount everything; what is busy is detached, and what cannot be is said."""
        for fsid in sorted(self._held):
            try:
                await host.unmount(self._directory / fsid, lazy=True)
            except LazyimgError as error:
                _log.warning("%s", error)

    async def _mount_durably(self, chain: ChainRecord, path: Path) -> None:
        new = await self._new(chain)
        if await self._mount(chain.fsid, path) and new:
            await self._name_files(chain.fsid, sorted(new - {chain.fsid}), path)

    async def _new(self, chain: ChainRecord) -> set[str]:
        """Give the objects of an image whose files have no name in the cache."""
        objects = {chain.fsid, *(layer.device for layer in chain.layers if layer.device_size)}
        return objects - await _ask(self._objects.linked, objects)

    async def _name_files(self, fsid: str, devices: list[str], path: Path) -> None:
        """Unmount an image once the kernel has made its files, and mount it again."""
        try:
            async with asyncio.timeout(OPEN_WAIT):
                for device in devices:  # the kernel opens them behind the mount
                    await self._objects.opened(device)
            await host.unmount(path)
        except (TimeoutError, KernelError, InUseError) as error:
            await self._refuse_when_short(error)
            _log.warning("%s: a power cut would lose its new cache files: %s", fsid, error)
            return
        await self._bring_files({fsid, *devices})
        await self._mount(fsid, path)

    async def _bring_files(self, cookies: set[str]) -> None:
        """Use what is local in a domain that was used before; else it is fetched again."""
        strays = await _ask(self._objects.strays, cookies)
        try:
            async with asyncio.timeout(LINK_WAIT):
                while strays - await _ask(self._objects.linked, strays):  # noqa: ASYNC110  nothing else
                    await asyncio.sleep(_LINK_PAUSE)
            await _ask(self._objects.move_strays, strays)
        except (TimeoutError, StorageError) as error:
            _log.warning("what is local is not used: %s", str(error) or "the kernel made no files")

    async def _mount(self, fsid: str, path: Path) -> bool:
        """Mount an image; False if its files are not those of a new mount in the domain."""
        try:
            await self._mount_in(self._domain_id, fsid, path)
        except InUseError:
            entries = await host.mount_table()
            found = [entry for entry in entries if self._is_whole(entry, fsid)]
            found = [entry for entry in found if mount_at(entries, entry.mount_point) is entry]
            if not found:
                await self._mount_apart(fsid, path)
                return False
            _log.info("%s: mounted by hand on %s, used from there", fsid, found[0].mount_point)
            await self._show(found[0].mount_point, fsid, path)
            return False
        except (NotFoundError, KernelError) as error:  # the kernel does not say why
            await self._refuse_when_short(error)
            raise
        return True

    async def _mount_in(self, domain_id: str, fsid: str, path: Path) -> None:
        await host.mount_erofs(fsid, domain_id, path, read_ahead_kb=self._read_ahead // 1024)

    async def _mount_apart(self, fsid: str, path: Path) -> None:
        """Mount an image whose mount in the domain is in use where nobody can reach it."""
        used = {domain for domain, _ in await host.superblocks()}
        domain = choose_domain(self._first_domain, used)
        _log.warning(
            "%s: a mount of it is in use out of sight; mounted in domain %s, all is fetched again",
            fsid, domain,
        )  # fmt: skip
        await self._mount_in(domain, fsid, path)

    async def _refuse_when_short(self, error: Exception) -> None:
        """Raise StorageError if the cache has no room for new files."""
        try:
            shortage = await asyncio.to_thread(self._objects.shortage)
        except OSError:
            return
        if shortage is not None:
            raise shortage from error

    async def _show(self, place: str, fsid: str, path: Path) -> None:
        await host.bind_mount(Path(place), path)
        shown = await host.mounts_on(str(path))
        if not shown or not self._is_whole(shown[-1], fsid):  # a mount above it hides it
            raise KernelError(fsid, f"is out of reach on {place}")

    def _is_whole(self, mount: MountEntry, fsid: str) -> bool:
        """Whether a mount shows the whole of an image."""
        options = (mount.super_option("fsid"), mount.super_option("domain_id"))
        return mount.root == "/" and options == (fsid, self._domain_id)


async def _ask(question: Callable[[Iterable[str]], _T], cookies: set[str]) -> _T:
    try:
        return await asyncio.to_thread(question, cookies)
    except OSError as error:
        raise StorageError(str(error.filename), f"cannot be read: {error.strerror}") from error


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
