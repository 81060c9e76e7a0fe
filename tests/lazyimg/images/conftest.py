"""Mounts of images over a table of mounts that holds the kernel's rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lazyimg.host.own_mounts import OwnMounts
from lazyimg.images.cache_mounts import CacheMounts
from lazyimg.images.library import Library
from lazyimg.images.mounts import Mounts
from lazyimg.images.readers import Readers
from tests.fakes.host_mounts import FakeMounts
from tests.fakes.image_mounts import Cache, image, make_root

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> FakeMounts:
    """Stand for the kernel."""
    return FakeMounts().install(monkeypatch)


@pytest.fixture
def cache(host: FakeMounts) -> Cache:
    """Stand for the cache's files."""
    return Cache(host)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Give a daemon's directory."""
    return make_root(tmp_path)


@pytest.fixture
def library(root: Path) -> Iterator[Library]:
    """Give records of the images "a", "b" and "c"."""
    library = Library(root / "library.sqlite")
    for name in "abc":
        library.add_chain(image(name).chain)
    yield library
    library.close()


@pytest.fixture
def way(root: Path, cache: Cache) -> CacheMounts:
    """Mount through the kernel's cache."""
    return CacheMounts(root, "lazyimg", 1 << 20, cache)


@pytest.fixture
def mounts(root: Path, library: Library, way: CacheMounts) -> Mounts:
    """Give what is tested."""
    return Mounts(OwnMounts(root, "lazyimg"), way, library, readers=Readers())
