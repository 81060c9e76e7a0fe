"""Names and passwords that users gave for one image: in memory, never on disk.

They are needed for as long as the image is read, and by the process that follows one that died:
they are JSON, in lines of memory.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from lazyimg.host.memory_lines import MemoryLines
from lazyimg.images.access import parse_access, serialize_access

if TYPE_CHECKING:
    from lazyimg.registry.ports import Access


class _Line(msgspec.Struct, frozen=True):
    repository: str
    username: str
    password: str
    access: msgspec.Raw


class ShownAccess:
    """What was last shown to each repository, where that has a name and a password.

    Args:
        fd: of the file that a process before this one has kept; owned from now on. None: a new one.

    Attributes:
        fd: of the file.

    Raises:
        StorageError: from every method, when there is no memory.
    """

    def __init__(self, fd: int | None = None) -> None:
        self._known: dict[str, Access] = {}
        self._lines = MemoryLines("lazyimg-shown", fd)
        self.fd = self._lines.fd
        for text in self._lines.read():
            self._read(text)

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
        if self._lines.has_room(line):
            self._lines.add(line)
        else:
            self._lines.replace(_serialize(name, known) for name, known in self._known.items())

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def _serialize(repository: str, access: Access) -> bytes:
    recorded = msgspec.Raw(serialize_access(access))
    return msgspec.json.encode(_Line(repository, access.username, access.password, recorded))
