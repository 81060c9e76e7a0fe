"""Quotas of a file system, by quotactl_fd(2): what `setquota` would do.

Source: include/uapi/linux/quota.h, quotactl(2).
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from enum import IntEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

QUOTACTL_FD: Final = 443  # the system call's number, on every architecture
GET_QUOTA: Final = 0x800007
SET_QUOTA: Final = 0x800008
BLOCK: Final = 1024  # bytes, of a limit
LIMITS: Final = 1 | 4  # valid: QIF_BLIMITS, QIF_ILIMITS
PROJECT: Final = 42


class Kind(IntEnum):
    """Which files count for a quota: those of a user, or of a project; by the kernel's number."""

    USER = 0
    PROJECT = 2

    @property
    def option(self) -> str:
        """What mount(8) and `mkfs.ext4 -E quotatype=` call it."""
        return "usrquota" if self is Kind.USER else "prjquota"


class _Quota(ctypes.Structure):
    """struct if_dqblk."""

    _fields_ = (
        ("block_hard_limit", ctypes.c_uint64),
        ("block_soft_limit", ctypes.c_uint64),
        ("space", ctypes.c_uint64),
        ("inode_hard_limit", ctypes.c_uint64),
        ("inode_soft_limit", ctypes.c_uint64),
        ("inodes", ctypes.c_uint64),
        ("block_time", ctypes.c_uint64),
        ("inode_time", ctypes.c_uint64),
        ("valid", ctypes.c_uint32),
    )


class Quota:
    """The quota that what is made in a directory counts for: root's, or that of a project.

    Args:
        directory: on a file system with quotas; becomes the project's.
        kind: which of the two.
    """

    def __init__(self, directory: Path, kind: Kind) -> None:
        self._directory = directory
        self._kind = kind
        if kind is Kind.PROJECT:
            command = ["chattr", "-p", str(PROJECT), "+P", str(directory)]
            subprocess.run(command, check=True, timeout=60)

    @property
    def used(self) -> tuple[int, int]:
        """Bytes and inodes."""
        quota = _Quota()
        self._call(GET_QUOTA, quota)
        return quota.space, quota.inodes

    def limit(self, *, space: int = 0, inodes: int = 0) -> None:
        """Allow that many bytes and inodes; 0: any number."""
        blocks = space // BLOCK
        self._call(SET_QUOTA, _Quota(blocks, blocks, 0, inodes, inodes, 0, 0, 0, LIMITS))

    def _call(self, command: int, quota: _Quota) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        number = PROJECT if self._kind is Kind.PROJECT else 0
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if libc.syscall(
                QUOTACTL_FD, fd, command << 8 | self._kind, number, ctypes.byref(quota)
            ):
                raise OSError(ctypes.get_errno(), "quotactl_fd failed")
        finally:
            os.close(fd)
