"""Lower directories with other owners, over mounts that are faked; tests/kernel has real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lazyimg.errors import KernelError, LazyimgError, NotFoundError, StorageError
from lazyimg.host.mount_table import MountEntry
from lazyimg.snapshotter import mapped
from lazyimg.snapshotter.lifecycle import IdMaps
from lazyimg.snapshotter.mapped import MappedMounts

if TYPE_CHECKING:
    from pathlib import Path

MAPS = IdMaps(((0, 1000, 10),), ((0, 2000, 10),))
LOWERS = ["/snapshots/3/fs", "/mnt/abc"]


class Host:
    """Stands for `lazyimg.host.mounts`: what is mounted, by place."""

    def __init__(self) -> None:
        self.table: dict[str, tuple[Any, ...]] = {}
        self.failure: LazyimgError | None = None

    async def bind_mapped(self, source: Path, target: Path, uids: object, gids: object) -> None:
        assert target.is_dir()
        if self.failure is not None:
            raise self.failure
        assert str(target) not in self.table
        self.table[str(target)] = (str(source), uids, gids)

    async def unmount(self, target: Path, *, lazy: bool) -> None:
        assert lazy
        if self.failure is not None:
            raise self.failure
        if str(target) not in self.table:
            raise NotFoundError(str(target), "nothing is mounted there")
        del self.table[str(target)]

    async def mount_table(self) -> list[MountEntry]:
        return [
            MountEntry(1, 0, (0, 1), "/", place, (), "erofs", "none", ()) for place in self.table
        ]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    monkeypatch.setattr(mapped, "host", host)
    return host


async def test_lower_directories_are_shown_until_they_are_released(
    host: Host, tmp_path: Path
) -> None:
    mounts = MappedMounts(tmp_path)
    shown = await mounts.show(7, LOWERS, MAPS)
    assert shown == [f"{tmp_path}/mapped/7/3", f"{tmp_path}/mapped/7/abc"]
    assert host.table == {
        place: (lower, MAPS.uids, MAPS.gids) for place, lower in zip(shown, LOWERS, strict=True)
    }
    assert await mounts.show(7, LOWERS, MAPS) == shown
    (other,) = await mounts.show(8, LOWERS[1:], MAPS)
    await mounts.release(7)
    assert list(host.table) == [other]
    assert [path.name for path in (tmp_path / "mapped").iterdir()] == ["8"]
    await mounts.release(7)  # there is nothing left to do
    await mounts.release(8)
    assert (host.table, list((tmp_path / "mapped").iterdir())) == ({}, [])


async def test_those_of_a_process_before_this_one_go(host: Host, tmp_path: Path) -> None:
    await MappedMounts(tmp_path).show(7, LOWERS, MAPS)
    host.table["/elsewhere/mapped/7/3"] = ()
    await MappedMounts(tmp_path).clear()
    assert list(host.table) == ["/elsewhere/mapped/7/3"]
    assert list((tmp_path / "mapped").iterdir()) == []


async def test_what_others_have_unmounted_is_released(host: Host, tmp_path: Path) -> None:
    mounts = MappedMounts(tmp_path)
    await mounts.show(7, LOWERS, MAPS)
    host.table.clear()
    await mounts.release(7)
    assert len(await mounts.show(7, LOWERS, MAPS)) == 2
    assert len(host.table) == 2


async def test_kernel_that_cannot(
    host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mounts = MappedMounts(tmp_path)
    await mounts.show(7, LOWERS, MAPS)
    host.failure = KernelError("/mnt/abc", "is broken")
    with pytest.raises(KernelError):
        await mounts.show(8, LOWERS, MAPS)
    await mounts.release(7)
    assert "/mnt/abc: is broken" in caplog.text
    host.failure = None
    await mounts.release(7)
    assert host.table == {}


async def test_directory_that_cannot_be_made(host: Host, tmp_path: Path) -> None:
    (tmp_path / "mapped").write_text("")
    with pytest.raises(StorageError, match="mapped/7/3"):
        await MappedMounts(tmp_path).show(7, LOWERS, MAPS)
    assert host.table == {}


async def test_directories_of_a_process_that_died(host: Host, tmp_path: Path) -> None:
    """A reboot has undone its mounts, or it died before it had mounted."""
    (tmp_path / "mapped/7/abc").mkdir(parents=True)
    (tmp_path / "mapped/8").mkdir()
    await MappedMounts(tmp_path).clear()
    assert list((tmp_path / "mapped").iterdir()) == []
