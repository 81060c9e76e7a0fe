"""What goes wrong around a running daemon: impatient users, slow registries, full disks."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.real.docker_registry import Registry, running_registry
from tests.real.lazyimg_process import Lazyimg, mounts_below
from tests.real.oci_layout import LayoutWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZE: Final = 3 << 20  # bytes of each file; no two hold the same
FILES: Final = ("one", "two", "three")
PROMPT: Final = 10.0
"""Seconds within which something ends that has nothing to wait for."""


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    return {name: os.urandom(SIZE) for name in FILES}


@pytest.fixture(scope="module")
def layout(disk: Path, contents: dict[str, bytes]) -> Iterator[Path]:
    """An image of one layer with three files, converted."""
    with tempfile.TemporaryDirectory(dir=disk) as directory:
        plain = Path(directory, "layer.tar")
        for name, data in contents.items():
            Path(directory, name).write_bytes(data)
        with tarfile.open(plain, "w") as tar:
            for name in FILES:
                tar.add(Path(directory, name), name)
        writer = LayoutWriter(Path(directory, "layout"))
        writer.add_image("small", [writer.add_layer(plain)], ["/one"])
        converted = Path(directory, "converted")
        Lazyimg(disk / "nowhere").verb(
            "convert", f"oci:{directory}/layout:small", f"oci:{converted}:small"
        )
        yield converted


@pytest.fixture
def registry(disk: Path, layout: Path) -> Iterator[Registry]:
    with (
        tempfile.TemporaryDirectory(dir=disk) as directory,
        running_registry(Path(directory)) as running,
    ):
        Lazyimg(disk / "nowhere").verb("convert", f"oci:{layout}:small", reference_in(running))
        running.counts.clear()
        yield running


@pytest.fixture
def reference(registry: Registry) -> str:
    return reference_in(registry)


def reference_in(registry: Registry) -> str:
    return f"{registry.address}/small:1"


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PROMPT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_prefetch_that_its_user_interrupts(
    registry: Registry,
    reference: str,
    lazyimg: Lazyimg,
    target: Path,
    contents: dict[str, bytes],
) -> None:
    with lazyimg.serving():
        lazyimg.verb("fsid", reference)
        registry.counts.clear()
        registry.counts.held = True
        client = lazyimg.start_verb("prefetch", reference)
        eventually(lambda: len(registry.counts.blob_reads()) > 0)
        client.send_signal(signal.SIGINT)
        assert client.wait(PROMPT) == 130
        client.communicate()
        eventually(lambda: mounts_below(lazyimg.root) == [])
        registry.counts.held = False
        lazyimg.verb("mount", reference, target)
        assert (target / "two").read_bytes() == contents["two"]


def test_unmount_during_a_prefetch(
    registry: Registry,
    reference: str,
    lazyimg: Lazyimg,
    target: Path,
    contents: dict[str, bytes],
) -> None:
    with lazyimg.serving():
        lazyimg.verb("mount", reference, target)
        registry.counts.clear()
        registry.counts.held = True
        client = lazyimg.start_verb("prefetch", "-q", reference)
        eventually(lambda: len(registry.counts.blob_reads()) > 0)
        lazyimg.verb("umount", target)
        assert mounts_below(target.parent) == []
        registry.counts.held = False
        said = client.communicate(timeout=60)[1]
        assert client.returncode == 0, said
        assert mounts_below(lazyimg.root) == []
        registry.counts.clear()
        lazyimg.verb("mount", reference, target)
        assert (target / "three").read_bytes() == contents["three"]
        assert registry.counts.sent() < SIZE


def test_directories_with_odd_names(
    reference: str, lazyimg: Lazyimg, tmp_path: Path, contents: dict[str, bytes]
) -> None:
    with lazyimg.serving():
        for name in ("new\nline", "sp ace\\040", "co,ma:colon", "-dash"):
            directory = tmp_path / name
            directory.mkdir()
            lazyimg.verb("mount", "--rw", reference, directory)
            assert (directory / "one").read_bytes() == contents["one"]
            if name.startswith("new"):
                assert len(lazyimg.verb("mount").splitlines()) == 2
            lazyimg.verb("umount", directory)
        bytes_only = tmp_path / os.fsdecode(b"caf\xe9")
        bytes_only.mkdir()
        said = lazyimg.failure("mount", reference, bytes_only, status=64)
        assert r"caf\xe9: is not UTF-8" in said
        (tmp_path / "file").touch()
        for name in ("file", "missing", "missing/below"):
            said = lazyimg.failure("mount", reference, tmp_path / name, status=2)
            assert "is no directory" in said
        assert mounts_below(tmp_path) == mounts_below(lazyimg.root) == []


def test_directory_that_somebody_is_in(reference: str, lazyimg: Lazyimg, target: Path) -> None:
    with lazyimg.serving():
        lazyimg.verb("mount", reference, target)
        with subprocess.Popen(["sleep", "1000"], cwd=target) as insider:
            said = lazyimg.failure("umount", target, status=79)
            assert f"{target} is in use; end the processes that use it" in said
            assert mounts_below(target.parent) == [str(target)]
            subprocess.run(["umount", "-l", str(target)], check=True, timeout=60)
            assert lazyimg.status()["mounts"] == []  # that was somebody else
            insider.kill()


def test_daemon_that_is_stopped_during_a_prefetch_and_a_read(
    registry: Registry, reference: str, lazyimg: Lazyimg, target: Path
) -> None:
    with lazyimg.serving() as daemon:
        lazyimg.verb("mount", reference, target)
        registry.counts.clear()
        registry.counts.held = True
        reader = subprocess.Popen(
            ["cat", str(target / "one")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        eventually(lambda: len(registry.counts.blob_reads()) > 0)
        client = lazyimg.start_verb("prefetch", reference)
        eventually(lambda: len(registry.counts.blob_reads()) > 1)
        daemon.terminate()
        assert daemon.wait(PROMPT) == 0
        assert client.wait(PROMPT) == 75
        client.communicate()
        said = reader.communicate(timeout=PROMPT)[1]
        # What cat's read is asked again for, page by page, may find the cache gone: ENOBUFS.
        assert re.search(b"Input/output error|No buffer space", said)
        registry.counts.held = False
    assert mounts_below(target.parent) == []


def test_daemon_that_is_stopped_while_an_index_is_fetched(
    registry: Registry, reference: str, lazyimg: Lazyimg, target: Path
) -> None:
    with lazyimg.serving() as daemon:
        registry.counts.held = True
        client = lazyimg.start_verb("mount", reference, target)
        eventually(lambda: len(registry.counts.blob_reads()) > 0)
        daemon.terminate()
        assert daemon.wait(30) == 0
        assert client.wait(PROMPT) != 0
        client.communicate()
        registry.counts.held = False
    assert mounts_below(target.parent) == []
    with lazyimg.serving():
        lazyimg.verb("mount", reference, target)
        assert (target / "one").stat().st_size == SIZE


def test_image_mounted_by_hand_is_prefetched_and_mounted_as_well(
    registry: Registry,
    reference: str,
    lazyimg: Lazyimg,
    target: Path,
    tmp_path: Path,
    contents: dict[str, bytes],
) -> None:
    hand = tmp_path / "hand"
    hand.mkdir()
    with lazyimg.serving():
        command = lazyimg.verb("fsid", reference).splitlines()[1]
        subprocess.run([*shlex.split(command)[:-1], str(hand)], check=True, timeout=60)
        lazyimg.verb("prefetch", reference)
        lazyimg.verb("mount", reference, target)
        subprocess.run(["umount", str(hand)], check=True, timeout=60)
        registry.counts.clear()
        assert (target / "three").read_bytes() == contents["three"]
        assert registry.counts.sent() == 0
        lazyimg.verb("umount", target)
        assert mounts_below(lazyimg.root) == []


def test_directories_that_others_mount_on(reference: str, lazyimg: Lazyimg, target: Path) -> None:
    with lazyimg.serving():
        lazyimg.verb("mount", "--rw", reference, target)
        assert "is mounted there" in lazyimg.failure("mount", reference, target, status=79)
        subprocess.run(["mount", "-t", "tmpfs", "cover", str(target)], check=True, timeout=60)
        assert "a mount of cover lies on top" in lazyimg.failure("umount", target, status=79)
        assert mounts_below(target.parent) == [str(target)] * 2
        subprocess.run(["umount", str(target)], check=True, timeout=60)
        lazyimg.verb("umount", target)
        assert mounts_below(target.parent) == mounts_below(lazyimg.root) == []
        for place in ("/", "/usr", lazyimg.root, lazyimg.root / "mnt"):
            said = lazyimg.failure("mount", reference, place, status=64)
            assert "which the daemon needs itself" in said


def test_full_cache_fails_reads_until_space_is_freed(
    disk: Path, reference: str, lazyimg: Lazyimg, target: Path, contents: dict[str, bytes]
) -> None:
    now = os.statvfs(disk)
    free = now.f_bavail * 100 // now.f_blocks
    for name, percent in (("bstop", free - 2), ("bcull", free - 1), ("brun", free)):
        lazyimg.settings[f"LAZYIMG_CACHEFILES_{name.upper()}"] = str(percent)
    with lazyimg.serving():
        lazyimg.verb("mount", reference, target)
        with tempfile.NamedTemporaryFile(dir=disk) as ballast:
            os.posix_fallocate(ballast.fileno(), 0, now.f_frsize * now.f_blocks * 4 // 100)
            began = time.monotonic()
            with pytest.raises(OSError, match=r"Input/output error|No buffer space"):
                (target / "one").read_bytes()
            assert time.monotonic() - began < 2 * PROMPT
        assert (target / "one").read_bytes() == contents["one"]
        assert lazyimg.status()["reads_failed"] > 0


def test_first_mount_gives_the_cache_files_names(
    reference: str, lazyimg: Lazyimg, target: Path, contents: dict[str, bytes]
) -> None:
    with lazyimg.serving():
        lazyimg.verb("mount", reference, target)
        described = json.loads(lazyimg.verb("inspect", "--json", target))
        names = {path.name for path in (lazyimg.root / "cache/cache").glob("I*/@*/D*")}
        devices = {f"D{layer['device']}" for layer in described["layers"]}
        assert names == {f"D{described['fsid']}", *devices}
        assert (target / "one").read_bytes() == contents["one"]


def test_full_root_fails_mounts_until_space_is_freed(
    disk: Path, reference: str, target: Path, tmp_path: Path, contents: dict[str, bytes]
) -> None:
    root, ballast = tmp_path / "root", tmp_path / "root/ballast"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(root)], check=True)
    try:
        with tempfile.TemporaryDirectory(dir=disk) as cache:
            lazyimg = Lazyimg(root, {"LAZYIMG_CACHE": cache})
            with lazyimg.serving():
                for left in range(0, 48 << 10, 8 << 10):
                    free = os.statvfs(root).f_bavail * os.statvfs(root).f_frsize
                    ballast.write_bytes(bytes(max(0, free - left)))
                    mount = lazyimg.start_verb("mount", reference, target)
                    said = mount.communicate(timeout=60)[1]
                    ballast.unlink()
                    if mount.returncode == 0:
                        lazyimg.verb("umount", target)
                        break
                    assert (mount.returncode, said.count("\n")) == (74, 1), said
                    assert mounts_below(root) == []
                    assert list(root.glob("*/.*")) == []
                assert left > 0
                lazyimg.verb("mount", reference, target)
                assert (target / "one").read_bytes() == contents["one"]
    finally:
        subprocess.run(["umount", str(root)], check=True)
