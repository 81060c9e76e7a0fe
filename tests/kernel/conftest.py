"""Real parts that the tests on the real kernel share."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.real.docker_registry import Registry, running_registry
from tests.real.lazyimg_process import Lazyimg, mounts_below

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def disk() -> Iterator[Path]:
    """Give a directory on a file system that can hold a cache; every user may go through it."""
    given = os.environ.get("LAZYIMG_VM_DISK")
    if given:
        yield Path(given)
        return
    with tempfile.TemporaryDirectory(prefix="lazyimg-test-", dir="/var/tmp") as made:
        Path(made).chmod(0o711)
        yield Path(made)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """Run an empty registry that asks for nothing."""
    with running_registry(tmp_path) as running:
        yield running


@pytest.fixture
def lazyimg(disk: Path) -> Iterator[Lazyimg]:
    """Give a place for a daemon, gone afterwards."""
    with tempfile.TemporaryDirectory(dir=disk) as directory:
        yield Lazyimg(Path(directory, "state"))
        assert mounts_below(Path(directory)) == []


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Give a directory to mount on."""
    directory = tmp_path / "mnt"
    directory.mkdir()
    return directory
