"""FUSE where EROFS mounts loop devices, on this machine's own kernel."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.contracts.loops import LoopContract
from tests.real.lazyimg_process import Lazyimg

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real.safety import SafetyNet


class TestLoops(LoopContract):
    """The suite."""

    @pytest.fixture
    def lazyimg(self, disk: Path, net: SafetyNet) -> Iterator[Lazyimg]:
        settings = {"LAZYIMG_TRANSPORT": "fuse", "LAZYIMG_FUSE_MOUNT": "loop"}
        with tempfile.TemporaryDirectory(dir=disk) as directory:
            yield Lazyimg(Path(directory, "state"), settings)
