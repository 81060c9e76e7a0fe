"""What a first use has made is pushed, in the background, if it may be."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from lazyimg.errors import AccessDeniedError
from lazyimg.images.image import Image
from lazyimg.images.library import ChainRecord
from lazyimg.images.sharing import Sharing
from lazyimg.registry.ports import Access
from tests.fakes.gzip_layer import make_layer
from tests.fakes.node import run_node

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

ACCESS = Access(username="somebody")
DIGEST = f"sha256:{'a' * 64}"


def image(reference: str) -> Image:
    return Image(reference, DIGEST, "linux/arm64", ChainRecord("key", "f" * 64, 4096, []))


class Publisher:
    """Pushes when the test says so."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.pushed: list[tuple[str, str, Access]] = []
        self.failure = failure
        self.gate = asyncio.Event()
        self.begun = asyncio.Event()

    async def push(self, text: str, platform_text: str, access: Access) -> None:
        self.begun.set()
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.pushed.append((text, platform_text, access))


async def ended(sharing: Sharing) -> None:
    await asyncio.wait_for(asyncio.gather(*sharing._tasks), 60)


async def test_one_after_the_other(caplog: pytest.LogCaptureFixture) -> None:
    publisher = Publisher()
    sharing = Sharing(publisher)
    with caplog.at_level(logging.INFO):
        for tag in "ab":
            sharing.begin(image(f"registry.test/app:{tag}"), ACCESS)
        await asyncio.wait_for(publisher.begun.wait(), 60)
        assert publisher.pushed == []
        publisher.gate.set()
        await ended(sharing)
    assert publisher.pushed == [(f"registry.test/app@{DIGEST}", "linux/arm64", ACCESS)] * 2
    assert caplog.text.count(f"registry.test/app@{DIGEST}: its indexes were pushed") == 2


async def test_who_may_not_write(caplog: pytest.LogCaptureFixture) -> None:
    publisher = Publisher(AccessDeniedError("registry.test/app", "may not be written"))
    publisher.gate.set()
    sharing = Sharing(publisher)
    sharing.begin(image("registry.test/app:1"), ACCESS)
    await ended(sharing)
    assert "its indexes were not pushed: registry.test/app: may not be written" in caplog.text


async def test_image_of_a_directory_is_kept_here() -> None:
    sharing = Sharing(Publisher())
    sharing.begin(image("oci:/images/layout:tag"), ACCESS)
    assert not sharing._tasks


async def test_end_of_the_daemon() -> None:
    publisher = Publisher()
    sharing = Sharing(publisher)
    await sharing.close()
    sharing.begin(image("registry.test/app:1"), ACCESS)
    await asyncio.wait_for(publisher.begun.wait(), 60)
    await sharing.close()
    assert publisher.pushed == []


async def test_artifact_is_in_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And another node that may use it reads no layer whole."""
    async with run_node(tmp_path, monkeypatch) as node:
        node.registry.add_image("app", "1", make_layer())
        opened = await node.images.open(node.reference, "", Access(), stream=True)
        assert opened.streamed
        sharing = Sharing(node.publisher)
        sharing.begin(opened, Access())
        await ended(sharing)
        _, (found,) = await node.publisher.find(node.reference, "", Access())
        assert len(found.pushed) == 1
