"""Real parts that the integration tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.real.docker_registry import Registry, running_registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """Run an empty registry that asks for nothing."""
    with running_registry(tmp_path) as running:
        yield running
