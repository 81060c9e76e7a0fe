"""The directories that take what is written to read-write mounts: ROOT/scratch/<id>."""

from __future__ import annotations

import logging
import os
import stat
from typing import TYPE_CHECKING
from uuid import uuid4

from lazyimg.errors import CorruptError, StorageError
from lazyimg.host.removal import remove_tree
from lazyimg.images.kernel_mounts import make_directory
from lazyimg_formats.erofs.reader import Image
from lazyimg_formats.errors import FormatError

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(__name__)


def prepare_scratch(scratch: Path, bootstrap: Path) -> tuple[Path, Path]:
    """Make, or find, the upper and work directories of an image's mount; gives both. Blocks.

    Args:
        scratch: holds both; what was written through an earlier mount stays.
        bootstrap: of the image.

    Raises:
        CorruptError: the bootstrap breaks its format.
        StorageError: they cannot be made.
    """
    upper, work = scratch / "upper", scratch / f"work-{uuid4().hex}"  # a dead one is used yet
    new = not upper.exists()
    for path in (scratch, upper, work):
        make_directory(path)
    if new:
        _dress_as_root(upper, bootstrap)
    return upper, work


def _dress_as_root(upper: Path, bootstrap: Path) -> None:
    """Give an overlay's upper directory what the image's root has: it becomes the root."""
    try:
        root = Image(bootstrap.read_bytes()).root
        os.chown(upper, root.uid, root.gid)
        upper.chmod(stat.S_IMODE(root.mode))
        mtime = root.mtime * 1_000_000_000 + root.mtime_ns
        os.utime(upper, ns=(mtime, mtime))
    except FormatError as error:
        raise CorruptError(str(bootstrap), str(error), "remove it, and mount again") from error
    except OSError as error:
        raise StorageError(str(upper), f"cannot be made: {error.strerror}") from error


def remove_scratch(scratch: Path) -> None:
    """Remove a mount's directories; what cannot be is said, and stays. Blocks."""
    try:
        remove_tree(scratch)
    except FileNotFoundError:
        return
    except OSError as error:  # the next start tries again
        _log.warning("%s: cannot be removed: %s", scratch, error)
