"""What containerd is told to mount."""

from __future__ import annotations

from pathlib import Path

import pytest

from lazyimg.errors import ConfigurationError
from lazyimg.snapshotter import overlay
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


def test_options_of_this_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "INDEX", tmp_path / "index")
    assert overlay.list_options() == ()
    (tmp_path / "index").write_text("N")
    assert overlay.list_options() == ("index=off",)


def test_root_that_no_option_can_name() -> None:
    overlay.check_root(Path("/var/lib/a name=with-what.else"))
    text = r"^/a:b,c: has ':' and ',' in its path, which the options of an overlay cannot have; "
    with pytest.raises(ConfigurationError, match=text + r"choose another --root$"):
        overlay.check_root(Path("/a:b,c"))
