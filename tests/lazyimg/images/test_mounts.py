"""The mounts of images, over a table of mounts that holds the kernel's rules."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import InUseError, KernelError, LazyimgError, NotFoundError, StorageError
from lazyimg.images import mounts as images_mounts
from tests.fakes.host_mounts import LateCall
from tests.fakes.image_mounts import (
    FAILURE,
    ROOT,
    Cache,
    image,
    kernel_mount,
    leftovers,
    recorded,
)

if TYPE_CHECKING:
    from pathlib import Path

    from lazyimg.images.library import Library
    from lazyimg.images.mounts import Mounts
    from tests.fakes.host_mounts import FakeMounts


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
    mounted = await mounts.mount(image(), "/one", read_write=True)
    assert mounted.scratch is not None
    assert mounted.scratch.parent == root / "scratch"
    upper, work = host.overlays["/one"]
    assert upper.parent == work.parent == mounted.scratch
    status = upper.stat()
    assert status.st_mode == ROOT.mode
    assert (status.st_uid, status.st_gid) == (ROOT.uid, ROOT.gid)
    assert status.st_mtime_ns == 1_234_567_890_000_000_007
    (upper / "written").write_text("x")
    other = await mounts.mount(image(), "/two", read_write=True)
    assert other.scratch != mounted.scratch
    await mounts.unmount("/one", lazy=False)
    assert not mounted.scratch.exists()
    await mounts.unmount("/two", lazy=False)
    assert host.points == []
    assert leftovers(root) == []


@pytest.mark.parametrize(
    ("bootstrap", "error"),
    [
        (None, r"scratch/[0-9a-f]{32}/upper: cannot be made: No such file or directory$"),
        (b"x" * 4096, r"bootstraps/a{64}: .*; remove it, and mount again$"),
    ],
    ids=["missing", "damaged"],
)
async def test_read_write_mount_without_a_root_to_show(
    mounts: Mounts, host: FakeMounts, root: Path, bootstrap: bytes | None, error: str
) -> None:
    path = root / "bootstraps" / ("a" * 64)
    path.unlink()
    if bootstrap is not None:
        path.write_bytes(bootstrap)
    with pytest.raises(LazyimgError, match=error):
        await mounts.mount(image(), "/one", read_write=True)
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


@pytest.mark.parametrize("again", [False, True])
async def test_cancelled_mount_that_comes_about_later_is_taken_back(
    mounts: Mounts, host: FakeMounts, root: Path, *, again: bool
) -> None:
    """What is mounted on the directory meanwhile stays."""
    host.gates["mount_overlay"] = asyncio.Event()
    task = asyncio.create_task(mounts.mount(image(), "/one", read_write=True))
    await host.waiting.wait()
    (scratch,) = (root / "scratch").iterdir()
    late = LateCall()
    host.late = [late]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert host.points == []
    host.late, host.gates = [], {}
    if again:
        await mounts.mount(image(), "/one", read_write=True)
    before = list(host.table)
    if not again:
        host.table.append(("/one", "overlay", "a" * 64))
        host.overlays["/one"] = (scratch / "upper", scratch / "work")
    late.ended.set()
    await asyncio.gather(*mounts._late)
    assert host.table == before


async def test_end_waits_for_no_mount_that_may_come_about(mounts: Mounts, host: FakeMounts) -> None:
    host.late = [LateCall()]
    host.failures["bind_mount"] = FAILURE
    with pytest.raises(KernelError):
        await mounts.mount(image(), "/one", read_write=False)
    await mounts.close()
    assert host.points == []


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
    async with mounts.held(image()) as path:
        assert host.points == ["/hand", "/other", str(path)]
    assert leftovers(root) == []


async def test_image_that_was_mounted_by_hand_out_of_reach(
    mounts: Mounts, host: FakeMounts, root: Path
) -> None:
    table = [("/hand", "erofs in lazyimg", "a" * 64), ("/hand", "", "on top")]
    host.table = list(table)
    async with mounts.held(image()) as path:
        assert host.table == [*table, (str(path), "erofs in lazyimg-2", "a" * 64)]
    assert host.table == table
    assert leftovers(root) == []


async def test_image_that_is_in_use_out_of_sight(
    mounts: Mounts, host: FakeMounts, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host.detached = [("lazyimg", "a" * 64), ("lazyimg-2", "b" * 64)]
    await mounts.mount(image(), "/one", read_write=False)
    assert host.table[0] == (kernel_mount(root), "erofs in lazyimg-3", "a" * 64)
    assert f"{'a' * 64}: a mount of it is in use out of sight; mounted in domain" in caplog.text
    await mounts.unmount("/one", lazy=False)
    assert host.points == []
    host.detached = []
    async with mounts.held(image()) as path:
        assert host.table == [(str(path), "erofs in lazyimg", "a" * 64)]


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


@pytest.mark.parametrize("left", [[], [("/one", "", "tmpfs")]])
async def test_what_somebody_else_unmounted_is_not_listed(
    mounts: Mounts,
    host: FakeMounts,
    root: Path,
    library: Library,
    left: list[tuple[str, str, str]],
) -> None:
    await mounts.mount(image("a"), "/one", read_write=False)
    other = await mounts.mount(image("b"), "/two", read_write=False)
    host.table = [mount for mount in host.table if mount[0] != "/one"] + left
    await mounts.reconcile()
    assert mounts.list() == [other]
    assert recorded(library) == [("/two", "mounted")]
    assert host.points == [kernel_mount(root, "b"), "/two", *[point for point, _, _ in left]]


async def test_mount_that_is_being_unmounted_is_left_alone(
    mounts: Mounts, host: FakeMounts, library: Library
) -> None:
    mounted = await mounts.mount(image(), "/one", read_write=False)
    gate = host.gates["unmount"] = asyncio.Event()
    going = asyncio.create_task(mounts.unmount("/one", lazy=False))
    await host.waiting.wait()
    await mounts.reconcile()
    assert mounts.list() == [mounted]
    gate.set()
    await going
    assert mounts.list() == []


async def test_kernel_mount_that_somebody_else_unmounted(
    mounts: Mounts, host: FakeMounts, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await mounts.mount(image(), "/one", read_write=False)
    host.table.clear()
    await mounts.mount(image(), "/two", read_write=False)
    assert host.points == [kernel_mount(root), "/two"]
    assert f"{kernel_mount(root)}: was unmounted by somebody else" in caplog.text


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
    monkeypatch.setattr("lazyimg.images.scratch.remove_tree", refuse)
    await mounts.unmount("/one", lazy=False)
    assert "cannot be removed: [Errno 1] Operation not permitted" in caplog.text
    assert host.points == []


async def test_unmount_that_is_cancelled_when_it_has_come_about_stays_one(
    mounts: Mounts, library: Library, host: FakeMounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def remove_slowly(_: Path) -> None:
        loop.call_soon_threadsafe(begun.set)
        go.wait()

    monkeypatch.setattr(images_mounts, "remove_scratch", remove_slowly)
    await mounts.mount(image(), "/one", read_write=True)
    going = asyncio.create_task(mounts.unmount("/one", lazy=False))
    await begun.wait()
    going.cancel()
    await asyncio.wait([going])
    go.set()
    assert "/one" not in host.points
    assert mounts.list() == []
    assert recorded(library) == [("/one", "unmounting")]


async def test_held_image_is_out_of_sight(mounts: Mounts, host: FakeMounts, root: Path) -> None:
    async with mounts.held(image()) as path:
        assert str(path) == kernel_mount(root)
        assert host.points == [kernel_mount(root)]
        assert mounts.list() == []
        await mounts.mount(image(), "/one", read_write=False)
        await mounts.unmount("/one", lazy=False)
        assert host.points == [kernel_mount(root)]
    assert host.points == []


async def test_release_that_is_cancelled_is_finished(
    mounts: Mounts, host: FakeMounts, root: Path
) -> None:
    await mounts.hold(image())
    gate = host.gates["unmount"] = asyncio.Event()
    releasing = asyncio.create_task(mounts.release(image()))
    await host.waiting.wait()
    releasing.cancel()
    await asyncio.wait([releasing])
    assert releasing.cancelled()
    gate.set()
    await mounts.hold(image("a"))  # waits for its turn
    await mounts.release(image("a"))
    assert host.calls.count("mount_erofs") == 2
    assert host.table == []
    assert leftovers(root) == []


async def test_held_image_is_let_go_after_a_failure(mounts: Mounts, host: FakeMounts) -> None:
    with pytest.raises(ValueError, match="of the caller"):
        async with mounts.held(image()):
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
    holds = [mounts.held(image(name)) for name in "ab"]
    for hold in holds:
        await hold.__aenter__()
    host.failures["unmount"] = FAILURE
    await mounts.close()
    assert "failed on demand" in caplog.text
    assert host.points == [kernel_mount(root, "a")]


# New cache files.


async def test_image_with_new_files_is_mounted_twice(
    mounts: Mounts, host: FakeMounts, cache: Cache, root: Path
) -> None:
    cache.new = {"a" * 64, "device-a"}
    await mounts.mount(image(), "/one", read_write=False)
    assert host.calls == ["mount_erofs", "unmount", "mount_erofs", "bind_mount"]
    assert cache.waited == ["device-a"]
    assert host.points == [kernel_mount(root), "/one"]


@pytest.mark.parametrize(("new", "waited"), [({"a" * 64}, []), ({"device-a"}, ["device-a"])])
async def test_one_new_file_is_enough(
    mounts: Mounts, host: FakeMounts, cache: Cache, new: set[str], waited: list[str]
) -> None:
    cache.new = new
    async with mounts.held(image()):
        assert host.calls == ["mount_erofs", "unmount", "mount_erofs"]
        assert cache.waited == waited


async def test_image_whose_files_are_there_is_mounted_once(
    mounts: Mounts, host: FakeMounts, cache: Cache
) -> None:
    cache.new = {"b" * 64}
    await mounts.mount(image(), "/one", read_write=False)
    assert host.calls == ["mount_erofs", "bind_mount"]


async def test_image_with_new_files_that_was_mounted_by_hand(
    mounts: Mounts, host: FakeMounts, cache: Cache, root: Path
) -> None:
    host.table = [("/hand", "erofs in lazyimg", "a" * 64)]
    cache.new = {"a" * 64}
    async with mounts.held(image()):
        assert host.points == ["/hand", kernel_mount(root)]
        assert "unmount" not in host.calls


@pytest.mark.parametrize("busy", [False, True])
async def test_new_files_that_cannot_be_named_are_said(
    mounts: Mounts,
    host: FakeMounts,
    cache: Cache,
    root: Path,
    caplog: pytest.LogCaptureFixture,
    *,
    busy: bool,
) -> None:
    cache.new = {"device-a"}
    if busy:
        host.busy.add(kernel_mount(root))
    else:
        cache.failure = KernelError("device-a", "was not opened")
    await mounts.mount(image(), "/one", read_write=False)
    assert f"{'a' * 64}: a power cut would lose its new cache files: " in caplog.text
    assert host.calls.count("mount_erofs") == 1
    assert host.points == [kernel_mount(root), "/one"]


async def test_cache_that_cannot_be_read(
    mounts: Mounts, host: FakeMounts, cache: Cache, root: Path
) -> None:
    cache.failure = OSError(5, "Input/output error", "/cache")
    with pytest.raises(StorageError, match=r"^/cache: cannot be read: Input/output error"):
        await mounts.mount(image(), "/one", read_write=False)
    assert host.points == []
    assert leftovers(root) == []


# Records.


async def test_each_step_is_recorded_first(
    mounts: Mounts, host: FakeMounts, library: Library
) -> None:
    seen: list[tuple[str, list[tuple[str, str]]]] = []
    enter = host._enter

    async def look(call: str) -> None:
        seen.append((call, recorded(library)))
        await enter(call)

    host._enter = look  # type: ignore[method-assign]
    await mounts.mount(image(), "/one", read_write=False)
    assert recorded(library) == [("/one", "mounted")]
    host.busy.add("/one")
    with pytest.raises(InUseError):
        await mounts.unmount("/one", lazy=False)
    assert recorded(library) == [("/one", "mounted")]
    await mounts.unmount("/one", lazy=True)
    assert recorded(library) == []
    states = [(call, records[0][1]) for call, records in seen if call != "mount_table"]
    assert states == [
        ("mount_erofs", "mounting"),
        ("bind_mount", "mounting"),
        ("unmount", "unmounting"),
        ("unmount", "unmounting"),
        ("unmount", "detaching"),
    ]


async def test_mount_that_fails_is_not_recorded(
    mounts: Mounts, host: FakeMounts, library: Library
) -> None:
    for call in ("mount_erofs", "bind_mount"):
        host.failures[call] = FAILURE
        with pytest.raises(KernelError):
            await mounts.mount(image(), "/one", read_write=False)
        assert recorded(library) == []


async def test_close_leaves_no_records(mounts: Mounts, library: Library) -> None:
    await mounts.mount(image("a"), "/one", read_write=False)
    await mounts.mount(image("b"), "/two", read_write=True)
    await mounts.close()
    assert recorded(library) == []


@pytest.mark.parametrize("lazy", [False, True])
async def test_unmounting_needs_no_room_for_records(
    lazy: bool,  # noqa: FBT001 - a parameter
    mounts: Mounts,
    host: FakeMounts,
    root: Path,
    library: Library,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: object) -> None:
        raise StorageError("library", "records: database or disk is full")

    await mounts.mount(image(), "/one", read_write=True)
    monkeypatch.setattr(library, "set_mount", refuse)
    monkeypatch.setattr(library, "remove_mount", refuse)
    await mounts.unmount("/one", lazy=lazy)
    assert mounts.list() == []
    assert host.table == []
    assert leftovers(root) == []
    said = "/one: its unmounting is not recorded: library: records: database or disk is full"
    assert [record.getMessage() for record in caplog.records] == [said] * 2
