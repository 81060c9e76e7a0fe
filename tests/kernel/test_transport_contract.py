"""The contract of transports, over cachefiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.contracts.transports import Setting, TransportContract, running_setting
from tests.real.safety import Guard, SafetyNet, guarded, safety_net

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="session")
def guard(place: Path) -> Iterator[Guard]:
    with guarded(place) as running:
        yield running


@pytest.fixture
def net(guard: Guard, place: Path) -> Iterator[SafetyNet]:
    with safety_net(guard, place) as net:
        yield net


@pytest.fixture(scope="module")
def setting(disk: Path) -> Iterator[Setting]:
    with running_setting(disk) as running:
        yield running


class TestContract(TransportContract):
    """The suite."""

    @pytest.fixture
    def transport(self) -> str:
        return "cachefiles"
