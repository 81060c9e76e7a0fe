"""A disk that is full, or short of space: what cannot be stored fails, and says why."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pytest

from tests.contracts.transports import LONG, SIZE, Setting, different_files, drop_caches, eventually
from tests.real.lazyimg_process import Lazyimg
from tests.real.safety import loop_disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.real.safety import SafetyNet

DISK: Final = 4 * SIZE + (256 << 20)
NEVER: Final = {  # our own limits do not act
    f"LAZYIMG_CACHEFILES_{unit}{name}": percent
    for unit in "BF"
    for name, percent in (("STOP", "0"), ("CULL", "1"), ("RUN", "2"))
}
LIMITS: Final = {
    f"LAZYIMG_CACHEFILES_B{name}": percent
    for name, percent in (("STOP", "20"), ("CULL", "30"), ("RUN", "40"))
}


@pytest.fixture
def top(tmp_path: Path, net: SafetyNet) -> Iterator[Path]:
    """Give a disk of its own."""
    with loop_disk(tmp_path, size=DISK) as top:
        yield top


@contextmanager
def filled(top: Path, left: int) -> Iterator[None]:
    """Leave so many bytes of a disk free."""
    space = os.statvfs(top)
    filler = top / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - left)
    try:
        yield
    finally:
        filler.unlink()


def test_full_disk(
    net: SafetyNet, setting: Setting, transport: str, top: Path, target: Path
) -> None:
    lazyimg = Lazyimg(top / "state", {"LAZYIMG_TRANSPORT": transport, **NEVER})
    files = setting.images.files("one")
    with lazyimg.serving():
        lazyimg.mount(setting.reference("one"), target)
        with filled(top, 4 << 20):
            found = net.call(different_files, target, files, timeout=LONG)
            assert found
            assert [each for each in found if "other bytes" in each] == []
            failure = lazyimg.status()["failure"]
            assert "no space left" in failure.lower() or "has no room for" in failure
        drop_caches()
        assert net.call(different_files, target, files, timeout=LONG) == []
        with filled(top, 1 << 20):
            lazyimg.unmount(target)


def test_unused_devices_make_room(
    net: SafetyNet, setting: Setting, transport: str, top: Path, target: Path
) -> None:
    lazyimg = Lazyimg(top / "state", {"LAZYIMG_TRANSPORT": transport, **LIMITS})
    files = setting.images.files("one")
    devices = top / "state" / "devices"
    with lazyimg.serving():
        lazyimg.verb("prefetch", "-q", setting.reference("one"))
        lazyimg.mount(setting.reference("one"), target)
        kept = sorted(devices.iterdir())
        with filled(top, DISK // 4):
            assert net.call(different_files, target, files, timeout=LONG) == []
            assert sorted(devices.iterdir()) == kept
            lazyimg.unmount(target)
            eventually(lambda: not list(devices.iterdir()))
        lazyimg.mount(setting.reference("one"), target)
        assert net.call(different_files, target, files, timeout=LONG) == []
        lazyimg.unmount(target)
