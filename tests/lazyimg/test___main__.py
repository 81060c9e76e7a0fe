"""``python -m lazyimg``."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest


def test_runs_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lazyimg", "--version"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("lazyimg", run_name="__main__")
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("lazyimg ")


INTERRUPTED = """
import os, signal, sys

class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == "lazyimg.cli.command":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupter())
if len(sys.argv) > 1:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.argv[1:] = ["--version"]
from lazyimg.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize(("ignored", "status"), [([], -signal.SIGINT), (["ignored"], 0)])
def test_interrupt_before_anything_runs_says_nothing(ignored: list[str], status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *ignored],
        capture_output=True,
        check=False,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": "formats"},
    )
    assert (done.returncode, done.stderr) == (status, "")
