"""One image on one directory of a user: as it is recorded, and as the mount table has it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lazyimg.errors import InUseError, NotFoundError
from lazyimg.host import mounts as host
from lazyimg.host.own_mounts import fsid_of
from lazyimg.images.library import ImageRecord, MountRecord, MountState

if TYPE_CHECKING:
    from lazyimg.host.mount_table import MountEntry
    from lazyimg.images.image import Image


@dataclass(frozen=True, slots=True)
class Mounted:
    """An image on a user's directory.

    Attributes:
        image: what is mounted.
        directory: where; absolute.
        scratch: of a read-write mount: holds its upper and work directories.
    """

    image: Image
    directory: str
    scratch: Path | None


class CoveredError(InUseError):
    """Somebody has mounted something else on top of a mount of ours."""


def record_of(mounted: Mounted) -> MountRecord:
    """Give the record of a mount that is about to be made."""
    image = mounted.image
    return MountRecord(
        mounted.directory,
        ImageRecord(image.reference, image.platform, image.digest, image.chain.key),
        mounted.scratch.name if mounted.scratch else "",
        MountState.MOUNTING,
    )


def is_of(mount: MountEntry, mounted: Mounted) -> bool:
    """Whether an entry of the mount table is the mount on a user's directory."""
    if mounted.scratch is None:
        return fsid_of(mount) == mounted.image.chain.fsid
    upper = mount.super_option("upperdir") or ""
    return mount.fs_type == "overlay" and upper.endswith(f"/{mounted.scratch.name}/upper")


async def unmount_ours(mounted: Mounted) -> None:
    """Unmount a user's directory.

    Raises:
        NotFoundError: our mount is not there.
        InUseError: it is busy, or covered (`CoveredError`).
    """
    directory = mounted.directory
    there = await host.mounts_on(directory)
    ours = [is_of(entry, mounted) for entry in there]
    if any(ours) and not ours[-1]:
        raise CoveredError(
            directory, f"a mount of {there[-1].source} lies on top of it", "unmount that first"
        )
    if ours and not any(ours):
        raise NotFoundError(directory, "only mounts of others are there")
    await host.unmount(Path(directory))
