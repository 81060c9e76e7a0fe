"""A containerd in this process, and a client of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lazyimg.containerd.client import Client, open_client
from tests.fakes.containerd import FakeContainerd, running_containerd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture
def containerd(tmp_path: Path) -> Iterator[FakeContainerd]:
    """Run a containerd."""
    with running_containerd(tmp_path / "socket") as running:
        yield running


@pytest.fixture
async def client(containerd: FakeContainerd, tmp_path: Path) -> AsyncIterator[Client]:
    """Give a client in the namespace ``tests``."""
    async with open_client(str(tmp_path / "socket"), "tests", "lazyimg") as client:
        yield client
