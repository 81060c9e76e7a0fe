"""What an image wants first is fetched when it is mounted, and no more."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from lazyimg.errors import RegistryError
from lazyimg.images.hints import Hints
from lazyimg.registry.ports import Access
from tests.fakes.devices import pattern
from tests.fakes.lazy_image import add_lazy_image
from tests.fakes.node import Node, run_node
from tests.fakes.stargz_layer import StargzLayer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

FILES = {f"file{number}": pattern(20_000, number) for number in range(9)}
FIRST = 3 * 20_480


class Prefetches:
    """Stands for a Prefetcher: notes what is asked, and waits."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.ended: list[str] = []
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def prefetch_first(self, image: Any, most: int) -> None:
        self.asked.append((image.reference, most))
        try:
            await self.gate.wait()
            if self.error is not None:
                raise self.error
        finally:
            self.ended.append(image.reference)


def image(name: str, *first: int) -> Any:
    layers = [SimpleNamespace(first=each) for each in first]
    return SimpleNamespace(reference=name, chain=SimpleNamespace(fsid=name, layers=layers))


@pytest.fixture
def prefetches() -> Prefetches:
    return Prefetches()


@pytest.fixture
async def hints(prefetches: Prefetches) -> AsyncIterator[Hints]:
    hints = Hints(prefetches, 100)  # type: ignore[arg-type]
    yield hints
    await hints.close()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_image_is_fetched_once_while_it_is_used(hints: Hints, prefetches: Prefetches) -> None:
    wants = image("wants", 0, 5)
    hints.begin(wants)
    hints.begin(wants)
    hints.begin(image("wants nothing", 0, 0))
    await settle()
    assert prefetches.asked == [("wants", 100)]
    prefetches.gate.set()
    await settle()
    hints.begin(wants)
    await settle()
    assert len(prefetches.asked) == 1
    for _ in range(3):
        hints.end(wants)
    hints.begin(wants)
    await settle()
    assert len(prefetches.asked) == 2


async def test_it_ends_with_its_last_user(hints: Hints, prefetches: Prefetches) -> None:
    wants = image("wants", 5)
    hints.end(wants)  # of a process before this one
    hints.begin(wants)
    hints.begin(wants)
    hints.end(wants)
    await settle()
    assert prefetches.ended == []
    hints.end(wants)
    await settle()
    assert prefetches.ended == ["wants"]


async def test_end_of_the_daemon(hints: Hints, prefetches: Prefetches) -> None:
    hints.begin(image("wants", 5))
    await settle()
    await hints.close()
    assert prefetches.ended == ["wants"]


@pytest.mark.parametrize(
    ("error", "level"),
    [(RegistryError("registry", "is away"), logging.INFO), (KeyError("secret"), logging.ERROR)],
)
async def test_failures_are_noted(
    hints: Hints,
    prefetches: Prefetches,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    level: int,
) -> None:
    caplog.set_level(logging.INFO)
    prefetches.error = error
    prefetches.gate.set()
    hints.begin(image("wants", 5))
    await settle()
    assert prefetches.ended == ["wants"]
    (record,) = caplog.records
    assert record.levelno == level
    assert record.getMessage().startswith("wants: what it wants first is not fetched")


async def test_nothing_where_the_configuration_allows_nothing(prefetches: Prefetches) -> None:
    hints = Hints(prefetches, 0)  # type: ignore[arg-type]
    hints.begin(image("wants", 5))
    await settle()
    assert prefetches.asked == []


@pytest.mark.parametrize("zstd", [False, True])
@pytest.mark.parametrize(("most", "fetched"), [(1 << 20, FIRST), (8192, 20_480)])
async def test_files_before_the_landmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, zstd: bool, most: int, fetched: int
) -> None:
    async with run_node(tmp_path, monkeypatch) as node:
        layers = [StargzLayer(FILES, zstd=zstd, wanted=3), StargzLayer({"b": b"b"}, zstd=zstd)]
        add_lazy_image(node.registry, "app", "1", layers)
        image = await node.images.open(node.reference, "", Access())
        assert [layer.first for layer in image.chain.layers] == [FIRST, 0]
        await mount_and_wait(node, image, most, fetched)


async def mount_and_wait(node: Node, image: Any, most: int, fetched: int) -> None:
    hints = Hints(node.prefetcher, most)
    node.mounts.used, node.mounts.unused = hints.begin, hints.end
    await node.mounts.mount(image, "/one", read_write=False)
    device = image.chain.layers[0].device
    await asyncio.gather(*hints._tasks.values())
    sink = node.transport.sinks[device]
    assert sink.has(0, fetched)
    assert not sink.has(fetched, 4096)
    await node.mounts.unmount("/one", lazy=False)
    assert node.host.table == []
    await hints.close()
