"""Mounts through the kernel's cache (/dev/cachefiles), by fsid, in a domain.

The kernel takes an image's name once in a domain. An image that somebody mounted by hand is shown
at our place too, and used from there. One that is in use where no mount shows it (an overlay in
another mount namespace, left of a container that was removed) is mounted once more in another
domain, in which nothing of it is local.

The first use of a cache file: the kernel keeps a new file without a name until its object is
closed, so a power cut would lose all of it. An image that needs new files is therefore mounted
twice: once for the kernel to make them, and to name them when it is unmounted at once, and then
for its users. In between, files of a domain that was used before take the new ones' places.

What was made of a layer on this node goes into the cache files then, too: the kernel gives their
fds only when the image is mounted.

Where the kernel still keeps dead mounts of a domain, another one is used (`lazyimg.host.domains`);
ROOT/domain says which.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from lazyimg.errors import InUseError, KernelError, NotFoundError, StorageError
from lazyimg.host import mounts as host
from lazyimg.host.domains import choose_domain, is_domain_of
from lazyimg.host.files import write_file
from lazyimg.host.mount_table import mount_at

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

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

    async def bring_staged(self, cookies: Iterable[str]) -> None:
        """Write those of these objects into the cache that were made here. Raises LazyimgError."""
        ...

    def shortage(self) -> StorageError | None:
        """Say why nothing can be stored now; None if there is room. Blocks; raises OSError."""
        ...


class CacheMounts:
    """Has the kernel ask the transport for images; see `lazyimg.images.ports.Way`.

    Args:
        root: the daemon's directory.
        domain_id: in which images are mounted, unless something dead is left there.
        read_ahead: bytes.
        objects: knows the cache's files.
    """

    def __init__(self, root: Path, domain_id: str, read_ahead: int, objects: Objects) -> None:
        self._domain_file = root / "domain"
        self._first_domain = domain_id
        self._domain_id = domain_id
        self._read_ahead = read_ahead
        self._objects = objects

    @property
    def domain_id(self) -> str:
        """The domain in which images are mounted."""
        return self._domain_id

    @property
    def by_hand(self) -> CacheMounts:
        """Say how it is mounted by mount(8)."""
        return self

    async def is_new(self, chain: ChainRecord) -> bool:
        """Tell whether files of an image have no name in the cache. Raises StorageError."""
        return bool(await self._new(chain))

    async def adopt(self, _: Collection[str]) -> None:
        """Go on in the domain of the process before this one.

        Raises:
            StorageError: what it left cannot be read.
        """
        self._use_domain(await asyncio.to_thread(self._read_domain))

    async def leave(self, fsid: str, path: Path) -> None:
        """Do nothing: the kernel says which superblocks it keeps, see `dead`."""

    async def begin(self) -> None:
        """Choose a domain in which nothing dead is left.

        Raises:
            StorageError: it cannot be noted.
        """
        haunted = {domain for domain, _ in await host.superblocks()}
        domain = choose_domain(self._first_domain, haunted)
        if domain != self._first_domain:
            _log.warning("dead mounts are in use; images are mounted in domain %s now", domain)
        try:
            if domain != await asyncio.to_thread(self._read_domain):
                await asyncio.to_thread(write_file, self._domain_file, domain.encode())
        except OSError as error:
            raise StorageError(
                str(self._domain_file), f"cannot be written: {error.strerror}"
            ) from error
        self._use_domain(domain)

    def _use_domain(self, domain_id: str) -> None:
        self._domain_id = domain_id
        self._objects.use_domain(domain_id)

    def _read_domain(self) -> str:
        """Give the domain that the process before this one used."""
        try:
            domain = self._domain_file.read_text()
        except FileNotFoundError:
            domain = ""
        except (OSError, ValueError) as error:
            raise StorageError(str(self._domain_file), f"cannot be read: {error}") from error
        return domain if is_domain_of(domain, self._first_domain) else self._first_domain

    async def unmounted(self, fsid: str) -> None:
        """Do nothing: the kernel has closed what it had open."""

    async def dead(self) -> tuple[str, ...]:
        """Give the fsids, or how they begin, of dead mounts that somebody is in."""
        return tuple(
            fsid
            for domain, fsid in await host.superblocks()
            if domain != self._domain_id and is_domain_of(domain, self._first_domain)
        )

    async def mount(self, chain: ChainRecord, path: Path) -> None:
        """Mount an image on an empty directory, its new files named.

        Raises:
            LazyimgError: the kernel refuses; then it may be mounted there nevertheless.
        """
        new = await self._new(chain)
        if not await self._mount(chain.fsid, path):
            return
        if new:
            await self._name_files(chain.fsid, sorted(new - {chain.fsid}), path)
        await self._objects.bring_staged(_devices(chain))

    async def _new(self, chain: ChainRecord) -> set[str]:
        """Give the objects of an image whose files have no name in the cache."""
        objects = {chain.fsid, *_devices(chain)}
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


def _devices(chain: ChainRecord) -> set[str]:
    return {layer.device for layer in chain.layers if layer.device_size}


async def _ask(question: Callable[[Iterable[str]], _T], cookies: set[str]) -> _T:
    try:
        return await asyncio.to_thread(question, cookies)
    except OSError as error:
        raise StorageError(str(error.filename), f"cannot be read: {error.strerror}") from error
