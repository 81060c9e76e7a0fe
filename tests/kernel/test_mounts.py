"""Mounting for real: overlays, bind mounts, many devices. Run as root in scripts/kernel-vm."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import ConfigurationError, InUseError, KernelError, NotFoundError, UsageError
from lazyimg.host.mount_table import mount_at
from lazyimg.host.mounts import (
    BDI,
    bind_mount,
    mount_erofs,
    mount_overlay,
    mount_table,
    unmount,
)
from lazyimg.host.own_mounts import OwnMounts, refuse_own_mounts
from lazyimg.host.preflight import Machine, explain_cachefiles, run_checks
from lazyimg.transports.cachefiles.transport import CachefilesTransport
from lazyimg.transports.trial import try_transports
from tests.real.kernel_image import (
    DOMAIN,
    Image,
    MemoryFiller,
    make_image,
    read_file,
    run,
    start_reader,
    unmount_below,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MB = 1 << 20


@pytest.fixture
def disk(request: pytest.FixtureRequest) -> Path:
    directory = Path(os.environ["LAZYIMG_VM_DISK"], str(request.node.name))
    directory.mkdir()
    return directory


@pytest.fixture
async def image(disk: Path, tmp_path: Path) -> AsyncIterator[Image]:
    """An image that is served; what is mounted below tmp_path is taken off afterwards."""
    image = make_image(1, {"a": MB, "b": 5})
    cache = disk / "cache"
    cache.mkdir()
    transport = CachefilesTransport(MemoryFiller(image), domain_id=DOMAIN)
    await transport.start(cache)
    try:
        yield image
    finally:
        try:
            await unmount_below(tmp_path)
        finally:
            await transport.stop()


async def test_mount_table_has_the_mount(image: Image, tmp_path: Path) -> None:
    top = tmp_path / "with space"
    top.mkdir()
    await mount_erofs(image.fsid, DOMAIN, top)
    entry = mount_at(await mount_table(), str(top))
    assert entry is not None
    assert entry.fs_type == "erofs"
    assert entry.super_option("fsid") == image.fsid
    assert entry.super_option("domain_id") == DOMAIN
    await unmount(top)
    assert mount_at(await mount_table(), str(top)) is None


async def test_second_mount_of_an_fsid(image: Image, tmp_path: Path) -> None:
    top, other = tmp_path / "top", tmp_path / "other"
    top.mkdir()
    other.mkdir()
    await mount_erofs(image.fsid, DOMAIN, top)
    with pytest.raises(InUseError, match="already mounted"):
        await mount_erofs(image.fsid, DOMAIN, other)
    await bind_mount(top, other)
    assert await read_file(other / "b") == image.files["b"]
    await unmount(top)
    assert await read_file(other / "b") == image.files["b"]


async def test_read_ahead_is_set(image: Image, tmp_path: Path) -> None:
    before = set(BDI.glob("erofs-*"))
    await mount_erofs(image.fsid, DOMAIN, tmp_path, read_ahead_kb=1024)
    new = set(BDI.glob("erofs-*")) - before
    assert new
    assert {(path / "read_ahead_kb").read_text() for path in new} == {"1024\n"}


async def test_missing_directory(image: Image, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no such image, or .*/missing does not exist"):
        await mount_erofs(image.fsid, DOMAIN, tmp_path / "missing")


async def test_target_is_a_file(image: Image, tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.touch()
    with pytest.raises(UsageError, match="file is not a directory"):
        await mount_erofs(image.fsid, DOMAIN, target)


async def test_nothing_is_mounted(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing is mounted there"):
        await unmount(tmp_path)
    with pytest.raises(NotFoundError, match="missing does not exist"):
        await unmount(tmp_path / "missing")


async def test_mount_in_use(image: Image, tmp_path: Path) -> None:
    await mount_erofs(image.fsid, DOMAIN, tmp_path)
    held = os.open(tmp_path, os.O_PATH)  # looks nothing up in the mount
    try:
        with pytest.raises(InUseError, match="is in use"):
            await unmount(tmp_path)
        await unmount(tmp_path, lazy=True)
    finally:
        os.close(held)
    assert mount_at(await mount_table(), str(tmp_path)) is None


async def test_overlay_with_a_difficult_name(image: Image, disk: Path, tmp_path: Path) -> None:
    lower = tmp_path / r"lower:with,all\three"
    upper = disk / r"upper:with,all\three"
    work, top = disk / "work,:", tmp_path / "top"
    for directory in (lower, upper, work, top):
        directory.mkdir()
    await mount_erofs(image.fsid, DOMAIN, lower)
    await mount_overlay([lower], upper, work, top)
    await run("sh", "-c", 'printf new > "$0/b"; rm "$0/a"', str(top))
    assert await read_file(top / "b") == b"new"
    assert await read_file(lower / "b") == image.files["b"]
    assert (upper / "b").read_bytes() == b"new"
    assert stat.S_ISCHR((upper / "a").lstat().st_mode)
    await unmount(top)


async def test_bind_mount_read_only(image: Image, disk: Path, tmp_path: Path) -> None:
    source, target = disk / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "file").write_text("text")
    await bind_mount(source, target, read_only=True)
    with pytest.raises(OSError, match="Read-only"):
        (target / "new").touch()
    with pytest.raises(NotFoundError, match="does not exist"):
        await bind_mount(source / "missing", target)


async def test_more_devices_than_mount_2_takes(disk: Path, tmp_path: Path) -> None:
    files = {f"file-{i}": 4096 for i in range(90)}
    image = make_image(2, files, devices=90)
    transport = CachefilesTransport(MemoryFiller(image), domain_id=DOMAIN)
    await transport.start(disk)
    try:
        await mount_erofs(image.fsid, DOMAIN, tmp_path, devices=list(image.devices))
        for name in ("file-0", "file-89"):
            assert await read_file(tmp_path / name) == image.files[name]
    finally:
        await unmount_below(tmp_path)
        await transport.stop()


async def test_kernel_says_why_it_refuses(disk: Path, tmp_path: Path) -> None:
    image = make_image(3, {"a": 4096}, devices=1)
    transport = CachefilesTransport(MemoryFiller(image), domain_id=DOMAIN)
    await transport.start(disk)
    try:
        with pytest.raises(KernelError, match="the kernel refuses it or its options"):
            await mount_erofs(image.fsid, DOMAIN, tmp_path, devices=["x" * 60] * 80)
    finally:
        await transport.stop()


async def test_own_mounts_are_refused(image: Image, disk: Path, tmp_path: Path) -> None:
    refuse_own_mounts(OwnMounts(disk, DOMAIN), [disk])
    await mount_erofs(image.fsid, DOMAIN, tmp_path)
    with pytest.raises(ConfigurationError, match="which this process would serve itself"):
        refuse_own_mounts(OwnMounts(disk, DOMAIN), [disk, tmp_path / "state"])
    refuse_own_mounts(OwnMounts(disk, "another-domain"), [tmp_path / "state"])


async def test_checks_on_a_kernel_that_has_all(disk: Path) -> None:
    assert [check for check in run_checks(Machine(disk)) if check.needed and not check.ok] == []
    checks = {check.name: check for check in explain_cachefiles(Machine(disk))}
    assert checks["/dev/cachefiles"].detail == "can be opened"


async def test_trial_of_cachefiles(disk: Path) -> None:
    for _ in range(2):  # one leaves nothing that is in the way of the next
        before = sorted(disk.iterdir())
        tried = {check.name: check for check in await try_transports(disk)}
        check = tried["transport cachefiles"]
        assert (check.ok, check.detail) == (True, "an image was mounted and read")
        assert sorted(disk.iterdir()) == before


async def test_check_of_a_device_that_is_in_use(image: Image, disk: Path) -> None:
    checks = {check.name: check for check in explain_cachefiles(Machine(disk))}
    assert f"(process {os.getpid()})" in checks["/dev/cachefiles"].detail
    tried = {check.name: check for check in await try_transports(disk)}
    assert f"(process {os.getpid()})" in tried["transport cachefiles"].detail


async def test_killed_reader_leaves_the_mount_free(image: Image, tmp_path: Path) -> None:
    await mount_erofs(image.fsid, DOMAIN, tmp_path)
    reader = await start_reader(tmp_path / "a")
    await reader.kill()
    await unmount(tmp_path)
