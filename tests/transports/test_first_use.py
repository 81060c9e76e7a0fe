"""The first use of an image whose layers have no index, over FUSE and fanotify."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.contracts.first_use import (
    check_each_byte_once,
    check_kill_in_the_middle,
    ordinary_image,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.real.lazyimg_process import Lazyimg
    from tests.real.safety import SafetyNet


@pytest.fixture
def compare(net: SafetyNet) -> Callable[[Path, Path], None]:
    """Compare by a process that the net watches."""

    def diff(expected: Path, target: Path) -> None:
        net.run(["diff", "--recursive", expected, target])

    return diff


def test_each_byte_once(
    lazyimg: Lazyimg, tmp_path: Path, target: Path, compare: Callable[[Path, Path], None]
) -> None:
    check_each_byte_once(lazyimg, tmp_path, target, compare)


@pytest.mark.parametrize("transport", ["fuse"])
def test_kill_in_the_middle(
    lazyimg: Lazyimg, tmp_path: Path, target: Path, compare: Callable[[Path, Path], None]
) -> None:
    check_kill_in_the_middle(lazyimg, tmp_path, target, compare)


@pytest.mark.parametrize("transport", ["fuse"])
def test_what_was_streamed_is_what_its_spans_say(
    lazyimg: Lazyimg, tmp_path: Path, target: Path
) -> None:
    """The cache's check compares each span's digest with the device."""
    with ordinary_image(tmp_path) as (_, reference, _), lazyimg.serving():
        lazyimg.mount(reference, target)
        checked = json.loads(lazyimg.verb("cache", "check", "--json"))
        assert len(checked) == 2
        assert all(one["checked"] and not one["wrong"] for one in checked)
        lazyimg.unmount(target)
