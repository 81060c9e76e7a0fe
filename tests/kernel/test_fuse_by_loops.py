"""FUSE on kernels that mount EROFS from block devices only: 6.1, and 6.12 as it is built here.

The first one asks nothing again of a process that follows one that died.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.contracts.loops import LoopContract
from tests.contracts.transports import EndingsContract, Setting, running_setting
from tests.real.lazyimg_process import Lazyimg
from tests.real.safety import Guard, SafetyNet, guarded, safety_net

if TYPE_CHECKING:
    from collections.abc import Iterator


SETTINGS: Final = {"LAZYIMG_TRANSPORT": "fuse"}


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="session")
def guard(place: Path) -> Iterator[Guard]:
    with guarded(place) as running:
        yield running


@pytest.fixture
def net(guard: Guard, place: Path, disk: Path) -> Iterator[SafetyNet]:
    with safety_net(guard, place, kept=disk) as net:
        yield net


@pytest.fixture(scope="module")
def setting(disk: Path) -> Iterator[Setting]:
    with running_setting(disk) as running:
        yield running


class TestEndings(EndingsContract):
    """Of the suite of all transports, what depends on what a kernel hands over."""

    @pytest.fixture
    def settings(self) -> dict[str, str]:
        return SETTINGS


class TestLoops(LoopContract):
    """The suite of loop devices."""

    @pytest.fixture
    def lazyimg(self, disk: Path, net: SafetyNet) -> Iterator[Lazyimg]:
        with tempfile.TemporaryDirectory(dir=disk) as directory:
            yield Lazyimg(Path(directory, "state"), SETTINGS)

    def test_doctor_says_so(self, lazyimg: Lazyimg) -> None:
        checks = json.loads(lazyimg.verb("doctor", "--json"))
        (check,) = [check for check in checks if check["name"] == "transport fuse"]
        assert (check["ok"], check["detail"]) == (
            True, "an image was mounted and read, by loop devices"
        )  # fmt: skip

    @pytest.fixture
    def target(self, tmp_path: Path, net: SafetyNet) -> Path:
        directory = tmp_path / "mnt"
        directory.mkdir()
        return directory
