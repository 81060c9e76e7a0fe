"""What containerd is told to mount."""

from __future__ import annotations

import pytest

from lazyimg.snapshotter.overlay import Mount, plan_mount


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
