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
from tests.real.quota import Kind, Quota

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZE: Final = 24 << 20  # of the image
DISK: Final = 256 << 20  # of the disk that becomes full
XFS: Final = 320 << 20  # the smallest that mkfs.xfs makes is 300
INODES: Final = 1024  # of another one
ROUNDS: Final = 60  # the kernel notices what was freed at its next write
NEVER: Final = {  # the kernel's own limits do not act
    f"LAZYIMG_CACHEFILES_{unit}{name}": percent
    for unit in "BF"
    for name, percent in (("STOP", "0"), ("CULL", "1"), ("RUN", "2"))
}
# Root writes beyond a limit, unless it lacks this capability: as a systemd unit would say it,
# CapabilityBoundingSet=~CAP_SYS_RESOURCE.
LIMITED: Final = ("setpriv", "--bounding-set", "-sys_resource", "--inh-caps", "-sys_resource")
CULLING: Final = (("STOP", 40), ("CULL", 50), ("RUN", 60))  # per cent of a small quota
LEFT: Final = (0, 1, 7, 70, 131, 1029)  # KiB: a write ends in the middle of a block, or piece

Source = tuple[str, PlainImage]


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
def small_disk(
    disk: Path, *options: str, mount: str = "loop", size: int = DISK, kind: str = "ext4"
) -> Iterator[Path]:
    """Mount a small file system of its own; `options` are those of mkfs."""
    with tempfile.TemporaryDirectory(dir=disk) as name:
        image, directory = Path(name, "image"), Path(name, "small")
        directory.mkdir()
        with image.open("wb") as file:
            file.truncate(size)
        if kind == "ext4":  # nothing is reserved for root, who would not notice that it is full
            options = ("-F", "-m", "0", *options)
        run(f"mkfs.{kind}", "-q", *options, image)
        run("mount", "-o", mount, image, directory)
        try:
            yield directory
        finally:
            run("umount", directory)


def run(*command: str | Path) -> None:
    """Run a command that must not fail."""
    subprocess.run(command, check=True, timeout=60)


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until it is so."""
    for _ in range(ROUNDS):
        if condition():
            return
        run("sleep", "1")
    assert condition()


@pytest.fixture
def small(disk: Path) -> Iterator[Path]:
    with small_disk(disk) as directory:
        yield directory


def fill_up(directory: Path) -> Path:
    """Leave nothing; return the file that takes it."""
    ballast = directory / "ballast"
    with ballast.open("ab", buffering=0) as file:
        size = 1 << 20
        while size >= 1024:  # all of it, down to the last block
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


@pytest.mark.parametrize("block", ["1024", "4096"])
def test_file_system_refuses_what_the_kernel_would_store(
    source: Source,
    disk: Path,
    lazyimg: Lazyimg,
    target: Path,
    capfd: pytest.CaptureFixture[str],
    block: str,
) -> None:
    """As with a quota: nothing tells before the write that there is no room for it."""
    reference, image = source
    with small_disk(disk, "-b", block) as small:
        lazyimg.settings |= {"LAZYIMG_CACHE": str(small / "cache"), **NEVER}
        with lazyimg.serving() as daemon:
            lazyimg.mount(reference, target)
            for left in LEFT:
                ballast = fill_up(small)
                os.truncate(ballast, ballast.stat().st_size - (left << 10))
                with pytest.raises(OSError, match=r"Input/output error|No buffer space"):
                    read_all(target, image)
                said = capfd.readouterr().err
                assert "Traceback" not in said
                assert daemon.poll() is None
            status = lazyimg.status()
            assert status["reads_failed"] > 0
            assert "cannot write to the cache: No space left on device" in status["failure"]
            (mount,) = status["mounts"]
            assert mount["present"] < mount["size"]
            ballast.unlink()
            read_again(target, image)
            assert_same_after_reopening(lazyimg, source, target)


def assert_same_after_reopening(lazyimg: Lazyimg, source: Source, target: Path) -> None:
    """What was stored around the failures is right when nothing of it is in memory."""
    lazyimg.unmount(target)
    Path("/proc/sys/vm/drop_caches").write_text("3")
    lazyimg.mount(source[0], target)
    read_all(target, source[1])
    lazyimg.unmount(target)


def take_inodes(directory: Path) -> Iterator[Path]:
    """Leave no inode; give the files that have them."""
    with suppress(OSError):
        for number in range(INODES):
            path = directory / f"ballast{number}"
            path.touch()
            yield path


@pytest.mark.parametrize("limits", [{}, NEVER])
def test_no_inode_is_left(
    source: Source, disk: Path, lazyimg: Lazyimg, target: Path, limits: dict[str, str]
) -> None:
    reference, image = source
    with small_disk(disk, "-N", str(INODES)) as small:
        lazyimg.settings |= {"LAZYIMG_CACHE": str(small / "cache"), **limits}
        with lazyimg.serving() as daemon:
            names = list(take_inodes(small))
            line = lazyimg.failure("mount", reference, target, status=74)
            assert "inode" in line
            assert daemon.poll() is None
            assert mounts_below(target.parent) == mounts_below(lazyimg.root) == []
            for name in names:
                name.unlink()
            lazyimg.mount(reference, target)
            read_again(target, image)
            assert_same_after_reopening(lazyimg, source, target)


@contextmanager
def limited_cache(disk: Path, kind: Kind) -> Iterator[tuple[Path, Quota]]:
    """Give a cache directory on a file system with quotas, and the quota of what is in it."""
    features = ("-O", "quota,project", "-E", f"quotatype={kind.option}")
    with small_disk(disk, *features, mount=f"loop,{kind.option}") as small:
        cache = small / "cache"
        cache.mkdir()
        yield cache, Quota(cache, kind)


@pytest.mark.parametrize("kind", Kind)
def test_quota_is_used_up(
    source: Source,
    disk: Path,
    lazyimg: Lazyimg,
    target: Path,
    capfd: pytest.CaptureFixture[str],
    kind: Kind,
) -> None:
    reference, image = source
    with limited_cache(disk, kind) as (cache, quota):
        lazyimg.settings["LAZYIMG_CACHE"] = str(cache)
        with lazyimg.serving(under=LIMITED) as daemon:
            lazyimg.mount(reference, target)
            for room in (SIZE // 4, SIZE // 8, 5 << 10):
                limit = quota.used[0] + room
                quota.limit(space=limit)
                with pytest.raises(OSError, match="Input/output error"):
                    read_all(target, image)
                assert limit - (1 << 20) < quota.used[0] <= limit
                assert daemon.poll() is None
            said = capfd.readouterr().err
            assert "cannot write to the cache: Disk quota exceeded" in said
            assert "Traceback" not in said
            status = lazyimg.status()
            assert "Disk quota exceeded" in status["failure"]
            (mount,) = status["mounts"]
            assert mount["present"] < mount["size"]
            quota.limit()
            read_again(target, image)
            assert_same_after_reopening(lazyimg, source, target)


@pytest.mark.parametrize("kind", Kind)
def test_quota_of_files_is_used_up(
    source: Source, disk: Path, lazyimg: Lazyimg, target: Path, kind: Kind
) -> None:
    with limited_cache(disk, kind) as (cache, quota):
        lazyimg.settings["LAZYIMG_CACHE"] = str(cache)
        with lazyimg.serving(under=LIMITED) as daemon:
            for more in (0, 1, 20):  # the kernel makes 256 directories first
                quota.limit(inodes=quota.used[1] + more)
                line = lazyimg.failure("mount", source[0], target, status=74)
                assert f"{cache} takes no more: Disk quota exceeded" in line
                assert daemon.poll() is None
                assert mounts_below(target.parent) == mounts_below(lazyimg.root) == []
            quota.limit()
            lazyimg.mount(source[0], target)
            read_again(target, source[1])
            assert_same_after_reopening(lazyimg, source, target)


def test_cache_that_is_a_mount_of_its_own_is_culled_below_its_quota(
    source: Source, disk: Path, lazyimg: Lazyimg, target: Path
) -> None:
    """Then the kernel sees what is left of the quota, and its percentages are of the limit."""
    reference, image = source
    with limited_cache(disk, Kind.PROJECT) as (cache, quota):
        run("mount", "--bind", cache, cache)
        try:
            quota.limit(space=SIZE + (8 << 20))
            names = {f"LAZYIMG_CACHEFILES_B{name}": str(number) for name, number in CULLING}
            lazyimg.settings |= {"LAZYIMG_CACHE": str(cache), **names}
            with lazyimg.serving(under=LIMITED):
                lazyimg.mount(reference, target)
                with pytest.raises(OSError, match="Input/output error"):
                    read_all(target, image)
                assert f"{cache} has less than" in lazyimg.status()["failure"]
                assert quota.used[0] < SIZE
                lazyimg.unmount(target)
                eventually(lambda: quota.used[0] < SIZE // 2)
        finally:
            run("umount", cache)


def test_cache_on_xfs(source: Source, disk: Path, lazyimg: Lazyimg, target: Path) -> None:
    """There, a project's quota acts on root as well, whatever it may do; as a smaller disk."""
    reference, image = source
    with small_disk(disk, mount="loop,prjquota", size=XFS, kind="xfs") as small:
        cache = small / "cache"
        cache.mkdir()
        quota = Quota(cache, Kind.PROJECT)
        quota.limit(space=SIZE // 2)
        lazyimg.settings["LAZYIMG_CACHE"] = str(cache)
        with lazyimg.serving() as daemon:
            lazyimg.mount(reference, target)
            with pytest.raises(OSError, match="Input/output error"):
                read_all(target, image)
            assert daemon.poll() is None
            said = lazyimg.status()["failure"]
            assert "cannot write to the cache: No space left on device" in said
            quota.limit()
            read_again(target, image)
            assert_same_after_reopening(lazyimg, source, target)


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
