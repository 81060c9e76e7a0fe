"""What the page on k3s says to write, in what k3s generates: containerd takes it as it is meant.

The generated files are cut down to what matters here: the tables that name a snapshotter.
"""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Final

from lazyimg.setup.settings import missing_lines, settings_for
from tests.real.debian_packages import unpacked

PAGE: Final = Path(__file__).resolve().parents[2] / "docs/how-to/k3s.md"
GENERATED: Final = """\
version = 3
imports = ["{directory}/config-v3.toml.d/*.toml"]
root = "{directory}/root"
state = "{directory}/state"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  disable_snapshot_annotations = true
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = "{directory}/certs.d"
"""


def test_lines_for_containerd_2(tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml\n(version = 3\n.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "config.toml").write_text(GENERATED.replace("{directory}", str(tmp_path)))
    (tmp_path / "config-v3.toml.d").mkdir()
    (tmp_path / "config-v3.toml.d" / "lazyimg.toml").write_text(block)
    program = unpacked("sid", "containerd") / "usr/bin/containerd"
    dumped = subprocess.run(
        [program, "--config", tmp_path / "config.toml", "config", "dump"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    effective = tomllib.loads(dumped.stdout)
    settings = settings_for(
        3, (2, 1, 0), address="/run/lazyimg/snapshotter.sock", root="/var/lib/lazyimg/snapshotter"
    )
    assert missing_lines(effective, settings) == []
    images = effective["plugins"]["io.containerd.cri.v1.images"]
    assert images["registry"]["config_path"] == f"{tmp_path}/certs.d"  # as it was
