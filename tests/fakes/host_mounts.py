"""The kernel's mounts without a kernel: a table that holds the rules the daemon depends on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lazyimg.errors import InUseError, LazyimgError, NotFoundError
from lazyimg.host import loops
from lazyimg.host.mount_table import MountEntry
from lazyimg.images import cache_mounts, kernel_mounts, mounted, recovery
from lazyimg.images import mounts as images_mounts

MODULES = (cache_mounts, images_mounts, kernel_mounts, loops, mounted, recovery)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pytest


class LateCall:
    """A call that was given up; it lasts until `ended` is set."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def wait(self) -> None:
        await self.ended.wait()


@dataclass
class FakeMounts:
    """Stands for the module `lazyimg.host.mounts`.

    Rules: an fsid is mounted once, for as long as anything shows its file system, detached mounts
    that are in use included, unless it is mounted from files; what is busy is only unmounted
    lazily.

    Attributes:
        table: (mount point, kind, fsid shown) of each mount, in order.
        busy: mount points that are in use.
        failures: raised by the next call of that name.
        gates: calls of that name wait for it.
        late_gates: calls of that name wait for it when they have taken effect.
        waiting: set when one does.
        calls: names of the calls, in order.
        overlays: upper and work directories, by mount point.
        read_ahead: in KiB, by fsid.
        files: the bootstrap and the devices of what was mounted from files, by fsid.
        listed: what else is in the mount table.
        calls_end: whether calls of another process end in time.
        detached: domain and fsid of what is in use without being mounted.
        late: what `late_calls` gives.
    """

    table: list[tuple[str, str, str]] = field(default_factory=list)
    busy: set[str] = field(default_factory=set)
    failures: dict[str, LazyimgError] = field(default_factory=dict)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    late_gates: dict[str, asyncio.Event] = field(default_factory=dict)
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    calls: list[str] = field(default_factory=list)
    overlays: dict[str, tuple[Path, Path]] = field(default_factory=dict)
    read_ahead: dict[str, int | None] = field(default_factory=dict)
    files: dict[str, tuple[Path, list[Path]]] = field(default_factory=dict)
    listed: list[MountEntry] = field(default_factory=list)
    calls_end: bool = True
    detached: list[tuple[str, str]] = field(default_factory=list)
    late: list[LateCall] = field(default_factory=list)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeMounts:
        """Stand for the module wherever images are mounted."""
        for module in MODULES:
            monkeypatch.setattr(module, "host", self)
        return self

    async def wait_for_calls(self) -> bool:
        await self._enter("wait_for_calls")
        return self.calls_end

    def late_calls(self) -> list[LateCall]:
        return list(self.late)

    @property
    def points(self) -> list[str]:
        """Mount points, in order."""
        return [point for point, _, _ in self.table]

    async def _enter(self, call: str) -> None:
        self.calls.append(call)
        if call in self.gates:
            self.waiting.set()
            await self.gates[call].wait()
        await asyncio.sleep(0)
        if call in self.failures:
            raise self.failures.pop(call)

    async def _leave(self, call: str) -> None:
        if call in self.late_gates:
            self.waiting.set()
            await self.late_gates[call].wait()

    def _fsid_at(self, path: Path) -> str:
        for point, _, fsid in reversed(self.table):
            if point == str(path):
                return fsid
        raise AssertionError(f"{path} is shown, but nothing is mounted there")

    async def mount_erofs(
        self, fsid: str, domain_id: str, target: Path, *, read_ahead_kb: int | None = None
    ) -> None:
        await self._enter("mount_erofs")
        assert target.is_dir()
        if (domain_id, fsid) in await self.superblocks():
            raise InUseError(f"fsid {fsid}", "already mounted")
        self.table.append((str(target), f"erofs in {domain_id}", fsid))
        self.read_ahead[fsid] = read_ahead_kb
        await self._leave("mount_erofs")

    async def mount_erofs_files(
        self,
        bootstrap: Path,
        devices: Sequence[Path],
        target: Path,
        *,
        loops: Path | None = None,
    ) -> None:
        await self._enter("mount_erofs_files")
        assert target.is_dir()
        kind = "erofs from files" if loops is None else f"erofs by {loops.parent.name}"
        self.table.append((str(target), kind, bootstrap.name))
        self.files[bootstrap.name] = (bootstrap, list(devices))
        await self._leave("mount_erofs_files")

    async def bind_mount(self, source: Path, target: Path) -> None:
        await self._enter("bind_mount")
        self.table.append((str(target), "bind", self._fsid_at(source)))
        await self._leave("bind_mount")

    async def mount_overlay(
        self, lower: Sequence[Path], upper: Path, work: Path, target: Path
    ) -> None:
        await self._enter("mount_overlay")
        assert upper.is_dir()
        assert list(work.iterdir()) == []
        (work / "work").mkdir()
        self.table.append((str(target), "overlay", self._fsid_at(lower[0])))
        self.overlays[str(target)] = (upper, work)
        await self._leave("mount_overlay")

    async def unmount(self, target: Path, *, lazy: bool = False) -> None:
        await self._enter("unmount")
        path = str(target)
        for number in reversed(range(len(self.table))):
            if self.table[number][0] == path:
                break
        else:
            raise NotFoundError(f"unmount of {path}", "nothing is mounted there")
        if path in self.busy:
            if not lazy:
                raise InUseError(f"unmount of {path}", f"{path} is in use")
            if self.table[number][2] not in self.files:
                self.detached.append(self._superblock(self.table[number][2]))
        del self.table[number]

    async def superblocks(self) -> list[tuple[str, str]]:
        shown = [self._superblock(fsid) for _, _, fsid in self.table if fsid not in self.files]
        return [*self.detached, *shown]

    def _superblock(self, fsid: str) -> tuple[str, str]:
        kinds = [kind for _, kind, shown in self.table if shown == fsid]
        return next((kind[9:] for kind in kinds if kind.startswith("erofs in ")), ""), fsid

    async def mount_table(self) -> list[MountEntry]:
        await self._enter("mount_table")
        return self.listed + [self._entry(*mount) for mount in self.table]

    async def mounts_on(self, path: str) -> list[MountEntry]:
        return [entry for entry in await self.mount_table() if entry.mount_point == path]

    def _entry(self, point: str, kind: str, fsid: str) -> MountEntry:
        domain, _ = self._superblock(fsid)
        fs_type, source, options = "fake", "none", list[str]()
        if kind == "overlay":
            fs_type, options = kind, [f"upperdir={self.overlays[point][0]}"]
        elif fsid in self.files:
            fs_type, source = "erofs", str(self.files[fsid][0])
        elif kind:
            fs_type, options = "erofs", [f"fsid={fsid}", f"domain_id={domain}"]
        return MountEntry(1, 0, (0, 1), "/", point, (), fs_type, source, tuple(options))
