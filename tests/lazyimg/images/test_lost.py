"""Mounts that could not be made again, and what users do meanwhile."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import InUseError, KernelError, LazyimgError, NotFoundError
from lazyimg.images.lost import LostMounts
from lazyimg.images.mounted import Mounted, record_of
from tests.fakes.image_mounts import FAILURE, image, kernel_mount, leftovers, recorded

if TYPE_CHECKING:
    from pathlib import Path

    from lazyimg.images.library import Library
    from lazyimg.images.mounts import Mounts
    from tests.fakes.host_mounts import FakeMounts


@pytest.fixture
async def lost(mounts: Mounts, host: FakeMounts, library: Library, root: Path) -> Mounted:
    """Lose the image "a" on /one, read-write."""
    mounted = Mounted(image(), "/one", root / "scratch" / "s")
    (root / "scratch" / "s" / "upper").mkdir(parents=True)
    library.add_mount(record_of(mounted))
    library.set_mount("/one", "lost")  # type: ignore[arg-type]
    host.failures["mount_erofs"] = FAILURE
    await mounts.recover(served=False)
    return mounted


async def test_mount_of_the_same_makes_it(
    mounts: Mounts, host: FakeMounts, root: Path, lost: Mounted
) -> None:
    assert await mounts.mount(image(), "/one", read_write=True) == lost
    assert host.points == [kernel_mount(root), "/one"]
    assert mounts.lost() == []
    await mounts.close()
    assert leftovers(root) == []


@pytest.mark.parametrize(("name", "read_write"), [("a", False), ("b", True)])
async def test_mount_of_another_one_there(
    mounts: Mounts, lost: Mounted, name: str, *, read_write: bool
) -> None:
    with pytest.raises(InUseError, match=r"reg\.test/a:1 is mounted there"):
        await mounts.mount(image(name), "/one", read_write=read_write)
    assert mounts.list() == [lost]
    await mounts.close()


async def test_mount_that_still_fails(
    mounts: Mounts, host: FakeMounts, library: Library, lost: Mounted
) -> None:
    host.failures["mount_erofs"] = KernelError("mount", "failed again")
    with pytest.raises(KernelError, match="failed again"):
        await mounts.mount(image(), "/one", read_write=True)
    assert [(one.mounted, one.problem) for one in mounts.lost()] == [(lost, "mount: failed again")]
    assert recorded(library) == [("/one", "lost")]
    await mounts.close()


async def test_unmount_gives_it_up(
    mounts: Mounts, host: FakeMounts, library: Library, root: Path, lost: Mounted
) -> None:
    assert await mounts.unmount("/one", lazy=False) == lost
    assert mounts.lost() == []
    assert recorded(library) == []
    assert leftovers(root) == []
    with pytest.raises(NotFoundError):
        mounts.find("/one")
    await mounts.mount(image("b"), "/one", read_write=False)
    await mounts.close()


async def test_close_gives_it_up(
    mounts: Mounts, library: Library, root: Path, lost: Mounted
) -> None:
    await mounts.close()
    assert mounts.lost() == []
    assert recorded(library) == []
    assert leftovers(root) == []


async def test_tries_get_rarer_and_are_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", pause)
    failures: list[Exception] = [KernelError("mount", "refused"), ValueError("a bug")]
    failures += [KernelError("mount", "refused")] * 8
    done = asyncio.Event()

    async def put(_: Mounted) -> None:
        if failures:
            raise failures.pop(0)
        done.set()

    lost = LostMounts(put, defaultdict(asyncio.Lock))
    lost.add(Mounted(image(), "/one", None), LazyimgError("mount", "first"))
    await done.wait()
    await lost.close()
    assert lost.list() == []
    assert pauses[:11] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0, 60.0]
    assert caplog.messages == [
        "/one: reg.test/a:1 is not mounted again: mount: refused",
        "/one: cannot be mounted again",
        "/one: reg.test/a:1 is mounted again",
    ]
