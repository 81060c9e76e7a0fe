"""Images that are made ready before their containers, with a maker that does as it is told."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from lazyimg.errors import RegistryError, StorageError
from lazyimg.snapshotter.beforehand import Beforehand
from lazyimg.snapshotter.lifecycle import RemoteLayer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest


class Scripted:
    """Makes images ready, each when the test says so; "refused" fails."""

    def __init__(self) -> None:
        self.begun: asyncio.Queue[str] = asyncio.Queue()
        self.go = asyncio.Semaphore(0)
        self.most = 0
        self._at_once = 0

    async def make_ready(self, layer: RemoteLayer) -> None:
        self._at_once += 1
        self.most = max(self.most, self._at_once)
        self.begun.put_nowait(layer.reference)
        await self.go.acquire()
        self._at_once -= 1
        if layer.reference == "refused":
            raise RegistryError("reg.test", "does not answer")


def layer(name: str) -> RemoteLayer:
    return RemoteLayer("sha256:chain", name, "linux/amd64", 2)


@asynccontextmanager
async def working(beforehand: Beforehand) -> AsyncIterator[None]:
    task = asyncio.create_task(beforehand.run())
    yield
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def begun(images: Scripted) -> str:
    async with asyncio.timeout(10):
        return await images.begun.get()


async def test_one_after_the_other_and_first_what_was_there() -> None:
    images = Scripted()
    beforehand = Beforehand(images, lambda: [layer("old"), layer("older")])
    async with working(beforehand):
        assert await begun(images) == "old"
        beforehand.add(layer("new"))
        assert images.begun.empty()
        for name in ("older", "new"):
            images.go.release()
            assert await begun(images) == name
    assert images.most == 1


async def test_what_fails_is_said_and_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    images = Scripted()
    beforehand = Beforehand(images, lambda: [layer("refused"), layer("next")])
    images.go.release()
    async with working(beforehand):
        assert [await begun(images) for _ in range(2)] == ["refused", "next"]
    assert caplog.messages == [
        "refused: is not ready before its first container: reg.test: does not answer"
    ]


async def test_records_that_cannot_be_read(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> list[RemoteLayer]:
        raise StorageError("records", "cannot be read")

    images = Scripted()
    beforehand = Beforehand(images, fail)
    beforehand.add(layer("new"))
    async with working(beforehand):
        assert await begun(images) == "new"
    assert caplog.messages == ["images are not made ready beforehand: records: cannot be read"]
