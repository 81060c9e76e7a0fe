"""Whole images, from convert to a program that runs in the mount, on real parts."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.real.debian_images import DebianImages, debian_images
from tests.real.debian_trees import expected_tree
from tests.real.docker_registry import Registry, running_registry
from tests.real.lazyimg_process import Lazyimg, kill_all, mounts_below
from tests.real.oci_layout import LayoutWriter
from tests.real.tree_manifest import differences, read_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM: Final = "import json, ssl, asyncio; print(json.dumps('it runs'))"


@pytest.fixture(scope="module")
def images() -> DebianImages:
    return debian_images()


@pytest.fixture(scope="module")
def registry(disk: Path, images: DebianImages) -> Iterator[Registry]:
    """A registry that has both images, converted."""
    with (
        tempfile.TemporaryDirectory(dir=disk) as directory,
        running_registry(Path(directory)) as running,
    ):
        lazyimg = Lazyimg(disk / "nowhere")
        for tag in ("python", "nginx"):
            lazyimg.verb("convert", f"oci:{images.layout}:{tag}", f"{running.address}/{tag}")
        yield running


def layers(lazyimg: Lazyimg, reference: str) -> list[dict[str, Any]]:
    manifest = json.loads(lazyimg.verb("inspect", "--raw", reference))
    found: list[dict[str, Any]] = manifest["layers"]
    return found


def start_python(root: Path) -> str:
    """Start the program in a root; as one that starts a container would, from another process."""
    command = ["chroot", str(root), "python3", "-c", PROGRAM]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=120
    ).stdout.strip()


@pytest.mark.parametrize("tag", ["python", "nginx"])
def test_mounted_tree_equals_what_umoci_unpacks(
    tag: str, images: DebianImages, registry: Registry, lazyimg: Lazyimg, target: Path
) -> None:
    with lazyimg.serving():
        lazyimg.verb("mount", f"{registry.address}/{tag}", target)
        assert differences(expected_tree(images, tag), read_tree(target)) == []
        lazyimg.verb("umount", target)


def test_mount_by_hand_equals(
    images: DebianImages, registry: Registry, lazyimg: Lazyimg, target: Path
) -> None:
    with lazyimg.serving():
        fsid, command = lazyimg.verb("fsid", f"{registry.address}/nginx").splitlines()
        assert command == f"mount -t erofs none -o fsid={fsid},domain_id=lazyimg DIR"
        subprocess.run([*shlex.split(command)[:-1], str(target)], check=True, timeout=60)
        try:
            assert differences(expected_tree(images, "nginx"), read_tree(target)) == []
        finally:
            subprocess.run(["umount", str(target)], check=True, timeout=60)


@pytest.mark.parametrize("tag", ["python", "nginx"])
def test_bootstrap_passes_fsck(
    tag: str, registry: Registry, lazyimg: Lazyimg, tmp_path: Path
) -> None:
    with lazyimg.serving():
        reference = f"{registry.address}/{tag}"
        fsid = lazyimg.verb("fsid", reference).split()[0]
        described = json.loads(lazyimg.verb("inspect", "--json", reference))
    bootstrap = lazyimg.root / "bootstraps" / fsid
    assert hashlib.sha256(bootstrap.read_bytes()).hexdigest() == fsid
    device = tmp_path / "device"  # it reads no file data
    device.touch()
    slots = {layer["device"] for layer in described["layers"] if layer["device_size"]}
    command = ["fsck.erofs", *[f"--device={device}" for _ in slots], str(bootstrap)]
    checked = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert (checked.stdout, checked.stderr) == ("", "")  # a wrong checksum is only said


def test_unknown_fsid_fails_at_once(lazyimg: Lazyimg, target: Path) -> None:
    with lazyimg.serving():
        options = f"fsid={'0' * 64},domain_id=lazyimg"
        ended = subprocess.run(
            ["mount", "-t", "erofs", "none", "-o", options, str(target)],
            check=False,
            capture_output=True,
            timeout=60,
        )
        assert ended.returncode == 32
        assert lazyimg.status()["reads"] == 0


def test_start_fetches_little_and_the_second_one_nothing(
    registry: Registry, lazyimg: Lazyimg, target: Path
) -> None:
    reference = f"{registry.address}/python"
    size = sum(layer["size"] for layer in layers(lazyimg, reference))
    with lazyimg.serving():
        registry.counts.clear()
        lazyimg.verb("mount", reference, target)
        assert start_python(target) == '"it runs"'
        assert 0 < registry.counts.sent() < 0.25 * size
        registry.counts.clear()
        assert start_python(target) == '"it runs"'
        lazyimg.verb("umount", target)
        lazyimg.verb("mount", reference, target)
        drop_caches()
        assert start_python(target) == '"it runs"'
        assert registry.counts.sent() == 0
        lazyimg.verb("umount", target)
    with lazyimg.serving():
        lazyimg.verb("mount", reference, target)
        drop_caches()
        assert start_python(target) == '"it runs"'
        assert registry.counts.sent() == 0


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def test_corrupted_blob_gives_eio_until_it_is_repaired(
    registry: Registry, lazyimg: Lazyimg, target: Path
) -> None:
    reference = f"{registry.address}/python"
    name = "usr/share/common-licenses/GPL-3"
    with lazyimg.serving():
        lazyimg.verb("mount", reference, target)
        blobs = [registry.blob_path(layer["digest"]) for layer in layers(lazyimg, reference)]
        kept = [blob.read_bytes() for blob in blobs]
        try:
            for blob, data in zip(blobs, kept, strict=True):
                blob.write_bytes(bytes(byte ^ 0x55 for byte in data))
            with pytest.raises(OSError, match="Input/output error") as failure:
                (target / name).read_bytes()
            assert failure.value.errno == errno.EIO
            assert present(lazyimg) == 0
        finally:
            for blob, data in zip(blobs, kept, strict=True):
                blob.write_bytes(data)
        assert b"GNU GENERAL PUBLIC LICENSE" in (target / name).read_bytes()
        assert present(lazyimg) > 0


def present(lazyimg: Lazyimg) -> int:
    (mount,) = lazyimg.status()["mounts"]
    local: int = mount["present"]
    return local


def test_prefetched_image_needs_no_registry(
    images: DebianImages, disk: Path, registry: Registry, lazyimg: Lazyimg, target: Path
) -> None:
    with (
        tempfile.TemporaryDirectory(dir=disk) as directory,
        running_registry(Path(directory)) as going,
    ):
        reference = f"{going.address}/nginx"
        lazyimg.verb("convert", f"{registry.address}/nginx", reference)
        with lazyimg.serving():
            lazyimg.verb("prefetch", reference)
            assert mounts_below(lazyimg.root) == []
            size = sum(layer["size"] for layer in layers(lazyimg, reference))
            assert 0.8 * size < going.counts.sent() <= 1.1 * size
    with lazyimg.serving():
        lazyimg.verb("mount", reference, target)
        assert differences(expected_tree(images, "nginx"), read_tree(target)) == []
        (mount,) = lazyimg.status()["mounts"]
        assert mount["present"] == mount["size"]


def test_prefetch_of_paths_fetches_only_them(
    registry: Registry, lazyimg: Lazyimg, target: Path
) -> None:
    reference = f"{registry.address}/python"
    with lazyimg.serving():
        lazyimg.verb("mount", reference, target)
        lazyimg.verb("prefetch", reference, "--path", "/usr/share/common-licenses/*")
        registry.counts.clear()
        assert b"Apache License" in (target / "usr/share/common-licenses/Apache-2.0").read_bytes()
        assert registry.counts.sent() == 0
        failure = lazyimg.failure("prefetch", "-q", reference, "--path", "/no/such*", status=2)
        assert "no regular file matches /no/such*" in failure


def test_read_write_mount_and_a_second_directory(
    registry: Registry, lazyimg: Lazyimg, target: Path, tmp_path: Path
) -> None:
    reference = f"{registry.address}/python"
    writable = tmp_path / "rw"
    writable.mkdir()
    with lazyimg.serving():
        lazyimg.verb("mount", reference, target)
        lazyimg.verb("mount", "--rw", reference, writable)
        root, given = writable.lstat(), target.lstat()
        assert (root.st_mode, root.st_uid, root.st_gid, root.st_mtime_ns) == (
            given.st_mode, given.st_uid, given.st_gid, given.st_mtime_ns,
        )  # fmt: skip
        (writable / "etc/new").write_text("mine")
        (writable / "etc/passwd").unlink()
        assert (writable / "etc/new").read_text() == "mine"
        assert (target / "etc/passwd").exists()
        assert not (target / "etc/new").exists()
        assert len(json.loads(lazyimg.verb("mount", "--json"))) == 2
        with pytest.raises(OSError, match="Read-only file system"):
            (target / "etc/new").write_text("no")
        lazyimg.verb("umount", writable)
        assert list((lazyimg.root / "scratch").iterdir()) == []
        assert (target / "etc/passwd").read_text().startswith("root:")
        lazyimg.verb("umount", target)
        assert list((lazyimg.root / "mnt").iterdir()) == []


def test_busy_mount_is_refused_and_can_be_detached(
    registry: Registry, lazyimg: Lazyimg, target: Path
) -> None:
    reference = f"{registry.address}/python"
    with lazyimg.serving():
        lazyimg.verb("mount", reference, target)
        with (target / "etc/passwd").open("rb") as held:
            assert str(target) in lazyimg.failure("umount", target, status=79)
            lazyimg.verb("umount", "--lazy", target)
            lazyimg.verb("mount", reference, target)
            assert held.read().startswith(b"root:")
            lazyimg.verb("umount", target)


def test_unmounted_by_umount_itself(registry: Registry, lazyimg: Lazyimg, target: Path) -> None:
    reference = f"{registry.address}/python"
    with lazyimg.serving():
        for _ in range(2):
            lazyimg.verb("mount", reference, target)
            subprocess.run(["umount", str(target)], check=True, timeout=60)
        lazyimg.verb("umount", target)
        assert lazyimg.status()["mounts"] == []
        assert mounts_below(lazyimg.root) == []


def test_stop_with_a_mount_in_use_leaves_nothing_hanging(
    registry: Registry, lazyimg: Lazyimg, target: Path
) -> None:
    with lazyimg.serving():
        lazyimg.verb("mount", f"{registry.address}/python", target)
        reader = subprocess.Popen(
            ["sh", "-c", "cd usr && read line"], cwd=target, stdin=subprocess.PIPE
        )
    reader.communicate(timeout=30)
    assert mounts_below(target.parent) == []


def test_mounts_of_a_killed_daemon_are_made_again_by_the_next_one(
    registry: Registry, lazyimg: Lazyimg, target: Path
) -> None:
    reference = f"{registry.address}/python"
    with lazyimg.serving(ends=-signal.SIGKILL) as daemon:
        lazyimg.verb("mount", reference, target)
        kill_all(daemon)
    assert mounts_below(target.parent) == [str(target)]
    with lazyimg.serving():
        assert mounts_below(target.parent) == [str(target)]
        assert start_python(target) == '"it runs"'


def test_image_without_an_index_is_refused_with_the_remedy(
    images: DebianImages, lazyimg: Lazyimg, target: Path
) -> None:
    lazyimg.settings["LAZYIMG_MOUNT_UNINDEXED"] = "refuse"
    with lazyimg.serving():
        line = lazyimg.failure("mount", f"oci:{images.layout}:python", target, status=67)
        assert "layer 1 of 2" in line
        assert "gzip" in line
        assert "lazyimg convert" in line
        assert mounts_below(target.parent) == mounts_below(lazyimg.root) == []


@pytest.mark.parametrize(
    ("reference", "options", "status", "said"),
    [
        ("127.0.0.1/UPPER/case", [], 65, "UPPER"),
        ("{registry}/missing", [], 2, "missing"),
        ("{registry}/python:missing", [], 2, "missing"),
        ("{registry}/python", ["--platform", "linux/s390x"], 66, "s390x"),
        ("127.0.0.1:1/python", [], 69, "127.0.0.1:1"),
    ],
    ids=["bad-reference", "no-repository", "no-tag", "no-platform", "no-registry"],
)
def test_what_cannot_be_mounted_is_said_and_leaves_nothing(
    reference: str,
    options: list[str],
    status: int,
    said: str,
    registry: Registry,
    lazyimg: Lazyimg,
    target: Path,
) -> None:
    with lazyimg.serving():
        reference = reference.format(registry=registry.address)
        assert said in lazyimg.failure("mount", *options, reference, target, status=status)
        assert mounts_below(target.parent) == mounts_below(lazyimg.root) == []
        assert list((lazyimg.root / "mnt").iterdir()) == []


def test_wrong_credentials(disk: Path, lazyimg: Lazyimg, target: Path) -> None:
    with (
        tempfile.TemporaryDirectory(dir=disk) as directory,
        running_registry(Path(directory), credentials=True) as guarded,
        lazyimg.serving(),
    ):
        reference = f"{guarded.address}/python"
        assert reference.partition("/")[0] in lazyimg.failure(
            "mount", "--creds", "somebody:wrong", reference, target, status=76
        )
        lazyimg.failure("mount", reference, target, status=76)


def test_second_daemon_on_the_same_device(disk: Path, lazyimg: Lazyimg) -> None:
    with lazyimg.serving(), tempfile.TemporaryDirectory(dir=disk) as directory:
        other = Lazyimg(Path(directory, "other"))
        assert "/dev/cachefiles" in other.failure("serve", status=72)
        assert not (other.root / "socket").exists()
        assert str(lazyimg.root) in lazyimg.failure("serve", status=79)


def test_cache_on_tmpfs_is_refused(tmp_path: Path, lazyimg: Lazyimg) -> None:
    lazyimg.settings["LAZYIMG_CACHE"] = str(tmp_path / "cache")
    line = lazyimg.failure("serve", status=73)
    assert "tmpfs" in line
    assert "ext4" in line


def test_serving_needs_root(lazyimg: Lazyimg) -> None:
    command = ["setpriv", "--reuid=65534", "--clear-groups", "--inh-caps=-all", *COMMAND_SERVE]
    ended = subprocess.run(
        command, env=lazyimg.environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 77, ended.stderr
    assert ended.stderr.count("\n") == 1


COMMAND_SERVE: Final = [shutil.which("lazyimg") or "lazyimg", "serve"]


def test_image_of_a_hundred_thousand_entries(disk: Path, lazyimg: Lazyimg, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=disk) as directory:
        plain = Path(directory, "layer.tar")
        with tarfile.open(plain, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(100_000):
                entry = tarfile.TarInfo(f"d{number % 100}/e{number % 10_000}/f{number}")
                content = b"%d" % number
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        writer = LayoutWriter(Path(directory, "layout"))
        writer.add_image("many", [writer.add_layer(plain)], ["f"])
        plain.unlink()
        converted = f"oci:{directory}/converted:many"
        lazyimg.verb("convert", f"oci:{directory}/layout:many", converted)
        with lazyimg.serving():
            lazyimg.verb("mount", converted, target)
            names = [name for _, _, files in os.walk(target) for name in files]
            assert sorted(names) == sorted(f"f{number}" for number in range(100_000))
            assert (target / "d99/e9999/f99999").read_bytes() == b"99999"
            assert (target / "d0/e0/f50000").read_bytes() == b"50000"
