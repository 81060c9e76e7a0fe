"""What only the FUSE transport does, on this machine's kernel: takeovers, and the kernel alone."""

from __future__ import annotations

import asyncio
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lazyimg.host.mounts import mount_erofs_files
from tests.real.fuse_worker import FuseWorker
from tests.real.kernel_image import drop_caches, read_file, unmount_below
from tests.real.scale import scaled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real.safety import SafetyNet

MB = 1 << 20
SIZES = {f"f{number}": 8 * MB + number for number in range(12)}


class Served:
    """An image, served by a worker, mounted, with its files beside it to compare with."""

    def __init__(self, directory: Path, target: Path, **options: Any) -> None:
        self.worker = FuseWorker(directory, 7, SIZES, 3, **options)
        self.target = target
        self.reference = directory / "reference"
        self.reference.mkdir()
        for name, data in self.worker.image.files.items():
            (self.reference / name).write_bytes(data)
        self._bootstrap = directory / self.worker.image.fsid
        self._bootstrap.write_bytes(self.worker.image.bootstrap)

    def mount(self) -> None:
        """Mount it."""
        paths = [self.worker.paths[name] for name in self.worker.image.devices]
        asyncio.run(mount_erofs_files(self._bootstrap, paths, self.target))

    def unmount(self) -> None:
        """Unmount it."""
        asyncio.run(unmount_below(self.target))


@contextmanager
def served(disk: Path, target: Path, **options: Any) -> Iterator[Served]:
    with tempfile.TemporaryDirectory(dir=disk) as directory:
        served = Served(Path(directory), target, **options)
        served.worker.start()
        try:
            served.mount()
            yield served
        finally:
            served.unmount()
            served.worker.stop()


def test_worker_killed_each_second(net: SafetyNet, disk: Path, tmp_path: Path) -> None:
    with (
        served(disk, tmp_path, delay=0.02) as image,
        net.reading(image.target, image.reference, processes=16, pause=0.002) as readers,
    ):
        end = time.monotonic() + scaled(120, least=10)
        kills = 0
        while time.monotonic() < end:
            time.sleep(1.0)  # the pace is what is tested
            image.worker.kill()
            asyncio.run(drop_caches())
            image.worker.start()
            kills += 1
        report = readers.finish(60, stop=True)
    assert report.wrong == []
    assert report.errors == {}
    assert report.short == 0
    assert report.reads > 100 * kills


def test_fills_that_fail_now_and_then(net: SafetyNet, disk: Path, tmp_path: Path) -> None:
    with (
        served(disk, tmp_path, failing_share=0.05) as image,
        net.reading(
            image.target, image.reference, processes=16, reads=scaled(200_000, least=10_000)
        ) as readers,
    ):
        report = readers.finish(300)
    assert report.wrong == []
    assert set(report.errors) <= {"EIO"}


@pytest.mark.parametrize("passthrough", [False, True], ids=["plain-file", "passthrough"])
def test_complete_image_goes_on_without_any_process(
    net: SafetyNet,
    disk: Path,
    tmp_path: Path,
    passthrough: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    with served(disk, tmp_path, complete=True, passthrough=passthrough) as image:
        assert all(
            (path.parent == image.worker.tree) == passthrough
            for path in image.worker.paths.values()
        )
        image.worker.forget()
        asyncio.run(drop_caches())
        with net.reading(image.target, image.reference, processes=4, reads=2000) as readers:
            report = readers.finish(60)
        assert (report.wrong, report.errors, report.short) == ([], {}, 0)
        image.unmount()
        image.worker.start()


def test_both_processes_killed_is_an_error_and_never_zeros(
    net: SafetyNet, disk: Path, tmp_path: Path
) -> None:
    with served(disk, tmp_path, delay=0.02) as image:
        with net.reading(image.target, image.reference, processes=8, pause=0.002) as readers:
            time.sleep(1.0)  # in the middle of reads
            image.worker.forget()
            report = readers.finish(60, stop=True)
        assert report.wrong == []
        image.unmount()
        image.worker.start()  # aborts and detaches what is left
        image.mount()
        data = asyncio.run(read_file(image.target / "f0"))
        assert data == image.worker.image.files["f0"]
