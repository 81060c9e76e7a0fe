"""What the tests on this machine's own kernel share: a net below them, and a disk.

Everything is mounted in a temporary directory.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.contracts.transports import Setting, running_setting
from tests.real.lazyimg_process import Lazyimg
from tests.real.safety import Guard, SafetyNet, guarded, loop_disk, safety_net

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE: Final = 8 << 30
"""Bytes of the disk, which has holes."""


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the directory below which everything is mounted."""
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="session")
def guard(place: Path) -> Iterator[Guard]:
    """Run the process that acts when the tests cannot."""
    with guarded(place) as running:
        yield running


@pytest.fixture(scope="session")
def disk(guard: Guard, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a file system for the daemons' state."""
    with loop_disk(tmp_path_factory.mktemp("disk"), size=SIZE) as top:
        yield top


@pytest.fixture
def net(guard: Guard, place: Path, disk: Path) -> Iterator[SafetyNet]:
    """Give the test's net."""
    with safety_net(guard, place, kept=disk) as net:
        yield net


@pytest.fixture(scope="session")
def setting(disk: Path) -> Iterator[Setting]:
    """Serve images that share a layer."""
    with running_setting(disk) as running:
        yield running


@pytest.fixture(params=["fuse", "fanotify"])
def transport(request: pytest.FixtureRequest) -> str:
    """Give the name of each transport."""
    name: str = request.param
    return name


@pytest.fixture
def lazyimg(disk: Path, transport: str, net: SafetyNet) -> Iterator[Lazyimg]:
    """Give a place for a daemon, gone afterwards."""
    with tempfile.TemporaryDirectory(dir=disk) as directory:
        yield Lazyimg(Path(directory, "state"), {"LAZYIMG_TRANSPORT": transport})


@pytest.fixture
def target(tmp_path: Path, net: SafetyNet) -> Path:
    """Give a directory to mount on."""
    directory = tmp_path / "mnt"
    directory.mkdir()
    return directory
