"""A bootstrap's file below ROOT/bootstraps, named by the sha256 of its bytes. All here blocks."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from lazyimg.errors import CorruptError, StorageError
from lazyimg_formats.erofs.layout import BLOCK_SIZE
from lazyimg_formats.erofs.reader import Image
from lazyimg_formats.errors import FormatError

if TYPE_CHECKING:
    from pathlib import Path


def verify_bootstrap(path: Path) -> None:
    """Check that a file has the bytes of its name.

    Raises:
        CorruptError: it has others.
        StorageError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error
    if digest != path.name:
        raise CorruptError(str(path), "its bytes are not those of its name", "remove it")


def read_devices(path: Path) -> list[tuple[str, int]]:
    """Give (name, bytes) of the device of each slot, in their order.

    Raises:
        CorruptError: it is no bootstrap.
        StorageError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            image = Image(lambda offset, length: os.pread(file.fileno(), length, offset))
            return [(slot.tag.decode(), slot.blocks * BLOCK_SIZE) for slot in image.slots]
    except FormatError as error:
        raise CorruptError(str(path), str(error), "remove it") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> StorageError:
    return StorageError(str(path), f"cannot be read: {error.strerror}", "mount the image again")
