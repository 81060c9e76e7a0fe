"""Files below EROFS, and which way the kernel takes them; tests/transports has a kernel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import KernelError
from lazyimg.host import loops, mounts
from lazyimg.host.loops import FileMounter, exchange_file, find_loops
from lazyimg.host.mounts import FileMountError

if TYPE_CHECKING:
    from collections.abc import Sequence

BOOTSTRAP, TARGET = Path("/state/bootstraps/abc"), Path("/mnt")
DEVICES = [Path("/state/fuse/1")]


class Kernel:
    """Mounts files, or loop devices only; keeps what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.refuses: dict[str, KernelError] = {}
        monkeypatch.setattr(mounts, "mount_erofs_files", self.mount)

    async def mount(
        self, bootstrap: Path, devices: Sequence[Path], target: Path, *, loops: Path | None = None
    ) -> None:
        assert (bootstrap, devices, target) == (BOOTSTRAP, DEVICES, TARGET)
        way = "file" if loops is None else str(loops)
        self.asked.append(way)
        if way in self.refuses:
            raise self.refuses[way]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


def mounter(how: str) -> FileMounter:
    return FileMounter(how, Path("/state/loops"))


async def test_files_where_the_kernel_takes_them(kernel: Kernel) -> None:
    tried = mounter("auto")
    await tried.mount(BOOTSTRAP, DEVICES, TARGET)
    assert kernel.asked == ["file"]
    assert not tried.loops


async def test_loop_devices_where_it_does_not(kernel: Kernel) -> None:
    kernel.refuses["file"] = FileMountError("it", "wants a block device")
    tried = mounter("auto")
    for _ in range(2):
        await tried.mount(BOOTSTRAP, DEVICES, TARGET)
    assert kernel.asked == ["file", "/state/loops/abc", "/state/loops/abc"]
    assert tried.loops


async def test_what_is_wrong_otherwise_is_said(kernel: Kernel) -> None:
    kernel.refuses["file"] = KernelError("it", "is wrong")
    with pytest.raises(KernelError, match="is wrong"):
        await mounter("auto").mount(BOOTSTRAP, DEVICES, TARGET)
    assert kernel.asked == ["file"]


async def test_neither(kernel: Kernel) -> None:
    kernel.refuses["file"] = FileMountError("it", "wants a block device")
    kernel.refuses["/state/loops/abc"] = KernelError("it", "has no loop devices")
    tried = mounter("auto")
    for _ in range(2):
        with pytest.raises(KernelError, match="has no loop devices"):
            await tried.mount(BOOTSTRAP, DEVICES, TARGET)
    assert kernel.asked == ["file", "/state/loops/abc"] * 2


async def test_loop_devices_that_are_not_wanted(kernel: Kernel) -> None:
    kernel.refuses["file"] = FileMountError("it", "wants a block device")
    with pytest.raises(FileMountError):
        await mounter("file").mount(BOOTSTRAP, DEVICES, TARGET)
    assert kernel.asked == ["file"]


async def test_loop_devices_that_are_asked_for(kernel: Kernel) -> None:
    await mounter("loop").mount(BOOTSTRAP, DEVICES, TARGET)
    assert kernel.asked == ["/state/loops/abc"]


@pytest.fixture
def block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand for what the kernel says of its block devices."""
    for name, file in {"loop0": "/a", "loop7": "/a b", "loop12": "/a", "loopx": "/a"}.items():
        (tmp_path / name / "loop").mkdir(parents=True)
        (tmp_path / name / "loop/backing_file").write_text(f"{file}\n")
    (tmp_path / "loop1").mkdir()  # is free
    (tmp_path / "loop2/loop/backing_file").mkdir(parents=True)  # becomes free this moment
    (tmp_path / "sda").mkdir()
    monkeypatch.setattr(loops, "SYS_BLOCK", tmp_path)
    return tmp_path


@pytest.mark.usefixtures("block")
def test_loop_devices_over_a_file() -> None:
    assert find_loops(Path("/a")) == [0, 12]
    assert find_loops(Path("/a b")) == [7]
    assert find_loops(Path("/b")) == []


def test_kernel_without_block_devices(block: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "SYS_BLOCK", block / "none")
    assert find_loops(Path("/a")) == []


@pytest.mark.usefixtures("block")
async def test_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    switched: list[object] = []

    async def switch(numbers: Sequence[int], source: Path, target: Path) -> None:
        switched.append((numbers, source, target))

    monkeypatch.setattr(mounts, "switch_loops", switch)
    assert await exchange_file(Path("/a"), Path("/c")) == 2
    assert switched == [([0, 12], Path("/a"), Path("/c"))]
    assert await exchange_file(Path("/b"), Path("/c")) == 0
    assert len(switched) == 1
