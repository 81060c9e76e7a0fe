"""Names and passwords that users gave for one image: in memory, never on disk.

They are needed for as long as the image is read, and by the process that follows one that died. So
they are kept in a file of memory (memfd_create(2)), which the service manager holds for the next
process. It is a list of JSON lines, each valid from then on; a line that a process could not finish
writing is left out.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import msgspec

from lazyimg.errors import StorageError
from lazyimg.images.access import parse_access, serialize_access

if TYPE_CHECKING:
    from lazyimg.registry.ports import Access

MAX_SIZE: Final = 1 << 20
"""Bytes; then what is not valid any more is left out."""


class _Line(msgspec.Struct, frozen=True):
    repository: str
    username: str
    password: str
    access: msgspec.Raw


class ShownAccess:
    """What was last shown to each repository, where that has a name and a password.

    Args:
        fd: of the file that a process before this one has kept; owned from now on. None: a new one.

    Raises:
        StorageError: from every method, when there is no memory.
    """

    def __init__(self, fd: int | None = None) -> None:
        self._known: dict[str, Access] = {}
        try:
            self.fd = os.memfd_create("lazyimg-shown", os.MFD_CLOEXEC) if fd is None else fd
            data = os.pread(self.fd, os.fstat(self.fd).st_size, 0)
        except OSError as error:
            raise _failure(error) from error
        for text in data.split(b"\n")[:-1]:
            self._read(text)
        self._end = data.rfind(b"\n") + 1

    def _read(self, text: bytes) -> None:
        try:
            line = msgspec.json.decode(text, type=_Line)
            access = parse_access(bytes(line.access))
        except ValueError:  # also of what is no UTF-8
            return
        self._set(line.repository, replace(access, username=line.username, password=line.password))

    def _set(self, repository: str, access: Access) -> None:
        if access.username:
            self._known[repository] = access
        else:
            self._known.pop(repository, None)

    def find(self, repository: str) -> Access | None:
        """Give what was last shown to a repository; None if that was no name and password."""
        return self._known.get(repository)

    def note(self, repository: str, access: Access) -> None:
        """Keep what is shown to a repository now."""
        before = self._known.get(repository)
        self._set(repository, access)
        if before == self._known.get(repository):
            return
        line = _serialize(repository, access)
        try:
            if self._end + len(line) > MAX_SIZE:
                self._rewrite()
            else:
                os.pwrite(self.fd, line, self._end)
                self._end += len(line)
        except OSError as error:
            raise _failure(error) from error

    def _rewrite(self) -> None:
        data = b"".join(_serialize(name, access) for name, access in self._known.items())
        os.pwrite(self.fd, data, 0)
        os.ftruncate(self.fd, len(data))
        self._end = len(data)

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


def _serialize(repository: str, access: Access) -> bytes:
    recorded = msgspec.Raw(serialize_access(access))
    return (
        msgspec.json.encode(_Line(repository, access.username, access.password, recorded)) + b"\n"
    )


def _failure(error: OSError) -> StorageError:
    return StorageError("credentials", f"cannot be kept in memory: {error.strerror}")
