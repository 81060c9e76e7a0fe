"""Directory blocks: dirents, then their names, sorted by bytes, `.` and `..` among them.

The first name's offset tells how many dirents there are. A name ends where the next one begins, the
last one at a NUL or at the end of the block or directory. Names do not cross blocks.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Final, NamedTuple

from lazyimg_formats.erofs.layout import (
    BLOCK_SIZE,
    EROFS_NAME_LEN,
    FileType,
    erofs_dirent,
)
from lazyimg_formats.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

_SIZE: Final = erofs_dirent.size
_LAST_TYPE: Final = max(FileType)


class Dirent(NamedTuple):
    """One name of a directory.

    Attributes:
        name: 1 to 255 bytes.
        nid: the inode.
        file_type: what the inode is said to be.
    """

    name: bytes
    nid: int
    file_type: FileType


def check_names(names: Sequence[bytes]) -> None:
    """Refuse names that a directory cannot hold.

    Raises:
        FormatError: one is empty, longer than 255 bytes, ``.`` or ``..``, or has a ``/`` or a NUL.
    """
    if not names:
        return
    joined = b"".join(names)  # all at once: this is done for every name of an image
    if (
        b"/" in joined
        or b"\0" in joined
        or not min(map(len, names))
        or max(map(len, names)) > EROFS_NAME_LEN
        or b"." in names
        or b".." in names
    ):
        raise FormatError("erofs_dirent", f"impossible name {_worst(names)[:300]!r}")


def _worst(names: Sequence[bytes]) -> bytes:
    """Give a name that `check_names` refuses."""
    return next(
        name
        for name in names
        if not 0 < len(name) <= EROFS_NAME_LEN
        or name in {b".", b".."}
        or b"/" in name
        or b"\0" in name
    )


def split_names(names: Sequence[bytes]) -> list[int]:
    """Give where the names of each block end, as indexes into sorted names."""
    if _SIZE * len(names) + sum(map(len, names)) <= BLOCK_SIZE:
        return [len(names)]
    ends = []
    used = 0
    for number, name in enumerate(names):
        need = _SIZE + len(name)
        if used + need > BLOCK_SIZE:
            ends.append(number)
            used = 0
        used += need
    ends.append(len(names))
    return ends


@lru_cache(maxsize=BLOCK_SIZE // _SIZE)
def _dirents(count: int) -> struct.Struct:
    return struct.Struct("<" + "QHBx" * count)


def serialize_block(names: Sequence[bytes], nids: Sequence[int], types: Sequence[int]) -> bytes:
    """Give a directory block, not padded, of names that fit in one (see `split_names`)."""
    count = len(names)
    offsets = accumulate(map(len, names), initial=_SIZE * count)
    fields = chain.from_iterable(zip(nids, offsets, types, strict=False))  # one offset is over
    return _dirents(count).pack(*fields) + b"".join(names)


def parse_block(block: bytes | memoryview) -> list[Dirent]:
    """Give the dirents of one directory block (the last one of a directory: up to its size).

    Raises:
        FormatError: offsets that lie, impossible names, names that do not rise, unknown types.
    """
    block = bytes(block)
    if len(block) < _SIZE:
        raise FormatError("erofs_dirent", f"a directory block of {len(block)} bytes")
    first = erofs_dirent.unpack_from(block)[1]
    if not _SIZE <= first <= len(block) or first % _SIZE:
        raise FormatError(
            "erofs_dirent", f"names begin at {first} in a directory block of {len(block)} bytes"
        )
    rows = list(erofs_dirent.iter_unpack(block[:first]))
    offsets = [row[1] for row in rows[1:]]
    nul = block.find(b"\0", rows[-1][1])
    offsets.append(len(block) if nul < 0 else nul)
    found = []
    last = b""
    for (nid, start, file_type), end in zip(rows, offsets, strict=True):
        if not first <= start < end <= len(block) or file_type > _LAST_TYPE:
            raise FormatError("erofs_dirent", f"a name at {start} to {end}, of type {file_type}")
        name = block[start:end]
        if len(name) > EROFS_NAME_LEN or b"/" in name or b"\0" in name:
            raise FormatError("erofs_dirent", f"impossible name {name[:300]!r}")
        if name <= last:
            raise FormatError("erofs_dirent", f"name {name!r} is not behind {last!r}")
        last = name
        found.append(Dirent(name, nid, FileType(file_type)))
    return found
