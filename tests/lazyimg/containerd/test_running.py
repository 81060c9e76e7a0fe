"""A containerd that runs, and may not know the snapshotter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazyimg.containerd.running import find_fault
from lazyimg.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes.containerd import FakeContainerd


async def test_snapshotter_is_there(containerd: FakeContainerd, tmp_path: Path) -> None:
    assert containerd.snapshotters >= {"lazyimg"}
    assert await find_fault(str(tmp_path / "socket"), "lazyimg") is None


async def test_configuration_is_newer(containerd: FakeContainerd, tmp_path: Path) -> None:
    containerd.snapshotters.remove("lazyimg")
    fault = await find_fault(str(tmp_path / "socket"), "lazyimg")
    assert type(fault) is ConfigurationError
    assert str(fault) == (
        f"containerd at {tmp_path}/socket: has no snapshotter 'lazyimg';"
        " restart containerd (systemctl restart containerd; its containers run on)"
    )


async def test_it_does_not_run(tmp_path: Path) -> None:
    assert await find_fault(str(tmp_path / "socket"), "lazyimg") is None
