"""Images to mount without a kernel: records, a root directory, and the files of a cache."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from lazyimg.errors import KernelError
from lazyimg.images.image import Image
from lazyimg.images.library import ChainRecord, LayerRecord
from lazyimg_formats.erofs.tree import Node
from lazyimg_formats.erofs.writer import serialize_image

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from lazyimg.images.library import Library
    from tests.fakes.host_mounts import FakeMounts

FAILURE = KernelError("mount", "failed on demand")

ROOT = Node(
    stat.S_IFDIR | 0o2751,
    uid=os.getuid(),
    gid=os.getgid(),
    mtime=1_234_567_890,
    mtime_ns=7,
    children={},
)


def image(name: str = "a") -> Image:
    layer = LayerRecord("sha256:1", 1, "type", "format", "table", f"device-{name}", 4096)
    chain = ChainRecord(name, name * 64, 4096, [layer])
    return Image(f"reg.test/{name}:1", "sha256:" + name * 64, "linux/amd64", chain)


class Cache:
    """The cache's files.

    Attributes:
        new: are not there until an image that has them is unmounted.
        elsewhere: are there in a domain that was used before.
        moved: came from there.
        domains: that were used, in order.
    """

    def __init__(self, host: FakeMounts) -> None:
        self.host = host
        self.new: set[str] = set()
        self.elsewhere: set[str] = set()
        self.moved: list[set[str]] = []
        self.domains: list[str] = []
        self.waited: list[str] = []
        self.brought: set[str] = set()
        self.failure: Exception | None = None

    def shortage(self) -> None:
        """Give nothing: there is room."""

    def linked(self, cookies: Iterable[str]) -> set[str]:
        if isinstance(self.failure, OSError):
            raise self.failure
        return set(cookies) - self.new

    def use_domain(self, domain_id: str) -> None:
        self.domains.append(domain_id)

    def strays(self, cookies: Iterable[str]) -> set[str]:
        return set(cookies) & self.elsewhere

    def move_strays(self, cookies: Iterable[str]) -> None:
        assert self.host.table == []
        self.moved.append(set(cookies))

    async def bring_staged(self, cookies: Iterable[str]) -> None:
        assert self.host.table
        self.brought |= set(cookies)

    async def opened(self, cookie: str) -> None:
        assert self.host.table
        self.waited.append(cookie)
        if self.failure is not None:
            raise self.failure


def make_root(root: Path) -> Path:
    """Make a daemon's directory with the bootstraps of the images "a", "b" and "c"."""
    for name in ("mnt", "scratch", "bootstraps"):
        (root / name).mkdir()
    for name in "abc":
        (root / "bootstraps" / (name * 64)).write_bytes(serialize_image(ROOT))
    return root


def recorded(library: Library) -> list[tuple[str, str]]:
    return [(record.directory, record.state) for record in library.mounts()]


def leftovers(root: Path) -> list[str]:
    return sorted(path.name for name in ("mnt", "scratch") for path in (root / name).iterdir())


def kernel_mount(root: Path, name: str = "a") -> str:
    return str(root / "mnt" / (name * 64))
