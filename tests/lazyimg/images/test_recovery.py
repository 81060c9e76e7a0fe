"""What a process that died left behind, in the mount table and in the records."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import KernelError, StorageError
from lazyimg.host.mount_table import MountEntry
from lazyimg.images import lost
from lazyimg.images.library import ImageRecord, Library, MountRecord, MountState
from tests.fakes.image_mounts import FAILURE, image, kernel_mount, leftovers, recorded

if TYPE_CHECKING:
    from pathlib import Path

    from lazyimg.images.cache_mounts import CacheMounts
    from lazyimg.images.mounts import Mounts
    from tests.fakes.host_mounts import FakeMounts
    from tests.fakes.image_mounts import Cache


def entry(point: str, fs_type: str, *super_options: str, source: str = "none") -> MountEntry:
    return MountEntry(1, 0, (0, 1), "/", point, ("ro",), fs_type, source, super_options)


async def test_what_a_dead_daemon_left_is_taken_away(
    mounts: Mounts, host: FakeMounts, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = ("ro", "fsid=f", "domain_id=lazyimg")
    host.listed = [
        entry("/", "ext4", "rw"),
        entry("/erofs", "erofs", "ro", "device=/dev/sda"),
        entry("/theirs", "erofs", "fsid=f", "domain_id=other"),
        entry(kernel_mount(root), "erofs", *ours),
        entry("/one", "erofs", *ours),
        entry("/from-file", "erofs", "ro", source=f"{root}/bootstraps/f"),
        entry("/from-other-file", "erofs", "ro", source="/x/bootstraps/f"),
        entry("/rw", "overlay", f"lowerdir=/x,upperdir={root}/scratch/1/upper".split(",")[1]),
        entry("/docker", "overlay", "upperdir=/var/lib/docker/1"),
        entry("/lower-only", "overlay", "lowerdir=/a:/b"),
        entry("/other", "tmpfs", f"upperdir={root}/scratch/1/upper"),
    ]
    host.table = [(one.mount_point, "", one.mount_point) for one in host.listed]
    host.busy.update(host.points)
    (root / "mnt" / ("a" * 64)).mkdir()
    (root / "scratch" / "1" / "upper").mkdir(parents=True)
    await mounts.recover(served=False)
    assert host.points == [
        "/", "/erofs", "/theirs", "/from-other-file", "/docker", "/lower-only", "/other"
    ]  # fmt: skip
    assert leftovers(root) == []
    assert caplog.messages == [
        f"{point}: left by a daemon that died; unmounted"
        for point in ("/rw", "/from-file", "/one", kernel_mount(root))
    ]


async def test_leftover_that_goes_with_another_one(
    mounts: Mounts, host: FakeMounts, root: Path
) -> None:
    ours = ("fsid=f", "domain_id=lazyimg")
    host.listed = [entry("/peer", "erofs", *ours), entry("/one", "erofs", *ours)]
    host.table = [("/peer", "", "f")]
    await mounts.recover(served=False)
    assert host.points == []


async def test_leftover_that_the_kernel_keeps(mounts: Mounts, host: FakeMounts) -> None:
    host.listed = [entry("/one", "erofs", "fsid=f", "domain_id=lazyimg")]
    host.failures["unmount"] = FAILURE
    with pytest.raises(KernelError):
        await mounts.recover(served=False)


async def test_leftover_directory_that_is_not_empty(mounts: Mounts, root: Path) -> None:
    path = root / "mnt" / "x"
    path.mkdir()
    (path / "file").touch()
    with pytest.raises(StorageError) as caught:
        await mounts.recover(served=False)
    assert str(caught.value) == f"{path}: cannot be removed: Directory not empty; remove it"


def leave(
    library: Library, state: MountState, *, directory: str = "/one", scratch: str = ""
) -> None:
    """Record what a process that died was doing with the image "a"."""
    one = image()
    record = ImageRecord(one.reference, one.platform, one.digest, one.chain.key)
    library.add_mount(MountRecord(directory, record, scratch, state))


def leave_mounted(host: FakeMounts, root: Path, *directories: str) -> None:
    (root / "mnt" / ("a" * 64)).mkdir()
    host.table = [(kernel_mount(root), "erofs in lazyimg", "a" * 64)]
    host.table += [(directory, "bind", "a" * 64) for directory in directories]


async def test_mounts_are_taken_over(
    mounts: Mounts, host: FakeMounts, library: Library, root: Path
) -> None:
    for directory in ("/one", "/two"):
        leave(library, MountState.MOUNTED, directory=directory)
    leave_mounted(host, root, "/one", "/two")
    await mounts.recover(served=True)
    assert [(one.directory, one.image) for one in mounts.list()] == [
        ("/one", image()),
        ("/two", image()),
    ]
    assert host.calls == ["wait_for_calls", "mount_table"]
    await mounts.unmount("/one", lazy=False)
    assert host.points == [kernel_mount(root), "/two"]
    await mounts.mount(image(), "/three", read_write=False)
    await mounts.unmount("/two", lazy=False)
    await mounts.unmount("/three", lazy=False)
    assert host.points == []
    assert "mount_erofs" not in host.calls


async def test_read_write_mount_is_taken_over(
    mounts: Mounts, host: FakeMounts, library: Library, root: Path
) -> None:
    leave(library, MountState.MOUNTED, scratch="s")
    upper = root / "scratch" / "s" / "upper"
    upper.mkdir(parents=True)
    leave_mounted(host, root)
    host.table.append(("/one", "overlay", "a" * 64))
    host.overlays["/one"] = (upper, upper)
    await mounts.recover(served=True)
    assert mounts.find("/one").scratch == root / "scratch" / "s"
    assert upper.exists()
    await mounts.unmount("/one", lazy=False)
    assert leftovers(root) == []


@pytest.mark.parametrize("state", [MountState.MOUNTING, MountState.UNMOUNTING])
@pytest.mark.parametrize("there", [False, True])
async def test_what_was_begun_is_undone_or_finished(
    mounts: Mounts,
    host: FakeMounts,
    library: Library,
    root: Path,
    state: MountState,
    *,
    there: bool,
) -> None:
    leave(library, state, scratch="s")
    upper = root / "scratch" / "s" / "upper"
    upper.mkdir(parents=True)
    leave_mounted(host, root)
    if there:
        host.table.append(("/one", "overlay", "a" * 64))
        host.overlays["/one"] = (upper, upper)
    await mounts.recover(served=True)
    assert host.points == []
    assert mounts.list() == []
    assert recorded(library) == []
    assert leftovers(root) == []


async def test_unmount_that_was_begun_and_finds_the_directory_busy(
    mounts: Mounts, host: FakeMounts, library: Library, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave(library, MountState.UNMOUNTING)
    leave_mounted(host, root, "/one")
    host.busy.add("/one")
    await mounts.recover(served=True)
    assert "/one: it stays mounted: " in caplog.text
    assert [one.directory for one in mounts.list()] == ["/one"]
    assert recorded(library) == [("/one", "mounted")]


@pytest.mark.parametrize("there", [False, True])
async def test_detaching_is_finished_and_leaves_those_in_it_their_files(
    mounts: Mounts, host: FakeMounts, library: Library, root: Path, *, there: bool
) -> None:
    leave(library, MountState.DETACHING, scratch="s")
    upper = root / "scratch" / "s" / "upper"
    upper.mkdir(parents=True)
    leave_mounted(host, root)
    host.busy |= {kernel_mount(root), "/one"}
    if there:
        host.table.append(("/one", "overlay", "a" * 64))
        host.overlays["/one"] = (upper, upper)
    await mounts.recover(served=True)
    assert host.points == [kernel_mount(root)]
    assert mounts.list() == []
    assert upper.exists()
    await mounts.mount(image(), "/two", read_write=False)
    assert "mount_erofs" not in host.calls


async def test_mount_that_somebody_else_unmounted_meanwhile(
    mounts: Mounts, host: FakeMounts, library: Library, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave(library, MountState.MOUNTED)
    leave_mounted(host, root)
    await mounts.recover(served=True)
    assert caplog.messages == ["/one: was unmounted by somebody else"]
    assert host.points == []
    assert recorded(library) == []


async def test_image_nobody_uses_is_unmounted_and_what_is_empty_is_removed(
    mounts: Mounts, host: FakeMounts, root: Path
) -> None:
    leave_mounted(host, root)
    (root / "mnt" / ("b" * 64)).mkdir()
    await mounts.recover(served=True)
    assert host.points == []
    assert leftovers(root) == []


async def test_image_that_somebody_will_use_stays_mounted(
    mounts: Mounts, host: FakeMounts, root: Path
) -> None:
    leave_mounted(host, root)
    await mounts.recover(served=True, kept=[image().chain.fsid])
    assert host.points == [kernel_mount(root)]
    assert str(await mounts.hold(image())) == str(mounts.path(image())) == kernel_mount(root)
    await mounts.release(image())
    assert host.points == []


async def test_mount_of_an_image_that_is_not_known(
    mounts: Mounts, host: FakeMounts, library: Library, caplog: pytest.LogCaptureFixture
) -> None:
    leave(library, MountState.MOUNTED)
    library._db.execute("PRAGMA foreign_keys = OFF")
    library._db.execute("DELETE FROM chain")
    await mounts.recover(served=True)
    assert caplog.messages == ["/one: reg.test/a:1 is not known any more"]
    assert recorded(library) == []


async def test_calls_of_the_process_before_that_do_not_end(
    mounts: Mounts, host: FakeMounts, caplog: pytest.LogCaptureFixture
) -> None:
    host.calls_end = False
    await mounts.recover(served=True)
    assert caplog.messages == ["a mount or unmount of the process before this one does not end"]


async def test_mount_directory_that_cannot_be_read(mounts: Mounts, root: Path) -> None:
    (root / "mnt").rmdir()
    with pytest.raises(StorageError, match="mnt: cannot be read: No such file or directory"):
        await mounts.recover(served=True)


async def test_dead_mounts_are_made_again(
    mounts: Mounts, host: FakeMounts, library: Library, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave(library, MountState.MOUNTED)
    leave(library, MountState.MOUNTED, directory="/rw", scratch="s")
    leave(library, MountState.UNMOUNTING, directory="/going", scratch="t")
    for name in "st":
        (root / "scratch" / name / "upper").mkdir(parents=True)
        (root / "scratch" / name / "upper" / "written").touch()
    leave_mounted(host, root, "/one", "/going")
    await mounts.recover(served=False)
    assert host.points == [kernel_mount(root), "/one", "/rw"]
    assert host.overlays["/rw"][0] == root / "scratch" / "s" / "upper"
    assert (root / "scratch" / "s" / "upper" / "written").exists()
    assert leftovers(root) == ["a" * 64, "s"]
    assert recorded(library) == [("/one", "mounted"), ("/rw", "mounted")]
    assert caplog.messages == [
        "/going: left by a daemon that died; unmounted",
        "/one: left by a daemon that died; unmounted",
        f"{kernel_mount(root)}: left by a daemon that died; unmounted",
        "/one: reg.test/a:1 is mounted again",
        "/rw: reg.test/a:1 is mounted again",
    ]
    await mounts.unmount("/one", lazy=False)
    await mounts.unmount("/rw", lazy=False)
    assert host.points == []


async def test_dead_mount_that_is_in_use_is_made_again_in_another_domain(
    mounts: Mounts,
    way: CacheMounts,
    host: FakeMounts,
    library: Library,
    root: Path,
    cache: Cache,
    caplog: pytest.LogCaptureFixture,
) -> None:
    leave(library, MountState.MOUNTED, scratch="s")
    (root / "scratch" / "s" / "upper").mkdir(parents=True)
    leave_mounted(host, root)
    host.busy.add(kernel_mount(root))
    await mounts.recover(served=False)
    assert "images are mounted in domain lazyimg-2 now" in caplog.text
    assert host.table == [
        (kernel_mount(root), "erofs in lazyimg-2", "a" * 64),
        ("/one", "overlay", "a" * 64),
    ]
    assert recorded(library) == [("/one", "mounted")]
    assert (way.domain_id, cache.domains) == ("lazyimg-2", ["lazyimg-2"])
    assert await mounts.dead() == {"a" * 64}
    host.detached = [("lazyimg", "a" * 28)]  # as some kernels cut it short
    assert await mounts.dead() == {"a" * 64}
    host.detached = [("other", "a" * 64), ("lazyimg", "c" * 64), ("lazyimg-2", "a" * 64)]
    assert await mounts.dead() == set()


@pytest.mark.parametrize(
    ("text", "domain"), [(None, "lazyimg"), ("lazyimg-2", "lazyimg-2"), ("other", "lazyimg")]
)
async def test_domain_of_mounts_that_are_taken_over(
    mounts: Mounts, way: CacheMounts, host: FakeMounts, root: Path, text: str | None, domain: str
) -> None:
    if text is not None:
        (root / "domain").write_text(text)
    host.detached = [("lazyimg", "c" * 64)]
    await mounts.recover(served=True)
    assert way.domain_id == domain


async def test_first_domain_is_used_again_when_the_dead_are_gone(
    mounts: Mounts, way: CacheMounts, host: FakeMounts, library: Library, root: Path
) -> None:
    leave(library, MountState.MOUNTED)
    (root / "domain").write_text("lazyimg-2")
    host.table = [(kernel_mount(root), "erofs in lazyimg-2", "a" * 64)]
    (root / "mnt" / ("a" * 64)).mkdir()
    await mounts.recover(served=False)
    assert way.domain_id == (root / "domain").read_text() == "lazyimg"
    assert host.table[0] == (kernel_mount(root), "erofs in lazyimg", "a" * 64)


async def test_domain_that_cannot_be_read_or_written(
    mounts: Mounts, host: FakeMounts, root: Path
) -> None:
    host.detached = [("lazyimg", "c" * 64)]
    root.chmod(0o500)
    if os.access(root, os.W_OK):  # root may always
        (root / "domain").mkdir()
        with pytest.raises(StorageError, match="domain: cannot be read: "):
            await mounts.recover(served=False)
    else:
        with pytest.raises(StorageError, match="domain: cannot be written: Permission denied"):
            await mounts.recover(served=False)
    root.chmod(0o700)


async def test_mount_that_cannot_be_made_again_is_made_later(
    mounts: Mounts,
    host: FakeMounts,
    library: Library,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(lost, "PAUSE", 0.0)
    leave(library, MountState.MOUNTED, scratch="s")
    (root / "scratch" / "s" / "upper").mkdir(parents=True)
    host.failures["mount_overlay"] = FAILURE
    await mounts.recover(served=False)
    assert recorded(library) == [("/one", "lost")]
    assert [(one.mounted.directory, one.problem) for one in mounts.lost()] == [
        ("/one", "mount: failed on demand")
    ]
    assert mounts.find("/one").image == image()
    assert mounts.list() == []
    async with asyncio.timeout(60):
        while mounts.lost():  # noqa: ASYNC110  nobody is told
            await asyncio.sleep(0.01)
    assert [one.directory for one in mounts.list()] == ["/one"]
    assert recorded(library) == [("/one", "mounted")]
    assert caplog.messages[-2:] == [
        "/one: reg.test/a:1 is not mounted again: mount: failed on demand",
        "/one: reg.test/a:1 is mounted again",
    ]
    await mounts.close()


@pytest.mark.parametrize("served", [False, True])
async def test_lost_mount_is_lost_to_the_next_process_too(
    mounts: Mounts, host: FakeMounts, library: Library, root: Path, *, served: bool
) -> None:
    leave(library, MountState.LOST, scratch="s")
    (root / "scratch" / "s" / "upper").mkdir(parents=True)
    await mounts.recover(served=served)
    assert host.points == [kernel_mount(root), "/one"]
    assert recorded(library) == [("/one", "mounted")]
