"""What a daemon holds after much mounting and reading: no more than before."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from lazyimg.api.messages import MountRequest, UnmountRequest
from tests.fakes.api_client import ApiClient
from tests.real.docker_registry import running_registry
from tests.real.held import look_at, settled
from tests.real.lazyimg_process import Lazyimg
from tests.real.plain_image import PlainImage, make_plain_image
from tests.real.readers import running_readers
from tests.real.scale import scaled

if TYPE_CHECKING:
    from collections.abc import Iterator

CYCLES: Final = scaled(500)
READS: Final = scaled(10_000)
WARMING: Final = 6  # cycles until pools of threads and caches have their size


@pytest.fixture
def image(disk: Path) -> Iterator[tuple[str, PlainImage]]:
    with tempfile.TemporaryDirectory(dir=disk) as directory:
        image = make_plain_image(Path(directory), "leaks", seed=1, size=24 << 20)
        with running_registry(Path(directory)) as registry:
            reference = f"{registry.address}/leaks"
            Lazyimg(Path(directory, "nowhere")).verb("convert", image.reference, reference)
            yield reference, image


def worker_of(lazyimg: Lazyimg) -> int:
    """Return the process that does the work."""
    pid: int = lazyimg.status()["pid"]
    return pid


def directories(lazyimg: Lazyimg) -> list[Path]:
    """Return those in which mounting makes others."""
    return [lazyimg.root / name for name in ("mnt", "scratch")]


async def cycle(lazyimg: Lazyimg, reference: str, target: Path, number: int) -> None:
    """Mount, read a little, unmount; every third time read-write, with a file written."""
    client = ApiClient(lazyimg.environment["LAZYIMG_ADDRESS"])
    writable = number % 3 == 0
    await client.mount(
        MountRequest(reference=reference, directory=str(target), read_write=writable)
    )
    if writable:
        (target / "new").write_text("mine")
    names = sorted((target / "layer0").iterdir())
    names[number % len(names)].read_bytes()
    await client.unmount(UnmountRequest(directory=str(target)))


async def test_mounts_leak_nothing(
    lazyimg: Lazyimg, image: tuple[str, PlainImage], tmp_path: Path
) -> None:
    target = tmp_path / "mnt"
    target.mkdir()
    with lazyimg.serving():
        pid = worker_of(lazyimg)
        for number in range(WARMING):
            await cycle(lazyimg, image[0], target, number)
        before = look_at(pid, *directories(lazyimg))
        for number in range(CYCLES):
            await cycle(lazyimg, image[0], target, number)
        after = settled(pid, before, *directories(lazyimg))
        assert after.is_no_more_than(before), (before, after)


def test_reads_leak_nothing(
    lazyimg: Lazyimg, image: tuple[str, PlainImage], tmp_path: Path
) -> None:
    target = tmp_path / "mnt"
    target.mkdir()
    # What was decoded is kept for the next read, up to a limit: that is no leak.
    lazyimg.settings["LAZYIMG_FILL_RECENT"] = "1MiB"
    with lazyimg.serving():
        lazyimg.verb("mount", image[0], target)
        pid = worker_of(lazyimg)
        read(target, image[1], max(50, READS // 20))
        before = look_at(pid, *directories(lazyimg))
        read(target, image[1], READS)
        after = settled(pid, before, *directories(lazyimg))
        assert after.is_no_more_than(before), (before, after)


def read(target: Path, image: PlainImage, reads: int) -> None:
    """Read at random, with the page cache dropped now and then."""
    with running_readers(target, image.files, processes=4, reads=reads, seed=reads) as readers:
        report = readers.finish(600)
    assert (report.errors, report.short, report.wrong) == ({}, 0, [])
