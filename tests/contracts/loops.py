"""What FUSE owes those who read where EROFS mounts loop devices; tests of the whole daemon.

A subclass gives the fixtures `disk`, `setting`, `net`, `lazyimg` and `target`, as for
`tests.contracts.transports`. Runs on this machine's kernel, where loop devices must be asked for,
and on one in scripts/kernel-vm that has nothing else.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lazyimg.host.loops import SYS_BLOCK
from tests.contracts.transports import (
    LONG,
    Setting,
    different_files,
    drop_caches,
    eventually,
    kill_worker,
    layers,
    piece_command,
)
from tests.real.lazyimg_process import Lazyimg, kill_all
from tests.real.page_cache import cached_bytes, cached_bytes_below
from tests.real.shared_images import LARGE

if TYPE_CHECKING:
    from tests.real.safety import SafetyNet

MOST: Final = 1.2
"""Bytes in the page cache for each byte that was read."""


def loops_below(root: Path) -> list[str]:
    """Give the files below a directory, by their names in it, that loop devices read."""
    found = []
    for path in SYS_BLOCK.glob("loop*/loop/backing_file"):
        try:
            file = Path(path.read_text().rstrip("\n"))
        except OSError:  # it is free, now
            continue
        if file.is_relative_to(root):
            found.append(str(file.relative_to(root)))
    return sorted(found)


def of_tree(lazyimg: Lazyimg) -> list[str]:
    """Give the files of FUSE's tree that loop devices read."""
    return [name for name in loops_below(lazyimg.root) if name.startswith("fuse/")]


class LoopContract:
    """The suite."""

    def test_devices_are_gone_with_the_mount(
        self, net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
    ) -> None:
        reference = setting.reference("one")
        with lazyimg.serving():
            lazyimg.mount(reference, target)
            names = loops_below(lazyimg.root)
            assert len(names) == 1 + len(layers(lazyimg, reference))
            assert len(of_tree(lazyimg)) == len(names) - 1
            assert [name for name in names if name.startswith("bootstraps/")] == names[:1]
            net.run(piece_command(target / LARGE))
            lazyimg.unmount(target)
            eventually(lambda: not loops_below(lazyimg.root))
            lazyimg.mount(reference, target)  # again, by new ones
            net.run(piece_command(target / LARGE, 1))
        eventually(lambda: not loops_below(lazyimg.root))

    def test_complete_while_mounted(
        self, net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
    ) -> None:
        """The daemon is asked no more, and needed no more, from then on."""
        files = setting.images.files("one")
        with lazyimg.serving(ends=-signal.SIGKILL) as daemon:
            lazyimg.mount(setting.reference("one"), target)
            net.run(piece_command(target / LARGE))
            lazyimg.verb("prefetch", "-q", setting.reference("one"))
            eventually(lambda: not of_tree(lazyimg))  # once it is synced
            before = lazyimg.status()["reads"]
            drop_caches()
            assert net.call(different_files, target, files, timeout=LONG) == []
            assert lazyimg.status()["reads"] == before
            kill_all(daemon)
        drop_caches()
        assert net.call(different_files, target, files, timeout=LONG) == []
        with lazyimg.serving():  # which mounts it again
            lazyimg.unmount(target)
        eventually(lambda: not loops_below(lazyimg.root))

    def test_complete_after_the_worker_was_killed(
        self, net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
    ) -> None:
        """Loop devices that a worker before this one made are found."""
        with lazyimg.serving() as daemon:
            lazyimg.mount(setting.reference("one"), target)
            net.run(piece_command(target / LARGE))
            assert of_tree(lazyimg)
            kill_worker(daemon)
            lazyimg.verb("prefetch", "-q", setting.reference("one"))
            eventually(lambda: not of_tree(lazyimg))
            before = lazyimg.status()["reads"]
            drop_caches()
            files = setting.images.files("one")
            assert net.call(different_files, target, files, timeout=LONG) == []
            assert lazyimg.status()["reads"] == before
            lazyimg.unmount(target)
            eventually(lambda: not loops_below(lazyimg.root))

    def test_complete_at_the_mount(
        self, net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
    ) -> None:
        files = setting.images.files("one")
        with lazyimg.serving(ends=-signal.SIGKILL) as daemon:
            lazyimg.verb("prefetch", "-q", setting.reference("one"))
            lazyimg.mount(setting.reference("one"), target)
            eventually(lambda: not of_tree(lazyimg))
            before = lazyimg.status()["reads"]
            assert net.call(different_files, target, files, timeout=LONG) == []
            assert lazyimg.status()["reads"] == before
            kill_all(daemon)
        drop_caches()
        assert net.call(different_files, target, files, timeout=LONG) == []
        with lazyimg.serving():
            lazyimg.unmount(target)

    def test_page_cache(
        self, net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
    ) -> None:
        """Each byte that was read is in memory once: not in the files below, nor the devices."""
        files = setting.images.files("one")
        size = sum(path.stat().st_size for path in files.rglob("*") if path.is_file())
        with lazyimg.serving():
            lazyimg.mount(setting.reference("one"), target)
            used = [path for path in Path("/dev").glob("loop*") if is_below(path, lazyimg.root)]
            assert len(used) > 1
            drop_caches()
            assert net.call(different_files, target, files, timeout=LONG) == []
            assert net.call(cached_bytes_below, target) >= 0.9 * size
            places = [target, lazyimg.root / "devices", lazyimg.root / "fuse"]
            eventually(
                lambda: sum(net.call(cached_bytes_below, place) for place in places) <= MOST * size
            )
            assert net.call(cached_bytes, used) <= (MOST - 1) * size
            lazyimg.unmount(target)

    def test_both_killed(
        self, net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
    ) -> None:
        """What is not complete gives errors then, and nothing is left but the next mount's."""
        with lazyimg.serving(ends=-signal.SIGKILL) as daemon:
            lazyimg.mount(setting.reference("one"), target)
            net.run(piece_command(target / LARGE))
            kill_all(daemon)
        _, said = net.finish(net.start(["cat", target / LARGE]))
        assert b"nput/output error" in said
        with lazyimg.serving():
            names = loops_below(lazyimg.root)
            assert len(names) == 1 + len(layers(lazyimg, setting.reference("one")))
            lazyimg.unmount(target)
        eventually(lambda: not loops_below(lazyimg.root))


def is_below(device: Path, root: Path) -> bool:
    """Tell whether a loop device reads a file below a directory."""
    try:
        file = (SYS_BLOCK / device.name / "loop/backing_file").read_text()
    except OSError:
        return False
    return Path(file.rstrip("\n")).is_relative_to(root)
