"""What containerd is told to mount."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lazyimg.snapshotter import overlay
from lazyimg.snapshotter.overlay import Mount, plan_mount

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("lowers", "upper", "expected"),
    [
        ([], "/u", Mount("bind", "/u", ("rw", "rbind"))),
        (["/a"], None, Mount("bind", "/a", ("ro", "rbind"))),
        (
            ["/a"], "/u",
            Mount("overlay", "overlay", ("workdir=/w", "upperdir=/u", "lowerdir=/a", "index=off")),
        ),
        (
            ["/b", "/a"], "/u",
            Mount(
                "overlay", "overlay", ("workdir=/w", "upperdir=/u", "lowerdir=/b:/a", "index=off")
            ),
        ),
        (["/b", "/a"], None, Mount("overlay", "overlay", ("lowerdir=/b:/a", "index=off"))),
    ],
)  # fmt: skip
def test_mount(lowers: list[str], upper: str | None, expected: Mount) -> None:
    assert plan_mount(lowers, upper, "/w" if upper else None, ["index=off"]) == expected


def test_options_of_this_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "INDEX", tmp_path / "index")
    assert overlay.list_options() == ()
    (tmp_path / "index").write_text("N")
    assert overlay.list_options() == ("index=off",)
