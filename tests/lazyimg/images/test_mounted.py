"""A mount on a user's directory; what happens to it is in test_mounts and test_recovery."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import NotFoundError
from lazyimg.host.mount_table import MountEntry
from lazyimg.images.library import ImageRecord, MountRecord, MountState
from lazyimg.images.mounted import CoveredError, Mounted, is_of, record_of, unmount_ours
from tests.fakes.image_mounts import image

if TYPE_CHECKING:
    from tests.fakes.host_mounts import FakeMounts

READ_ONLY = Mounted(image(), "/one", None)
READ_WRITE = Mounted(image(), "/one", Path("/state/scratch/s"))


def entry(fs_type: str, *super_options: str, source: str = "none") -> MountEntry:
    return MountEntry(1, 0, (0, 1), "/", "/one", ("ro",), fs_type, source, super_options)


@pytest.mark.parametrize(("mounted", "scratch"), [(READ_ONLY, ""), (READ_WRITE, "s")])
def test_record(mounted: Mounted, scratch: str) -> None:
    known = ImageRecord("reg.test/a:1", "linux/amd64", "sha256:" + "a" * 64, "a")
    assert record_of(mounted) == MountRecord("/one", known, scratch, MountState.MOUNTING)


@pytest.mark.parametrize(
    ("mounted", "mount", "ours"),
    [
        (READ_ONLY, entry("erofs", "ro", f"fsid={'a' * 64}"), True),
        (READ_ONLY, entry("erofs", "ro", f"fsid={'b' * 64}"), False),
        (READ_ONLY, entry("erofs", "ro", source=f"/state/bootstraps/{'a' * 64}"), True),
        (READ_ONLY, entry("erofs", "ro", source=f"/state/bootstraps/{'b' * 64}"), False),
        (READ_ONLY, entry("tmpfs", "rw", source=f"/state/bootstraps/{'a' * 64}"), False),
        (READ_ONLY, entry("tmpfs", "rw"), False),
        (READ_WRITE, entry("overlay", "upperdir=/state/scratch/s/upper"), True),
        (READ_WRITE, entry("overlay", "upperdir=/state/scratch/t/upper"), False),
        (READ_WRITE, entry("overlay", "lowerdir=/a:/b"), False),
        (READ_WRITE, entry("other", "upperdir=/state/scratch/s/upper"), False),
    ],
)
def test_entry_of_the_mount_table(mounted: Mounted, mount: MountEntry, *, ours: bool) -> None:
    assert is_of(mount, mounted) is ours


async def test_unmount_takes_ours_only(host: FakeMounts) -> None:
    host.table = [("/one", "erofs in d", "a" * 64), ("/one", "", "theirs")]
    with pytest.raises(CoveredError, match="lies on top of it"):
        await unmount_ours(READ_ONLY)
    host.table.pop()
    await unmount_ours(READ_ONLY)
    assert host.table == []
    with pytest.raises(NotFoundError):
        await unmount_ours(READ_ONLY)
    host.table = [("/one", "", "theirs")]
    with pytest.raises(NotFoundError, match="only mounts of others are there"):
        await unmount_ours(READ_ONLY)
    assert host.points == ["/one"]
