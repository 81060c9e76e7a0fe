"""The first use of an image whose layers have no index, over cachefiles.

The device goes through the kernel: what is read afterwards must be in its cache.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from tests.contracts.first_use import check_each_byte_once

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real.lazyimg_process import Lazyimg


def compare(expected: Path, target: Path) -> None:
    subprocess.run(["diff", "--recursive", expected, target], check=True, timeout=120)


def test_each_byte_once(lazyimg: Lazyimg, tmp_path: Path, target: Path) -> None:
    check_each_byte_once(lazyimg, tmp_path, target, compare)
