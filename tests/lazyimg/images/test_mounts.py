"""The mounts of images, over a table of mounts that holds the kernel's rules."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from lazyimg.errors import InUseError, KernelError, LazyimgError, NotFoundError, StorageError
from lazyimg.host.mount_table import MountEntry
from lazyimg.images import mounts as mounts_module
from lazyimg.images.library import ChainRecord, LayerRecord
from lazyimg.images.mounts import Mounts
from lazyimg.images.service import Image
from tests.fakes.host_mounts import FakeMounts

FAILURE = KernelError("mount", "failed on demand")


def image(name: str = "a") -> Image:
    chain = ChainRecord(name * 64, 4096, [])
    return Image(f"reg.test/{name}:1", "sha256:" + name * 64, "linux/amd64", chain)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> FakeMounts:
    host = FakeMounts()
    monkeypatch.setattr(mounts_module, "host", host)
    return host


class NamedObjects:
    """The kernel's files: those of `unnamed` get their names when their mount ends."""

    def __init__(self, host: FakeMounts) -> None:
        self.host = host
        self.unnamed: set[str] = set()
        self.opens: list[str] = []
        self.failure: LazyimgError | OSError | None = None

    def backing_path(self, cookie: str) -> Path | None:
        if isinstance(self.failure, OSError):
            raise self.failure
        return None if cookie in self.unnamed else Path(cookie)

    async def opened(self, cookie: str) -> None:
        if self.failure:
            raise self.failure
        assert self.host.points
        self.opens.append(cookie)


@pytest.fixture
def objects(host: FakeMounts) -> NamedObjects:
    return NamedObjects(host)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("mnt", "scratch"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.fixture
def mounts(root: Path, host: FakeMounts, objects: NamedObjects) -> Mounts:
    return Mounts(root, "lazyimg", 1 << 20, objects)


def leftovers(root: Path) -> list[str]:
    return sorted(path.name for name in ("mnt", "scratch") for path in (root / name).iterdir())


def kernel_mount(root: Path, name: str = "a") -> str:
    return str(root / "mnt" / (name * 64))


async def test_first_mount_and_its_end(mounts: Mounts, host: FakeMounts, root: Path) -> None:
    mounted = await mounts.mount(image(), "/one", read_write=False)
    assert (mounted.image, mounted.directory, mounted.scratch) == (image(), "/one", None)
    assert host.table == [
        (kernel_mount(root), "erofs in lazyimg", "a" * 64),
        ("/one", "bind", "a" * 64),
    ]
    assert host.read_ahead == {"a" * 64: 1024}
    assert mounts.list() == [mounted]
    assert mounts.find("/one") is mounted
    assert await mounts.unmount("/one", lazy=False) is mounted
    assert host.table == []
    assert mounts.list() == []
    assert leftovers(root) == []


def two_devices() -> Image:
    layers = [
        LayerRecord("blob", 1, "type", "zstd:chunked", "table", device, size)
        for device, size in (("d1", 4096), ("", 0), ("d2", 8192))
    ]
    return Image("reg.test/two:1", "sha256:2", "linux/amd64", ChainRecord("a" * 64, 4096, layers))


@pytest.mark.parametrize("unnamed", ["a" * 64, "d1", "d2"])
async def test_first_mount_of_an_object_is_ended_so_that_it_gets_a_name(
    mounts: Mounts, host: FakeMounts, root: Path, objects: NamedObjects, unnamed: str
) -> None:
    objects.unnamed = {unnamed}
    await mounts.mount(two_devices(), "/one", read_write=False)
    assert host.calls[:4] == ["mount_erofs", "unmount", "mount_erofs", "bind_mount"]
    assert objects.opens == ["a" * 64, "d1", "d2"]
    assert host.points == [kernel_mount(root), "/one"]


@pytest.mark.parametrize("call", ["opened", "unmount"])
async def test_first_mount_that_cannot_be_ended_stays(
    mounts: Mounts,
    host: FakeMounts,
    root: Path,
    objects: NamedObjects,
    caplog: pytest.LogCaptureFixture,
    call: str,
) -> None:
    objects.unnamed = {"d1"}
    if call == "opened":
        objects.failure = FAILURE
    else:
        host.failures["unmount"] = InUseError("unmount", "is in use")
    await mounts.mount(two_devices(), "/one", read_write=False)
    assert host.calls.count("mount_erofs") == 1
    assert host.points == [kernel_mount(root), "/one"]
    assert f"{'a' * 64}: may be lost in a power cut: " in caplog.text


async def test_second_mount_that_fails_leaves_nothing(
    mounts: Mounts, host: FakeMounts, root: Path, objects: NamedObjects
) -> None:
    objects.unnamed = {"d1"}
    host.mounts_left = 1
    with pytest.raises(KernelError, match="no more mounts"):
        await mounts.mount(two_devices(), "/one", read_write=False)
    assert host.points == []
    assert leftovers(root) == []


async def test_cache_that_cannot_be_looked_into(
    mounts: Mounts, host: FakeMounts, objects: NamedObjects, caplog: pytest.LogCaptureFixture
) -> None:
    objects.failure = OSError("failing disk")
    await mounts.mount(two_devices(), "/one", read_write=False)
    assert host.calls.count("mount_erofs") == 1
    assert "the cache cannot be looked into: failing disk" in caplog.text


async def test_second_directory_is_one_more_bind_mount(
    mounts: Mounts, host: FakeMounts, root: Path
) -> None:
    await mounts.mount(image(), "/one", read_write=False)
    await mounts.mount(image(), "/two", read_write=False)
    assert host.calls.count("mount_erofs") == 1
    await mounts.unmount("/one", lazy=False)
    assert host.points == [kernel_mount(root), "/two"]
    await mounts.unmount("/two", lazy=False)
    assert host.points == []
    await mounts.mount(image(), "/one", read_write=False)
    assert host.calls.count("mount_erofs") == 2


async def test_image_on_many_directories_at_once(
    mounts: Mounts, host: FakeMounts, root: Path
) -> None:
    directories = [f"/{number}" for number in range(8)]
    await asyncio.gather(*(mounts.mount(image(), one, read_write=False) for one in directories))
    assert host.calls.count("mount_erofs") == 1
    assert sorted(host.points) == sorted([kernel_mount(root), *directories])
    await asyncio.gather(*(mounts.unmount(one, lazy=False) for one in directories))
    assert host.points == []
    assert leftovers(root) == []


async def test_images_on_one_directory_at_once(
    mounts: Mounts, host: FakeMounts, root: Path
) -> None:
    first, second = await asyncio.gather(
        mounts.mount(image("a"), "/one", read_write=False),
        mounts.mount(image("b"), "/one", read_write=False),
        return_exceptions=True,
    )
    assert not isinstance(first, BaseException)
    assert isinstance(second, InUseError)
    assert str(second) == "/one: reg.test/a:1 is mounted there; lazyimg umount /one"
    assert host.points == [kernel_mount(root), "/one"]
    assert leftovers(root) == ["a" * 64]


async def test_read_write_mount_and_its_end(mounts: Mounts, host: FakeMounts, root: Path) -> None:
    mask = os.umask(0o077)
    try:
        mounted = await mounts.mount(image(), "/one", read_write=True)
    finally:
        os.umask(mask)
    assert mounted.scratch is not None
    assert mounted.scratch.parent == root / "scratch"
    upper, work = host.overlays["/one"]
    assert upper.parent == work.parent == mounted.scratch
    assert upper.stat().st_mode & 0o7777 == 0o755
    (upper / "written").write_text("x")
    other = await mounts.mount(image(), "/two", read_write=True)
    assert other.scratch != mounted.scratch
    await mounts.unmount("/one", lazy=False)
    assert not mounted.scratch.exists()
    await mounts.unmount("/two", lazy=False)
    assert host.points == []
    assert leftovers(root) == []


@pytest.mark.parametrize("call", ["mount_erofs", "mount_overlay", "bind_mount"])
async def test_mount_that_fails_leaves_nothing(
    mounts: Mounts, host: FakeMounts, root: Path, call: str
) -> None:
    host.failures[call] = FAILURE
    with pytest.raises(KernelError, match="failed on demand"):
        await mounts.mount(image(), "/one", read_write=call == "mount_overlay")
    assert host.points == []
    assert mounts.list() == []
    assert leftovers(root) == []
    await mounts.mount(image(), "/one", read_write=False)
    assert host.points == [kernel_mount(root), "/one"]


@pytest.mark.parametrize("call", ["mount_overlay", "bind_mount"])
async def test_mount_that_fails_leaves_other_users_alone(
    mounts: Mounts, host: FakeMounts, root: Path, call: str
) -> None:
    await mounts.mount(image(), "/one", read_write=False)
    host.failures[call] = FAILURE
    with pytest.raises(KernelError):
        await mounts.mount(image(), "/two", read_write=call == "mount_overlay")
    assert host.points == [kernel_mount(root), "/one"]
    await mounts.unmount("/one", lazy=False)
    assert host.points == []


async def test_mount_that_fails_and_cannot_be_undone_reports_the_first_failure(
    mounts: Mounts, host: FakeMounts, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host.busy.add(kernel_mount(root))
    host.failures["bind_mount"] = FAILURE
    with pytest.raises(KernelError, match="failed on demand"):
        await mounts.mount(image(), "/one", read_write=False)
    assert "it stays until it is used again, or the daemon ends" in caplog.text
    assert host.points == [kernel_mount(root)]
    await mounts.mount(image(), "/one", read_write=False)
    assert host.calls.count("mount_erofs") == 1
    host.busy.clear()
    await mounts.unmount("/one", lazy=False)
    assert host.points == []
    assert leftovers(root) == []


@pytest.mark.parametrize("call", ["mount_erofs", "bind_mount", "mount_overlay"])
async def test_mount_that_is_cancelled_leaves_nothing(
    mounts: Mounts, host: FakeMounts, root: Path, call: str
) -> None:
    host.gates[call] = asyncio.Event()
    task = asyncio.create_task(mounts.mount(image(), "/one", read_write=call == "mount_overlay"))
    await host.waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert host.points == []
    assert mounts.list() == []
    assert leftovers(root) == []


@pytest.mark.parametrize("call", ["mount_erofs", "bind_mount", "mount_overlay"])
async def test_mount_that_is_cancelled_when_it_has_come_about_leaves_nothing(
    mounts: Mounts, host: FakeMounts, root: Path, call: str
) -> None:
    host.late_gates[call] = asyncio.Event()
    read_write = call == "mount_overlay"
    task = asyncio.create_task(mounts.mount(image(), "/one", read_write=read_write))
    await host.waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert host.points == []
    assert leftovers(root) == []
    host.late_gates.clear()
    await mounts.mount(image(), "/one", read_write=read_write)
    assert host.points == [kernel_mount(root), "/one"]


async def test_cancelled_mount_that_cannot_be_taken_back_is_said(
    mounts: Mounts, host: FakeMounts, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for call, left in (("bind_mount", "/one"), ("mount_erofs", kernel_mount(root, "b"))):
        host.waiting.clear()
        host.late_gates = {call: asyncio.Event()}
        name = "a" if call == "bind_mount" else "b"
        task = asyncio.create_task(mounts.mount(image(name), "/one", read_write=False))
        await host.waiting.wait()
        host.failures["unmount"] = FAILURE
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert f"{left}: mount: failed on demand" in caplog.text


async def test_directory_on_which_somebody_else_mounts_something_is_left_alone(
    mounts: Mounts, host: FakeMounts, root: Path
) -> None:
    host.table = [("/one", "", "theirs")]
    host.late_gates["mount_overlay"] = asyncio.Event()
    host.failures["bind_mount"] = FAILURE
    with pytest.raises(KernelError):
        await mounts.mount(image(), "/one", read_write=False)
    assert host.points == ["/one"]


async def test_image_that_was_mounted_by_hand_is_used_from_there(
    mounts: Mounts, host: FakeMounts, root: Path
) -> None:
    host.table = [("/hand", "erofs in lazyimg", "a" * 64), ("/other", "", "x")]
    await mounts.mount(image(), "/one", read_write=True)
    assert host.points == ["/hand", "/other", kernel_mount(root), "/one"]
    await mounts.unmount("/one", lazy=False)
    assert host.points == ["/hand", "/other"]
    async with mounts.hold(image()) as path:
        assert host.points == ["/hand", "/other", str(path)]
    assert leftovers(root) == []


@pytest.mark.parametrize(
    "table",
    [
        [("/hand", "erofs in other", "a" * 64)],
        [("/hand", "erofs in lazyimg", "a" * 64), ("/hand", "", "on top")],
    ],
)
async def test_image_that_was_mounted_by_hand_out_of_reach(
    mounts: Mounts, host: FakeMounts, root: Path, table: list[tuple[str, str, str]]
) -> None:
    host.table = list(table)
    with pytest.raises(InUseError, match="already mounted"):
        await mounts.mount(image(), "/one", read_write=False)
    assert host.table == table
    assert leftovers(root) == []


async def test_image_that_was_mounted_by_hand_below_another_mount(
    mounts: Mounts, host: FakeMounts, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def bind_something_else(_source: Path, target: Path) -> None:
        host.table.append((str(target), "bind", "x"))

    host.table = [("/hand/here", "erofs in lazyimg", "a" * 64), ("/hand", "", "x")]
    monkeypatch.setattr(host, "bind_mount", bind_something_else)
    with pytest.raises(KernelError, match="is out of reach on /hand/here"):
        await mounts.mount(image(), "/one", read_write=False)
    assert host.points == ["/hand/here", "/hand"]
    assert leftovers(root) == []


@pytest.mark.parametrize("read_write", [False, True])
async def test_unmount_of_a_directory_that_is_covered(
    mounts: Mounts, host: FakeMounts, root: Path, *, read_write: bool
) -> None:
    mounted = await mounts.mount(image(), "/one", read_write=read_write)
    host.table.append(("/one", "", "tmpfs"))
    for lazy in (False, True):
        with pytest.raises(InUseError) as caught:
            await mounts.unmount("/one", lazy=lazy)
        assert str(caught.value) == "/one: a mount of none lies on top of it; unmount that first"
    assert mounts.list() == [mounted]
    assert host.points == [kernel_mount(root), "/one", "/one"]


async def test_unmount_where_only_others_have_mounts_now(
    mounts: Mounts, host: FakeMounts, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await mounts.mount(image(), "/one", read_write=False)
    host.table[1:] = [("/one", "", "tmpfs")]
    await mounts.unmount("/one", lazy=False)
    assert "/one: was unmounted by somebody else" in caplog.text
    assert host.points == ["/one"]
    assert mounts.list() == []
    assert leftovers(root) == []


async def test_mounts_inside_mounts_end_first(mounts: Mounts, host: FakeMounts, root: Path) -> None:
    ended: list[str] = []
    unmount = host.unmount

    async def record(target: Path, *, lazy: bool = False) -> None:
        ended.append(str(target))
        await unmount(target, lazy=lazy)

    await mounts.mount(image("a"), "/one", read_write=False)
    await mounts.mount(image("b"), "/one/srv", read_write=False)
    host.unmount = record  # type: ignore[method-assign]
    await mounts.close()
    assert ended == ["/one/srv", kernel_mount(root, "b"), "/one", kernel_mount(root, "a")]


@pytest.mark.parametrize(("missing", "read_write"), [("mnt", False), ("scratch", True)])
async def test_directories_that_cannot_be_made(
    mounts: Mounts, host: FakeMounts, root: Path, missing: str, *, read_write: bool
) -> None:
    (root / missing).rmdir()
    with pytest.raises(StorageError, match=f"{root}/{missing}/.*: cannot be made: No such file"):
        await mounts.mount(image(), "/one", read_write=read_write)
    assert host.points == []


async def test_mount_point_that_cannot_be_removed_is_said(
    mounts: Mounts, host: FakeMounts, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await mounts.mount(image(), "/one", read_write=False)
    (root / "mnt" / ("a" * 64) / "file").touch()
    await mounts.unmount("/one", lazy=False)
    assert "cannot be removed: Directory not empty" in caplog.text
    assert host.points == []


async def test_unmount_of_nothing(mounts: Mounts, host: FakeMounts) -> None:
    with pytest.raises(NotFoundError) as caught:
        await mounts.unmount("/one", lazy=True)
    assert str(caught.value) == (
        "/one: no image is mounted there; 'lazyimg mount' lists what is mounted"
    )
    with pytest.raises(NotFoundError):
        mounts.find("/one")
    assert host.calls == []


async def test_unmount_of_a_busy_directory(mounts: Mounts, host: FakeMounts, root: Path) -> None:
    mounted = await mounts.mount(image(), "/one", read_write=True)
    host.busy.add("/one")
    with pytest.raises(InUseError, match="/one is in use"):
        await mounts.unmount("/one", lazy=False)
    assert mounts.list() == [mounted]
    assert mounted.scratch is not None
    assert mounted.scratch.exists()
    host.busy.clear()
    await mounts.unmount("/one", lazy=False)
    assert host.points == []


async def test_lazy_unmount_of_a_busy_directory_keeps_what_is_in_use(
    mounts: Mounts, host: FakeMounts, root: Path
) -> None:
    mounted = await mounts.mount(image(), "/one", read_write=True)
    assert mounted.scratch is not None
    host.busy.add("/one")
    await mounts.unmount("/one", lazy=True)
    assert mounts.list() == []
    assert host.points == [kernel_mount(root)]
    assert mounted.scratch.exists()
    host.busy.clear()
    await mounts.mount(image(), "/one", read_write=False)
    assert host.calls.count("mount_erofs") == 1
    await mounts.unmount("/one", lazy=True)
    assert host.points == [kernel_mount(root)]
    await mounts.close()
    assert host.points == []


async def test_lazy_unmount_of_an_idle_directory_is_a_plain_one(
    mounts: Mounts, host: FakeMounts, root: Path
) -> None:
    await mounts.mount(image(), "/one", read_write=True)
    await mounts.unmount("/one", lazy=True)
    assert host.points == []
    assert leftovers(root) == []


async def test_unmount_of_what_somebody_else_unmounted(
    mounts: Mounts, host: FakeMounts, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mounted = await mounts.mount(image(), "/one", read_write=True)
    assert mounted.scratch is not None
    host.table.clear()
    await mounts.unmount("/one", lazy=False)
    assert "/one: was unmounted by somebody else" in caplog.text
    assert f"{kernel_mount(root)}: was unmounted by somebody else" in caplog.text
    assert mounts.list() == []
    assert mounted.scratch.exists()
    await mounts.mount(image(), "/one", read_write=False)
    assert host.points == [kernel_mount(root), "/one"]


async def test_mount_where_somebody_else_unmounted(
    mounts: Mounts, host: FakeMounts, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await mounts.mount(image("a"), "/one", read_write=False)
    host.table.pop()
    await mounts.mount(image("b"), "/one", read_write=False)
    assert "/one: was unmounted by somebody else" in caplog.text
    assert host.points == [kernel_mount(root, "b"), "/one"]
    assert leftovers(root) == ["b" * 64]


async def test_scratch_directory_that_cannot_be_removed_does_not_keep_the_image(
    mounts: Mounts,
    host: FakeMounts,
    root: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    await mounts.mount(image(), "/one", read_write=True)
    monkeypatch.setattr("shutil.rmtree", refuse)
    await mounts.unmount("/one", lazy=False)
    assert "cannot be removed: [Errno 1] Operation not permitted" in caplog.text
    assert host.points == []


async def test_held_image_is_out_of_sight(mounts: Mounts, host: FakeMounts, root: Path) -> None:
    async with mounts.hold(image()) as path:
        assert str(path) == kernel_mount(root)
        assert host.points == [kernel_mount(root)]
        assert mounts.list() == []
        await mounts.mount(image(), "/one", read_write=False)
        await mounts.unmount("/one", lazy=False)
        assert host.points == [kernel_mount(root)]
    assert host.points == []


async def test_held_image_is_let_go_after_a_failure(mounts: Mounts, host: FakeMounts) -> None:
    with pytest.raises(ValueError, match="of the caller"):
        async with mounts.hold(image()):
            raise ValueError("of the caller")
    assert host.points == []


async def test_close_unmounts_everything_and_says_what_it_cannot(
    mounts: Mounts, host: FakeMounts, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await mounts.mount(image("a"), "/one", read_write=False)
    await mounts.mount(image("b"), "/two", read_write=True)
    await mounts.mount(image("c"), "/three", read_write=False)
    host.busy.add("/two")
    host.failures["unmount"] = FAILURE
    await mounts.close()
    assert "failed on demand" in caplog.text
    assert host.points == ["/three"]


async def test_close_goes_on_when_an_image_cannot_be_unmounted(
    mounts: Mounts, host: FakeMounts, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    holds = [mounts.hold(image(name)) for name in "ab"]
    for hold in holds:
        await hold.__aenter__()
    host.failures["unmount"] = FAILURE
    await mounts.close()
    assert "failed on demand" in caplog.text
    assert host.points == [kernel_mount(root, "a")]


def entry(point: str, fs_type: str, *super_options: str) -> MountEntry:
    return MountEntry(1, 0, (0, 1), "/", point, ("ro",), fs_type, "none", super_options)


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
        entry("/rw", "overlay", f"lowerdir=/x,upperdir={root}/scratch/1/upper".split(",")[1]),
        entry("/docker", "overlay", "upperdir=/var/lib/docker/1"),
        entry("/lower-only", "overlay", "lowerdir=/a:/b"),
        entry("/other", "tmpfs", f"upperdir={root}/scratch/1/upper"),
    ]
    host.table = [(one.mount_point, "", one.mount_point) for one in host.listed]
    host.busy.update(host.points)
    (root / "mnt" / ("a" * 64)).mkdir()
    (root / "scratch" / "1" / "upper").mkdir(parents=True)
    await mounts.clean()
    assert host.points == ["/", "/erofs", "/theirs", "/docker", "/lower-only", "/other"]
    assert leftovers(root) == []
    assert [record.getMessage() for record in caplog.records] == [
        f"{point}: left by a daemon that died; unmounted"
        for point in ("/rw", "/one", kernel_mount(root))
    ]


async def test_leftover_that_goes_with_another_one(
    mounts: Mounts, host: FakeMounts, root: Path
) -> None:
    ours = ("fsid=f", "domain_id=lazyimg")
    host.listed = [entry("/peer", "erofs", *ours), entry("/one", "erofs", *ours)]
    host.table = [("/peer", "", "f")]
    await mounts.clean()
    assert host.points == []


async def test_leftover_that_the_kernel_keeps(mounts: Mounts, host: FakeMounts) -> None:
    host.listed = [entry("/one", "erofs", "fsid=f", "domain_id=lazyimg")]
    host.failures["unmount"] = FAILURE
    with pytest.raises(KernelError):
        await mounts.clean()


async def test_leftover_directory_that_is_not_empty(mounts: Mounts, root: Path) -> None:
    path = root / "mnt" / "x"
    path.mkdir()
    (path / "file").touch()
    with pytest.raises(StorageError) as caught:
        await mounts.clean()
    assert str(caught.value) == f"{path}: cannot be removed: Directory not empty; remove it"
