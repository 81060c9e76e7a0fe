"""What a device's file needs of its cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lazyimg.cache.device_file import DeviceFile


class Keeper(Protocol):
    """Keeps the files of a cache synced, and its space free."""

    def admit(self, length: int) -> None:
        """Refuse (StorageError) to store `length` more bytes when space is short.

        Duties: any thread may call, for each write.
        """
        ...

    def note(self, file: DeviceFile, *, whole: bool) -> None:
        """Take note that a file wants `sync`, at once if it is whole.

        Duties: any thread may call; raise nothing.
        """
        ...

    async def write(self, file: DeviceFile, offset: int, parts: Sequence[memoryview]) -> None:
        """Call the file's `write_now` in a thread; when this returns or raises it has ended."""
        ...
