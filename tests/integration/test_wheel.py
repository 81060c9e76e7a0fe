"""The wheel installs into an empty environment and runs there."""

from __future__ import annotations

import subprocess
import sys
import venv
from typing import TYPE_CHECKING

from tests.architecture.source import PROJECT

if TYPE_CHECKING:
    from pathlib import Path


def test_wheel_runs_in_an_empty_environment(tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, PROJECT)
    (wheel,) = tmp_path.glob("lazyimg-*-py3-none-any.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv/bin"
    run(programs / "python", "-m", "pip", "install", "--quiet", wheel)
    assert "mount" in run(programs / "lazyimg", "--help")
    installed = run(
        programs / "python", "-c", "import lazyimg, lazyimg_formats; print(lazyimg.__file__)"
    )
    assert installed.startswith(str(tmp_path))


def run(*command: str | Path) -> str:
    """Run a command outside the project's directory; return what it says."""
    return subprocess.run(command, cwd="/", check=True, capture_output=True, text=True).stdout
