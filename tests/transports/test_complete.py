"""Images that are complete: nobody is asked, and nobody is needed; and what they take in memory."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

import pytest

from tests.contracts.transports import (
    LONG,
    Setting,
    different_files,
    drop_caches,
    eventually,
    piece_command,
)
from tests.real.lazyimg_process import Lazyimg, kill_all
from tests.real.page_cache import cached_bytes_below
from tests.real.shared_images import LARGE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real.safety import SafetyNet

MOST: Final = 1.2
"""Bytes in the page cache for each byte that was read."""


def assert_needs_nobody(net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path) -> None:
    """Kill the daemon's processes after reads that it has nothing to do with; read again."""
    with lazyimg.serving(ends=-signal.SIGKILL) as daemon:
        if not lazyimg.status()["mounts"]:
            lazyimg.mount(setting.reference("one"), target)
        before = lazyimg.status()["reads"]
        files = setting.images.files("one")
        drop_caches()
        assert net.call(different_files, target, files, timeout=LONG) == []
        assert lazyimg.status()["reads"] == before
        kill_all(daemon)
    drop_caches()
    assert net.call(different_files, target, files, timeout=LONG) == []


def reads_while_reading(net: SafetyNet, lazyimg: Lazyimg, target: Path) -> int:
    """Give what the daemon is asked for while a block of each device is read."""
    before: int = lazyimg.status()["reads"]
    drop_caches()
    for name in (LARGE, "one/small6"):
        net.run(piece_command(target / name))
    after: int = lazyimg.status()["reads"]
    return after - before


def take_away(target: Path, lazyimg: Lazyimg) -> None:
    """Start the daemon again, which unmounts when it ends."""
    with lazyimg.serving():
        lazyimg.unmount(target)


def test_plain_files(net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path) -> None:
    with lazyimg.serving():
        lazyimg.verb("prefetch", "-q", setting.reference("one"))
    assert_needs_nobody(net, setting, lazyimg, target)
    take_away(target, lazyimg)


@pytest.mark.parametrize("transport", ["fuse"])
def test_fuse_with_passthrough(
    net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
) -> None:
    """Where the cache's own files are not to be mounted: they lie below FUSE's."""
    lazyimg.settings["LAZYIMG_FUSE_COMPLETE"] = "passthrough"
    with lazyimg.serving():
        lazyimg.verb("prefetch", "-q", setting.reference("one"))
    assert_needs_nobody(net, setting, lazyimg, target)
    take_away(target, lazyimg)


@pytest.mark.parametrize("transport", ["fanotify"])
def test_fanotify_whose_marks_are_removed(
    net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
) -> None:
    files = setting.images.files("one")
    with lazyimg.serving(ends=-signal.SIGKILL) as daemon:
        lazyimg.mount(setting.reference("one"), target)
        lazyimg.verb("prefetch", "-q", setting.reference("one"))
        eventually(lambda: reads_while_reading(net, lazyimg, target) == 0)  # once it is synced
        before = lazyimg.status()["reads"]
        drop_caches()
        assert net.call(different_files, target, files, timeout=LONG) == []
        assert lazyimg.status()["reads"] == before
        kill_all(daemon)
    drop_caches()
    assert net.call(different_files, target, files, timeout=LONG) == []
    take_away(target, lazyimg)


@pytest.mark.parametrize("complete", [False, True])
def test_page_cache(
    net: SafetyNet,
    setting: Setting,
    lazyimg: Lazyimg,
    target: Path,
    *,
    complete: bool,
) -> None:
    """Each byte that was read is in memory once, not also as a byte of the device."""
    files = setting.images.files("one")
    size = sum(path.stat().st_size for path in files.rglob("*") if path.is_file())
    with lazyimg.serving():
        if complete:
            lazyimg.verb("prefetch", "-q", setting.reference("one"))
        lazyimg.mount(setting.reference("one"), target)
        drop_caches()
        assert net.call(different_files, target, files, timeout=LONG) == []
        assert net.call(cached_bytes_below, target) >= 0.9 * size
        eventually(lambda: cached_everywhere(net, lazyimg, target) <= MOST * size)
        lazyimg.unmount(target)


def cached_everywhere(net: SafetyNet, lazyimg: Lazyimg, target: Path) -> int:
    """Give the bytes in memory of a mounted image, its devices, and what they are served from."""
    places = [target, lazyimg.root / "devices", lazyimg.root / "fuse"]
    return sum(net.call(cached_bytes_below, place) for place in places if place.exists())
