"""Calls, with records and directories on the disk and lazily loaded layers that are faked.

What a snapshotter owes containerd in general is tested by tests/containerd.
"""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import (
    ConfigurationError,
    KernelError,
    NotFoundError,
    StorageError,
    UsageError,
)
from lazyimg.host import mounts, removal
from lazyimg.snapshotter import directories, service
from lazyimg.snapshotter.directories import Directories
from lazyimg.snapshotter.lifecycle import (
    GID_MAP,
    REF,
    UID_MAP,
    AlreadyExistsError,
    Kind,
    QuarantinedError,
    Unpacked,
    WrongStateError,
)
from lazyimg.snapshotter.overlay import Mount
from lazyimg.snapshotter.service import PAGE, THREADS, Snapshotter
from lazyimg_formats.containerd.filters import parse_filter
from tests.fakes.lazy_images import FakeLazyImages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from lazyimg.snapshotter.lifecycle import RemoteLayer


@pytest.fixture
def images() -> FakeLazyImages:
    return FakeLazyImages("one", "two", "three")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
async def snapshotter(root: Path, images: FakeLazyImages) -> AsyncIterator[Snapshotter]:
    opened = Snapshotter(root, images, ["index=off"])
    await opened.start()
    yield opened
    await opened.close()


def options(mount: Mount) -> dict[str, str]:
    return {name: value for name, _, value in (text.partition("=") for text in mount.options)}


async def lazy(snapshotter: Snapshotter, chain: str, parent: str = "") -> str:
    """Have a lazy layer; give the key of its snapshot, found as containerd does."""
    with pytest.raises(AlreadyExistsError, match=f"^snapshot {chain}: it exists already$"):
        await snapshotter.prepare(f"extract {chain}", parent, {REF: chain})
    text = f'labels."{REF}"=={chain},parent=="{parent}"'
    ((found,),) = [page async for page in snapshotter.select([parse_filter(text)])]
    assert (found.kind, found.parent, found.labels[REF]) == (Kind.COMMITTED, parent, chain)
    return found.key


async def test_lazy_layer_is_there_at_once(
    snapshotter: Snapshotter, images: FakeLazyImages, root: Path
) -> None:
    key = await lazy(snapshotter, "one")
    with pytest.raises(NotFoundError):
        await snapshotter.stat("extract one")
    assert await snapshotter.usage(key) == (0, 0)
    assert list((root / "snapshots").iterdir()) == []
    assert images.mounted == {}


async def test_commit_of_a_lazy_layer(snapshotter: Snapshotter) -> None:
    key = await lazy(snapshotter, "one")
    with pytest.raises(WrongStateError, match=r"is committed; only active ones are committed$"):
        await snapshotter.commit("layer", key, "", {})


async def test_chain_that_two_images_have_is_one_snapshot(
    snapshotter: Snapshotter, images: FakeLazyImages
) -> None:
    key = await lazy(snapshotter, "one")
    assert await lazy(snapshotter, "one") == key
    assert snapshotter.lazy == 1
    images.chains.clear()  # a third one may not be loaded lazily, or may not be read
    await snapshotter.prepare("extract", "", {REF: "one"})
    assert images.asked == ["one"] * 3


async def test_container_on_lazy_layers(snapshotter: Snapshotter, images: FakeLazyImages) -> None:
    top = await lazy(snapshotter, "two", await lazy(snapshotter, "one"))
    (mount,) = await snapshotter.prepare("container", top, {})
    assert mount.type == "overlay"
    assert options(mount)["lowerdir"] == "/mnt/two"
    number = (await snapshotter.stat("container")).number
    assert images.mounted[number].depth == 2
    await snapshotter.remove("container")
    await snapshotter.cleanup()
    assert images.mounted == {}


async def test_view_of_lazy_layers(snapshotter: Snapshotter) -> None:
    top = await lazy(snapshotter, "one")
    assert await snapshotter.view("view", top, {}) == [Mount("bind", "/mnt/one", ("ro", "rbind"))]


async def test_container_that_is_compared_with_its_image(snapshotter: Snapshotter) -> None:
    one = await lazy(snapshotter, "one")
    (mount,) = await snapshotter.prepare("container", one, {})
    (view,) = await snapshotter.view(f"1/{one}-parent-view-x", one, {})
    assert view.source == "/mnt/one-comparable"
    (compared,) = await snapshotter.mounts("container")
    assert options(compared) == {**options(mount), "lowerdir": "/mnt/one-comparable"}
    await snapshotter.remove(f"1/{one}-parent-view-x")
    assert await snapshotter.mounts("container") == [mount]


async def test_container_with_a_user_namespace(
    snapshotter: Snapshotter, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[str, str]] = []

    async def bind_mapped(source: Path, target: Path, *ids: object) -> None:
        assert ids == (((0, os.getuid(), 9),), ((0, os.getgid(), 9),))
        shown.append((str(source), str(target)))

    async def unmount(target: Path, *, lazy: bool) -> None:
        assert lazy
        shown.pop([place for _, place in shown].index(str(target)))

    monkeypatch.setattr(mounts, "bind_mapped", bind_mapped)
    monkeypatch.setattr(mounts, "unmount", unmount)
    labels = {UID_MAP: f"0:{os.getuid()}:9", GID_MAP: f"0:{os.getgid()}:9"}
    (mount,) = await snapshotter.prepare("container", await lazy(snapshotter, "one"), labels)
    place = options(mount)["lowerdir"]
    assert shown == [("/mnt/one", place)]
    assert place.startswith(f"{root}/mapped/")
    assert await snapshotter.mounts("container") == [mount]
    upper = Path(options(mount)["upperdir"]).stat()
    assert (upper.st_uid, upper.st_gid) == (os.getuid(), os.getgid())
    await snapshotter.remove("container")
    await snapshotter.cleanup()
    assert shown == []
    with pytest.raises(UsageError, match="is not CONTAINER:HOST:COUNT"):
        await snapshotter.view("view", "", {**labels, UID_MAP: "root"})
    with pytest.raises(NotFoundError):
        await snapshotter.stat("view")


async def test_layer_that_was_unpacked_on_lazy_ones(
    snapshotter: Snapshotter, images: FakeLazyImages, root: Path
) -> None:
    base = await lazy(snapshotter, "one")
    (mount,) = await snapshotter.prepare("extract other", base, {REF: "other"})
    upper = options(mount)["upperdir"]
    await snapshotter.commit("layer", "extract other", "", {})
    await snapshotter.cleanup()
    assert images.mounted == {}
    (mount,) = await snapshotter.prepare("container", "layer", {})
    assert options(mount)["lowerdir"] == f"{upper}:/mnt/one"


async def test_container_and_view_of_its_parent_have_the_same_below(
    snapshotter: Snapshotter,
) -> None:
    """They differ by the upper directory only."""
    await snapshotter.prepare("extract", await lazy(snapshotter, "one"), {})
    await snapshotter.commit("layer", "extract", "", {})
    (container,) = await snapshotter.prepare("container", "layer", {})
    (view,) = await snapshotter.view("view", "layer", {})
    assert options(view)["lowerdir"] == options(container)["lowerdir"]
    assert "upperdir" not in options(view)


async def test_no_lazy_layer_on_one_that_was_unpacked(
    snapshotter: Snapshotter, images: FakeLazyImages
) -> None:
    await snapshotter.prepare("extract", "", {})
    await snapshotter.commit("layer", "extract", "", {})
    (mount,) = await snapshotter.prepare("extract two", "layer", {REF: "two"})
    assert mount.type == "overlay"
    assert images.asked == []


async def test_what_is_lazy_and_what_is_not_is_counted(
    snapshotter: Snapshotter, images: FakeLazyImages
) -> None:
    base = await lazy(snapshotter, "two", await lazy(snapshotter, "one"))
    labels = {"containerd.io/snapshot/cri.image-ref": "image"}
    for chain in ("other", "upper"):
        await snapshotter.prepare(f"extract {chain}", base, {**labels, REF: chain})
        with pytest.raises(AlreadyExistsError):
            await snapshotter.prepare(f"extract {chain}", base, {**labels, REF: chain})
        await snapshotter.commit(chain, f"extract {chain}", "", {})
        base = chain
    await snapshotter.prepare("container", base, {})
    assert (snapshotter.lazy, snapshotter.unpacked) == (2, {"format": 1, "below": 1})
    held = {one.name: one for one in await snapshotter.images()}
    assert (held["image"].unpacked, held["image"].containers) == (2, 1)
    assert held["image"].why == Unpacked("image", "", "format", "cannot be loaded lazily")


async def test_lazy_layer_on_a_parent_that_is_missing(snapshotter: Snapshotter) -> None:
    with pytest.raises(NotFoundError):
        await snapshotter.prepare("extract two", "gone", {REF: "two"})


async def test_lazy_layer_on_one_that_is_not_committed(snapshotter: Snapshotter) -> None:
    await snapshotter.prepare("active", "", {})
    with pytest.raises(UsageError):
        await snapshotter.prepare("extract two", "active", {REF: "two"})


async def test_container_that_cannot_be_mounted_leaves_nothing(
    snapshotter: Snapshotter, images: FakeLazyImages, root: Path
) -> None:
    top = await lazy(snapshotter, "one")
    images.broken = True
    with pytest.raises(KernelError, match=r"^/dev/cachefiles: is gone$"):
        await snapshotter.prepare("container", top, {})
    with pytest.raises(NotFoundError):
        await snapshotter.stat("container")
    assert list((root / "snapshots").iterdir()) == []


async def test_cleanup_that_takes_long_holds_up_nobody(
    snapshotter: Snapshotter, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    begun, go = asyncio.Event(), threading.Event()
    loop, remove = asyncio.get_running_loop(), removal.remove_tree

    def remove_slowly(path: Path) -> None:
        loop.call_soon_threadsafe(begun.set)
        go.wait()
        remove(path)

    await snapshotter.prepare("key", "", {})
    monkeypatch.setattr(directories, "remove_tree", remove_slowly)
    await snapshotter.remove("key")
    cleanups = [asyncio.create_task(snapshotter.cleanup()) for _ in range(THREADS)]
    await begun.wait()
    try:
        async with asyncio.timeout(10):
            for _ in range(50):  # behind all that they do
                with pytest.raises(NotFoundError):
                    await snapshotter.stat("key")
        assert not any(task.done() for task in cleanups)
    finally:
        go.set()
    await asyncio.gather(*cleanups)
    assert list((root / "removed").iterdir()) == []


class SlowMount:
    """Mounts of a `FakeLazyImages` that wait.

    Attributes:
        begun: set when one has begun.
        go: they wait for it.
    """

    def __init__(self, images: FakeLazyImages, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self._mount = images.mount
        monkeypatch.setattr(images, "mount", self.mount)

    async def mount(self, layer: RemoteLayer, user: int, *, comparable: bool) -> Path:
        self.begun.set()
        await self.go.wait()
        return await self._mount(layer, user, comparable=comparable)


@pytest.mark.parametrize("end", ["remove", "commit"])
async def test_snapshot_that_goes_while_it_is_mounted(
    snapshotter: Snapshotter, images: FakeLazyImages, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    await snapshotter.prepare("container", await lazy(snapshotter, "one"), {})
    slow = SlowMount(images, monkeypatch)
    mounting = asyncio.create_task(snapshotter.mounts("container"))
    await slow.begun.wait()
    if end == "remove":
        await snapshotter.remove("container")
    else:
        await snapshotter.commit("layer", "container", "", {})
    slow.go.set()
    with pytest.raises(NotFoundError, match=r"^snapshot container: it does not exist$"):
        await mounting
    await snapshotter.cleanup()
    assert images.mounted == {}


class SlowRelease:
    """Releases of a `FakeLazyImages` that wait, as an unmount of a busy kernel does.

    Attributes:
        begun: set when one has begun.
        go: they wait for it.
        error: raised instead.
    """

    def __init__(self, images: FakeLazyImages, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.error: Exception | None = None
        self._release = images.release
        monkeypatch.setattr(images, "release", self.release)

    async def release(self, user: int) -> None:
        self.begun.set()
        await self.go.wait()
        if self.error is not None:
            raise self.error
        await self._release(user)


@pytest.mark.parametrize("end", ["remove", "commit"])
async def test_unmount_that_takes_long_holds_up_nobody(
    snapshotter: Snapshotter, images: FakeLazyImages, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    one, two = await lazy(snapshotter, "one"), await lazy(snapshotter, "two")
    await snapshotter.prepare("container", one, {})
    slow = SlowRelease(images, monkeypatch)
    async with asyncio.timeout(10):
        if end == "remove":
            await snapshotter.remove("container")
        else:
            await snapshotter.commit("layer", "container", "", {})
        await slow.begun.wait()
        told = await snapshotter.prepare("other", two, {})
        assert await snapshotter.mounts("other") == told
        assert (await snapshotter.stat("other")).kind is Kind.ACTIVE
        await snapshotter.remove("other")
    assert len(images.mounted) == 2
    cleanup = asyncio.create_task(snapshotter.cleanup())
    slow.go.set()
    await cleanup
    assert images.mounted == {}


async def test_cleanup_waits_for_an_unmount_for_a_while(
    snapshotter: Snapshotter, images: FakeLazyImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    await snapshotter.prepare("container", await lazy(snapshotter, "one"), {})
    monkeypatch.setattr(service, "RELEASE_WAIT", 0.01)
    SlowRelease(images, monkeypatch)
    await snapshotter.remove("container")
    await snapshotter.cleanup()
    assert len(images.mounted) == 1
    await snapshotter.finish()  # the end of the kernel's mounts follows


async def test_unmount_that_fails_is_said(
    snapshotter: Snapshotter, images: FakeLazyImages, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    await snapshotter.prepare("container", await lazy(snapshotter, "one"), {})
    slow = SlowRelease(images, monkeypatch)
    slow.error = ZeroDivisionError()
    slow.go.set()
    await snapshotter.remove("container")
    await snapshotter.cleanup()
    assert "what was mounted for a snapshot is not taken back" in caplog.text


async def test_directory_that_cannot_be_removed_is_removed_later(
    snapshotter: Snapshotter, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await snapshotter.prepare("key", "", {})
    (root / "removed").rename(root / "elsewhere")
    (root / "removed").write_text("")
    await snapshotter.remove("key")
    assert "snapshot 1 is removed, its files are not: " in caplog.text
    with pytest.raises(NotFoundError):
        await snapshotter.stat("key")
    (root / "removed").unlink()
    (root / "elsewhere").rename(root / "removed")
    await snapshotter.cleanup()
    assert list((root / "snapshots").iterdir()) == []


@pytest.mark.parametrize("name", ["a:b", "a,b", "a\\b"])
def test_root_that_no_overlay_can_have(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(name)
    for root in (tmp_path / name, tmp_path / "link"):
        with pytest.raises(ConfigurationError, match=r"choose another --root$"):
            Snapshotter(root, FakeLazyImages())
    assert list((tmp_path / name).iterdir()) == []


@pytest.mark.parametrize("call", ["usage", "commit"])
async def test_snapshot_that_goes_while_it_is_measured(
    snapshotter: Snapshotter, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A kubelet asks for the usage of all containers, also of those that end."""
    measure, loop = Directories.usage, asyncio.get_running_loop()

    def measure_late(directories: Directories, number: int) -> tuple[int, int]:
        asyncio.run_coroutine_threadsafe(snapshotter.remove("key"), loop).result()
        return measure(directories, number)

    await snapshotter.prepare("key", "", {})
    monkeypatch.setattr(Directories, "usage", measure_late)
    with pytest.raises(NotFoundError, match=r"^snapshot key: it does not exist$"):
        await (
            snapshotter.usage("key")
            if call == "usage"
            else snapshotter.commit("layer", "key", "", {})
        )


async def test_disk_that_fails_while_it_measures(snapshotter: Snapshotter, root: Path) -> None:
    await snapshotter.prepare("key", "", {})
    (root / "snapshots/1").rename(root / "away")
    with pytest.raises(StorageError, match="No such file or directory"):
        await snapshotter.usage("key")


async def test_restart_mounts_again(root: Path) -> None:
    first = Snapshotter(root, FakeLazyImages("one"))
    await first.prepare("eager", "", {})
    top = await lazy(first, "one")
    told = await first.prepare("container", top, {})
    await first.close()
    images = FakeLazyImages()
    second = Snapshotter(root, images)
    await second.start()
    number = (await second.stat("container")).number
    assert list(images.mounted) == [number]
    assert await second.mounts("container") == told
    await second.close()


async def test_restart_mounts_side_by_side(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Snapshotter(root, FakeLazyImages("one", "two"))
    for chain in ("one", "two"):
        await first.prepare(f"container {chain}", await lazy(first, chain), {})
    await first.close()
    images = FakeLazyImages()
    mount, all_begun = images.mount_again, asyncio.Barrier(2)

    async def mount_together(layer: RemoteLayer, users: Sequence[int]) -> None:
        async with asyncio.timeout(10):
            await all_begun.wait()
        await mount(layer, users)

    monkeypatch.setattr(images, "mount_again", mount_together)
    second = Snapshotter(root, images)
    await second.start()
    assert sorted(layer.chain for layer in images.mounted.values()) == ["one", "two"]
    await second.close()


async def test_restart_removes_what_no_record_knows(root: Path) -> None:
    (root / "snapshots/77/fs").mkdir(parents=True)
    snapshotter = Snapshotter(root, FakeLazyImages())
    await snapshotter.start()
    await snapshotter.close()
    assert list((root / "snapshots").iterdir()) == []


async def test_one_broken_mount_does_not_hinder_the_start(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Snapshotter(root, FakeLazyImages("one"))
    await first.prepare("container", await lazy(first, "one"), {})
    await first.close()
    images = FakeLazyImages()
    images.broken = True
    second = Snapshotter(root, images)
    await second.start()
    assert "snapshots 2: /dev/cachefiles: is gone" in caplog.text
    with pytest.raises(KernelError):
        await second.mounts("container")
    images.broken = False
    await second.mounts("container")
    await second.close()


async def test_cleanup_waits_until_all_is_gone(snapshotter: Snapshotter, root: Path) -> None:
    await snapshotter.prepare("key", "", {})
    await snapshotter.remove("key")
    await snapshotter.cleanup()
    assert list((root / "snapshots").iterdir()) == []
    assert list((root / "removed").iterdir()) == []


async def test_pages_of_a_list(snapshotter: Snapshotter) -> None:
    for number in range(PAGE + 5):
        await snapshotter.view(f"view {number:04}", "", {})
    pages = [page async for page in snapshotter.select([])]
    assert [len(page) for page in pages] == [PAGE, 5]
    assert [page async for page in snapshotter.select([parse_filter("name==other")])] == []
    only = parse_filter('name=="view 0203"')
    assert [[one.key for one in page] async for page in snapshotter.select([only])] == [
        ["view 0203"]
    ]


async def test_list_that_nobody_takes_holds_up_nobody(snapshotter: Snapshotter) -> None:
    for number in range(PAGE + 2):
        await snapshotter.view(f"view {number:04}", "", {})
    listed = snapshotter.select([])
    first = await anext(listed)
    await snapshotter.remove(f"view {PAGE:04}")
    await snapshotter.view(f"view {PAGE + 2:04}", "", {})
    rest = [one.key async for page in listed for one in page]
    assert len(first) == PAGE
    assert rest == [f"view {PAGE + 1:04}", f"view {PAGE + 2:04}"]


async def test_empty_labels_are_none(snapshotter: Snapshotter) -> None:
    await snapshotter.prepare("key", "", {"kept": "1", "empty": ""})
    assert (await snapshotter.stat("key")).labels == {"kept": "1"}


async def test_key_is_needed(snapshotter: Snapshotter) -> None:
    with pytest.raises(UsageError):
        await snapshotter.prepare("", "", {})
    await snapshotter.prepare("key", "", {})
    with pytest.raises(UsageError):
        await snapshotter.commit("", "key", "", {})


async def quarantine(snapshotter: Snapshotter, depth: int = 1) -> list[str]:
    (pending,) = snapshotter.records.pending()
    return snapshotter.records.quarantine(pending, depth, "layer 1: is another")


async def test_layers_are_to_be_completed_from_their_first_container_on(
    root: Path, images: FakeLazyImages
) -> None:
    changes: list[int] = []
    snapshotter = Snapshotter(root, images)
    snapshotter.changed = lambda: changes.append(1)
    base = await lazy(snapshotter, "one")
    top = await lazy(snapshotter, "two", base)
    assert (snapshotter.records.pending(), changes) == ([], [])
    await snapshotter.prepare("first", top, {})
    await snapshotter.view("view", top, {})
    (pending,) = snapshotter.records.pending()
    assert (pending.reference, pending.depth, len(changes)) == ("image", 2, 2)
    for key in ("first", "view", top):
        await snapshotter.remove(key)
    assert snapshotter.records.pending() == []
    assert len(changes) == 3
    await snapshotter.close()


async def test_nothing_new_stands_on_what_is_quarantined(
    snapshotter: Snapshotter, images: FakeLazyImages
) -> None:
    base = await lazy(snapshotter, "one")
    top = await lazy(snapshotter, "two", base)
    await snapshotter.prepare("container", top, {})
    await snapshotter.prepare("extract", top, {})
    await snapshotter.commit("upper", "extract", "", {})
    assert await quarantine(snapshotter, 2) == ["two"]
    for parent in (top, "upper"):
        with pytest.raises(QuarantinedError) as caught:
            await snapshotter.prepare("other", parent, {})
        assert str(caught.value) == (
            f"snapshot other: cannot stand on {top}: image is not what it says:"
            " layer 1: is another; remove the snapshots of these layers, and pull again"
        )
        with pytest.raises(QuarantinedError):
            await snapshotter.view("other", parent, {})
    asked = list(images.asked)
    with pytest.raises(QuarantinedError):
        await snapshotter.prepare("other", top, {REF: "three"})
    assert images.asked == asked
    await snapshotter.prepare("below", base, {})
    await snapshotter.mounts("container")  # what runs goes on
    assert [one.layer.chain for one in await snapshotter.quarantined()] == ["two"]


async def test_chain_is_there_anew_beside_what_is_quarantined(snapshotter: Snapshotter) -> None:
    lying = await lazy(snapshotter, "one")
    await snapshotter.prepare("container", lying, {})
    await quarantine(snapshotter)
    assert REF not in (await snapshotter.stat(lying)).labels
    with pytest.raises(AlreadyExistsError):
        await snapshotter.prepare("extract again", "", {REF: "one"})
    text = f'labels."{REF}"=="one",parent==""'
    ((found,),) = [page async for page in snapshotter.select([parse_filter(text)])]
    assert found.key == "one extract again"
    await snapshotter.prepare("other", found.key, {})
    for key in ("container", lying):
        await snapshotter.remove(key)
    assert snapshotter.records.quarantined() == []
