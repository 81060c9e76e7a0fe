"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write_file(path: Path, data: bytes | memoryview) -> None:
    """Write `data` aside, sync it, rename it to `path`, and sync the directory.

    Raises:
        OSError: the disk is full or fails; nothing is left behind.
    """
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:32]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(aside, path)  # noqa: PTH104 - a str from mkstemp
    except BaseException:
        os.unlink(aside)  # noqa: PTH108
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make names in a directory survive a power cut.

    Raises:
        OSError: the disk fails.
    """
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
