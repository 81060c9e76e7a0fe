"""``python -m lazyimg``."""

from __future__ import annotations

import runpy
import sys

import pytest


def test_runs_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lazyimg", "--version"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("lazyimg", run_name="__main__")
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("lazyimg ")
