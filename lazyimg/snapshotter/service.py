"""What containerd's calls do: records, directories and lazily loaded layers put together.

Each call's disk work is one job in a thread. What the kernel has to mount for a snapshot is mounted
when it is made, and again when its mounts are asked for after a restart.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from lazyimg.errors import LazyimgError, NotFoundError, StorageError
from lazyimg.snapshotter.directories import Directories
from lazyimg.snapshotter.lifecycle import (
    REF,
    Kind,
    NewSnapshot,
    Snapshot,
    Unpacked,
    check_key,
    check_labels,
    check_mounts,
    check_shown,
    missing,
    name_image,
    parse_id_maps,
    taken,
)
from lazyimg.snapshotter.mapped import MappedMounts
from lazyimg.snapshotter.overlay import check_root, plan_mount
from lazyimg.snapshotter.records import Records

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

    from lazyimg.snapshotter.lifecycle import HeldImage, Quarantined, RemoteLayer
    from lazyimg.snapshotter.overlay import Mount
    from lazyimg.snapshotter.ports import LazyImages
    from lazyimg_formats.containerd.filters import Filter

T = TypeVar("T")

_log = logging.getLogger(__name__)

PAGE: Final = 200
"""Snapshots that a List reads from the records, and sends, at a time."""

PAGE_SIZE: Final = 1 << 20
"""Bytes of their keys and labels; a client may take no message of more than 4 MiB."""

THREADS: Final = 8
"""For the disk's work: measuring a large directory must not hold up other calls."""

MOUNTED_AT_ONCE: Final = 64
"""Images that a start mounts side by side."""

RELEASE_WAIT: Final = 10.0
"""Seconds that Cleanup, or the end, waits for the kernel to unmount what nobody needs."""

BELOW: Final = "the layer below it is unpacked"
"""Why a layer is: what was unpacked has no lazily loaded layers on top."""


class Snapshotter:
    """The snapshots of this node.

    Args:
        root: of the snapshotter.
        images: shows layers that were not downloaded.
        options: further mount options of each overlay.

    Attributes:
        records: what is known.
        changed: is called when a container begins to stand on lazily loaded layers, and when such
            a layer is removed.
        lazy: how many layers were loaded lazily since the start.
        unpacked: how many were to be, and are unpacked, for each reason.

    Raises:
        ConfigurationError: overlayfs cannot have directories below this root.
        StorageError: the disk refuses.
    """

    def __init__(
        self,
        root: Path,
        images: LazyImages,
        options: Sequence[str] = (),
    ) -> None:
        for path in (root, root.resolve()):
            check_root(path)
        self.lazy = 0
        self.unpacked: Counter[str] = Counter()
        self._directories = Directories(root)
        self.records = Records(root / "records.sqlite")
        self._images = images
        self._mapped = MappedMounts(root)
        self._options = tuple(options)
        self.changed: Callable[[], None] = lambda: None
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="snapshots")
        self._releasing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Remove what no record knows, and mount again what snapshots need.

        Raises:
            StorageError: the disk refuses.
        """
        await self._mapped.clear()
        await self._run(self._sweep)
        turns = asyncio.Semaphore(MOUNTED_AT_ONCE)
        users = defaultdict(list)
        for number, remote in (await self._run(self.records.shown)).items():
            users[remote].append(number)
        await asyncio.gather(*(self._mount_again(*each, turns) for each in users.items()))

    async def _mount_again(
        self, remote: RemoteLayer, numbers: list[int], turns: asyncio.Semaphore
    ) -> None:
        async with turns:
            try:
                await self._images.mount_again(remote, numbers)
            except LazyimgError as error:  # the others are not to wait; their Mounts try again
                _log.error("snapshots %s: %s", ", ".join(map(str, numbers)), error)

    async def remote_layers(self) -> list[RemoteLayer]:
        """Give what `start` will mount."""
        return list((await self._run(self.records.shown)).values())

    async def finish(self) -> None:
        """Unmount what nobody needs any more; what takes too long is left to the mounts' end."""
        await self._released()
        for task in self._releasing:
            task.cancel()
        await asyncio.gather(*self._releasing, return_exceptions=True)
        await self._mapped.clear()

    async def close(self) -> None:
        """End; mounts stay."""
        await asyncio.to_thread(self._threads.shutdown)
        await asyncio.to_thread(self._directories.close)
        await asyncio.to_thread(self.records.close)

    async def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        """Make an active snapshot, and give what to mount to write into it.

        Raises:
            AlreadyExistsError: the key is taken; or the label `REF` names a chain that is there
                now, as a committed snapshot with that label.
            LazyimgError: as `lifecycle.check_new`; or the disk, the kernel or the registry fails.
        """
        wanted = _wanted(Kind.ACTIVE, key, parent, labels)
        chain = labels.get(REF)
        unpacked = await self._take_remote(wanted, chain) if chain else None
        mounts = await self._create(wanted, unpacked)
        if unpacked is not None:
            self.unpacked[unpacked.reason] += 1
        return mounts

    async def view(self, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        """Make a view, and give what to mount to read it.

        Raises:
            LazyimgError: as `prepare`, without lazy layers.
        """
        return await self._create(_wanted(Kind.VIEW, key, parent, labels))

    async def mounts(self, key: str) -> list[Mount]:
        """Give what to mount for an active snapshot or a view.

        Raises:
            NotFoundError: there is none of this key.
            WrongStateError: it is committed.
        """
        ancestry = await self._run(self.records.ancestry, key)
        check_mounts(ancestry[0])
        return await self._mount(ancestry)

    async def commit(self, name: str, key: str, parent: str, labels: Mapping[str, str]) -> None:
        """Turn an active snapshot into a committed one.

        Args:
            name: the committed snapshot's key.
            key: the active one's.
            parent: for one without a parent: the parent it gets; "": none.
            labels: instead of those that it has.

        Raises:
            LazyimgError: as `Records.commit`.
        """
        wanted = _wanted(Kind.COMMITTED, name, parent, labels)
        self._release_soon(await self._run(self._commit, key, wanted))

    async def remove(self, key: str) -> None:
        """Remove a snapshot; its files, and what is mounted for it, go soon afterwards.

        Raises:
            NotFoundError: there is none of this key.
            WrongStateError: others stand on it.
        """
        removed = await self._run(self._remove, key)
        if removed.remote is not None:
            self.changed()
        else:
            self._release_soon(removed.number)

    async def stat(self, key: str) -> Snapshot:
        """Give a snapshot.

        Raises:
            NotFoundError: there is none of this key.
        """
        return await self._run(self.records.find, key)

    async def update(self, key: str, labels: Mapping[str, str], mask: Sequence[str]) -> Snapshot:
        """Change a snapshot's labels, and give it.

        Raises:
            NotFoundError: there is none of this key.
            UsageError: as `lifecycle.update_labels`.
        """
        return await self._run(self.records.update, key, labels, mask, time.time_ns())

    async def select(self, filters: Sequence[Filter]) -> AsyncIterator[list[Snapshot]]:
        """Give the snapshots that any of the filters matches (all, without filters), by pages."""
        refs = {one.required(("labels", REF)) for one in filters}
        ref = refs.pop() if len(refs) == 1 else None
        after = ""
        while page := await self._run(self.records.page, after, PAGE, PAGE_SIZE, ref):
            after = page[-1].key
            chosen = [
                snapshot
                for snapshot in page
                if not filters or any(one.matches(_fields(snapshot)) for one in filters)
            ]
            if chosen:
                yield chosen

    async def images(self) -> list[HeldImage]:
        """Give the images that layers are there for."""
        return await self._run(self.records.images)

    async def quarantined(self) -> list[Quarantined]:
        """Give the layers that must not be used."""
        return await self._run(self.records.quarantined)

    async def usage(self, key: str) -> tuple[int, int]:
        """Give a snapshot's bytes on the disk and inodes, without those below it.

        Raises:
            NotFoundError: there is none of this key.
        """
        return await self._run(self._usage, key)

    async def cleanup(self) -> None:
        """Remove what no record knows, and wait until it is removed."""
        await self._released()
        await self._run(self._sweep)
        removing = [asyncio.wrap_future(one) for one in self._directories.removing()]
        if removing:  # without a thread: others need them
            await asyncio.wait(removing)

    async def _take_remote(self, wanted: NewSnapshot, chain: str) -> Unpacked:
        """Record a lazily loaded layer, and raise AlreadyExistsError; or say why there is none."""
        below = await self._run(self.records.find, wanted.parent) if wanted.parent else None
        check_shown(wanted, [below] if below else [])
        if below is not None and below.remote is None:
            return Unpacked(*name_image(wanted.labels), "below", BELOW)
        found = await self._images.find(chain, wanted.labels, below.remote if below else None)
        if isinstance(found, Unpacked):  # others may have this chain, but this image may not
            return found
        if await self._run(self.records.find_ref, chain, wanted.parent) is None:
            await self._run(self.records.add_remote, _remote_snapshot(wanted, chain), found)
            self.lazy += 1
        raise taken(chain)

    async def _create(self, wanted: NewSnapshot, unpacked: Unpacked | None = None) -> list[Mount]:
        make = partial(self._make, wanted.kind is Kind.ACTIVE)
        ancestry = await self._run(self.records.create, wanted, make, unpacked)
        if _remote(ancestry) is not None:
            self.changed()
        try:
            return await self._mount(ancestry)
        except BaseException:
            await asyncio.shield(self.remove(wanted.key))
            raise

    def _make(self, writable: bool, ancestry: Sequence[Snapshot]) -> None:  # noqa: FBT001
        maps = parse_id_maps(ancestry[0].key, ancestry[0].labels)
        owner = maps.root if maps is not None else None
        if maps is None and len(ancestry) > 1 and ancestry[1].remote is None:
            owner = self._directories.owner(ancestry[1].number)
        self._directories.make(ancestry[0].number, owner, writable=writable)

    async def _mount(self, ancestry: Sequence[Snapshot]) -> list[Mount]:
        snapshot, below = ancestry[0], ancestry[1:]
        lowers = [str(self._directories.upper(one.number)) for one in below if one.remote is None]
        remote = _remote(below)
        if remote is not None:
            compared = await self._run(self.records.are_compared, ancestry)
            path = await self._images.mount(remote, snapshot.number, comparable=compared)
            lowers.append(str(path))
        maps = parse_id_maps(snapshot.key, snapshot.labels)
        if maps is not None:
            lowers = await self._mapped.show(snapshot.number, lowers, maps)
        if (remote or maps) and not await self._run(self._is_mountable, snapshot):
            self._release_soon(snapshot.number)  # it went since it was read
            raise missing(snapshot.key)
        upper, work = (
            str(path(snapshot.number)) for path in (self._directories.upper, self._directories.work)
        )
        if snapshot.kind is Kind.ACTIVE:
            return [plan_mount(lowers, upper, work, self._options)]
        return [plan_mount(lowers or [upper], None, None, self._options)]

    def _release_soon(self, number: int) -> None:
        """Take back what was mounted for a snapshot; the kernel may take its time for that."""
        task = asyncio.create_task(self._release(number))
        self._releasing.add(task)
        task.add_done_callback(self._end_release)

    async def _release(self, number: int) -> None:
        await self._mapped.release(number)  # it stands on the other
        await self._images.release(number)

    def _end_release(self, task: asyncio.Task[None]) -> None:
        self._releasing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("what was mounted for a snapshot is not taken back", exc_info=error)

    async def _released(self) -> None:
        """Wait until that is done, or takes too long."""
        if self._releasing:
            await asyncio.wait(self._releasing, timeout=RELEASE_WAIT)

    def _is_mountable(self, snapshot: Snapshot) -> bool:
        """Whether a snapshot is still there, as what it was."""
        try:
            now = self.records.find(snapshot.key)
        except NotFoundError:
            return False
        return (now.number, now.kind) == (snapshot.number, snapshot.kind)

    def _commit(self, key: str, wanted: NewSnapshot) -> int:
        snapshot = self.records.find_to_commit(key, wanted.key)
        usage = (0, 0)
        if snapshot.kind is Kind.ACTIVE:  # the records refuse others
            usage = self._measure(snapshot)
        self.records.commit(snapshot, wanted, usage)
        return snapshot.number

    def _remove(self, key: str) -> Snapshot:
        removed = self.records.remove(key)
        if removed.remote is None:
            try:
                self._directories.discard(removed.number)
            except StorageError as error:  # the next Cleanup or start tries again
                _log.warning("snapshot %d is removed, its files are not: %s", removed.number, error)
        return removed

    def _usage(self, key: str) -> tuple[int, int]:
        snapshot = self.records.find(key)
        if snapshot.kind is Kind.ACTIVE:
            return self._measure(snapshot)
        return snapshot.size, snapshot.inodes

    def _measure(self, snapshot: Snapshot) -> tuple[int, int]:
        """Give an active snapshot's bytes on the disk and inodes.

        Raises:
            NotFoundError: it was removed meanwhile, or committed.
        """
        try:
            return self._directories.usage(snapshot.number)
        except StorageError:
            if self._is_mountable(snapshot):
                raise
            raise missing(snapshot.key) from None

    def _sweep(self) -> None:
        self.records.while_unchanged(self._directories.sweep)

    async def _run(self, call: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)


def _wanted(kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> NewSnapshot:
    check_key(key)
    check_labels(key, labels)
    if kind is not Kind.COMMITTED:
        parse_id_maps(key, labels)
    kept = {name: value for name, value in labels.items() if value}
    return NewSnapshot(kind, key, parent, kept, time.time_ns())


def _remote_snapshot(wanted: NewSnapshot, chain: str) -> NewSnapshot:
    """Give the committed snapshot that is there instead of the active one that was asked for."""
    return NewSnapshot(
        Kind.COMMITTED, f"{chain} {wanted.key}", wanted.parent, wanted.labels, wanted.now
    )


def _remote(ancestry: Sequence[Snapshot]) -> RemoteLayer | None:
    """Give the uppermost remote layer: it shows all of those below it."""
    return next((one.remote for one in ancestry if one.remote is not None), None)


def _fields(snapshot: Snapshot) -> Callable[[tuple[str, ...]], str | None]:
    def field(path: tuple[str, ...]) -> str | None:
        if path[0] == "labels":
            return snapshot.labels.get(".".join(path[1:]))
        return {
            "name": snapshot.key,
            "parent": snapshot.parent,
            "kind": snapshot.kind.name.lower(),
        }.get(path[0])

    return field
