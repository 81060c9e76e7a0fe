"""A cache's keeper that does nothing by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lazyimg.cache.device_file import DeviceFile
    from lazyimg.errors import StorageError


class NotingKeeper:
    """Takes down what wants a sync; `refusal` is what a write gets."""

    def __init__(self) -> None:
        self.noted: list[tuple[str, bool]] = []
        self.refusal: StorageError | None = None

    def admit(self, length: int) -> None:
        if self.refusal is not None:
            raise self.refusal

    def note(self, file: DeviceFile, *, whole: bool) -> None:
        self.noted.append((file.name, whole))

    async def write(self, file: DeviceFile, offset: int, parts: Sequence[memoryview]) -> None:
        file.write_now(offset, parts)
