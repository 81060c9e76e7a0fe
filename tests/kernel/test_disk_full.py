"""A disk that is full: what cannot be stored fails, says why, and works when there is room."""

from __future__ import annotations

import os
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.real.docker_registry import running_registry
from tests.real.lazyimg_process import Lazyimg, mounts_below
from tests.real.plain_image import PlainImage, make_plain_image

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE: Final = 24 << 20  # of the image
DISK: Final = 256 << 20  # of the disk that becomes full
ROUNDS: Final = 60  # the kernel notices what was freed at its next write

Source = tuple[str, PlainImage]


@pytest.fixture(scope="module")
def disk() -> Path:
    return Path(os.environ["LAZYIMG_VM_DISK"])


@pytest.fixture(scope="module")
def source(disk: Path) -> Iterator[Source]:
    """A registry with an image."""
    with tempfile.TemporaryDirectory(dir=disk) as directory:
        image = make_plain_image(Path(directory), "full", seed=4, size=SIZE)
        with running_registry(Path(directory)) as registry:
            reference = f"{registry.address}/full"
            Lazyimg(Path(directory, "nowhere")).verb("convert", image.reference, reference)
            yield reference, image


@contextmanager
def small_disk(disk: Path) -> Iterator[Path]:
    """Mount a small file system of its own."""
    with tempfile.TemporaryDirectory(dir=disk) as name:
        image, directory = Path(name, "image"), Path(name, "small")
        directory.mkdir()
        with image.open("wb") as file:
            file.truncate(DISK)
        # Nothing is reserved for root, who would not notice that the disk is full.
        run("mkfs.ext4", "-q", "-F", "-m", "0", image)
        run("mount", "-o", "loop", image, directory)
        try:
            yield directory
        finally:
            run("umount", directory)


def run(*command: str | Path) -> None:
    """Run a command that must not fail."""
    subprocess.run(command, check=True, timeout=60)


@pytest.fixture
def small(disk: Path) -> Iterator[Path]:
    with small_disk(disk) as directory:
        yield directory


@pytest.fixture
def lazyimg(disk: Path) -> Iterator[Lazyimg]:
    with tempfile.TemporaryDirectory(dir=disk) as directory:
        yield Lazyimg(Path(directory, "state"))
        assert mounts_below(Path(directory)) == []


@pytest.fixture
def target(tmp_path: Path) -> Path:
    directory = tmp_path / "mnt"
    directory.mkdir()
    return directory


def fill_up(directory: Path) -> Path:
    """Leave nothing; return the file that takes it."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file:
        size = 1 << 20
        while size >= 4096:  # all of it, down to the last block
            try:
                os.posix_fallocate(file.fileno(), file.tell(), size)
                file.seek(size, os.SEEK_CUR)
            except OSError:
                size //= 2
    os.sync()
    return ballast


def read_all(target: Path, image: PlainImage) -> None:
    """Read everything, and compare it."""
    for path in sorted(image.files.rglob("*/*")):
        assert (target / path.relative_to(image.files)).read_bytes() == path.read_bytes()


def read_again(target: Path, image: PlainImage) -> None:
    """Read everything, as soon as that works again."""
    for _ in range(ROUNDS):
        with suppress(OSError):
            read_all(target, image)
            return
        run("sleep", "1")
    read_all(target, image)


def test_cache_is_full(
    source: Source,
    small: Path,
    lazyimg: Lazyimg,
    target: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    reference, image = source
    lazyimg.settings["LAZYIMG_CACHE"] = str(small / "cache")
    with lazyimg.serving() as daemon:
        lazyimg.verb("mount", reference, target)
        first = min(image.files.rglob("*/*"), key=lambda path: path.stat().st_size)
        here = target / first.relative_to(image.files)
        assert here.read_bytes() == first.read_bytes()
        ballast = fill_up(small)
        with pytest.raises(OSError, match="Input/output error"):
            read_all(target, image)
        assert "of its space left" in capfd.readouterr().err
        assert daemon.poll() is None
        assert here.read_bytes() == first.read_bytes()
        (mount,) = lazyimg.status()["mounts"]
        assert mount["present"] < mount["size"]
        ballast.unlink()
        read_again(target, image)
        lazyimg.verb("umount", target)


def test_root_is_full(source: Source, disk: Path, small: Path, target: Path) -> None:
    reference, image = source
    with tempfile.TemporaryDirectory(dir=disk) as elsewhere:
        lazyimg = Lazyimg(small / "state", {"LAZYIMG_CACHE": f"{elsewhere}/cache"})
        with lazyimg.serving() as daemon:
            ballast = fill_up(small)
            line = lazyimg.failure("mount", reference, target, status=74)
            assert "No space left on device" in line or "full" in line
            assert daemon.poll() is None
            assert mounts_below(target.parent) == []
            ballast.unlink()
            lazyimg.verb("mount", reference, target)
            ballast = fill_up(small)  # of no concern to what is mounted already
            read_all(target, image)
            lazyimg.verb("umount", target)
            ballast.unlink()
            lazyimg.verb("mount", reference, target)
            read_all(target, image)
            lazyimg.verb("umount", target)
