"""`lazyimg serve`: becomes a supervisor, whose worker gets the configuration."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest

from lazyimg.config import Config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.lazyimg.cli.conftest import Result


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What this process, as root's, would have become."""
    commands: list[list[str]] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "execv", lambda _, command: commands.append(command))
    return commands


def test_flags_go_before_the_environment(
    run: Callable[..., Result],
    commands: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("LAZYIMG_LOG_LEVEL", "error")
    monkeypatch.setenv("LAZYIMG_DOMAIN_ID", "other")
    monkeypatch.chdir(tmp_path)
    result = run(
        "serve", "--root", "state", "--address", "a.sock", "--log-level", "debug",
        "--log-format", "json",
    )  # fmt: skip
    assert result.code == 0
    (command,) = commands
    assert command[:3] == [sys.executable, "-I", "-S"]
    assert command[4:6] == ["debug", "json"]
    assert command[6:-1] == [sys.executable, "-P", "-m", "lazyimg.worker"]
    config = msgspec.json.decode(command[-1], type=Config)
    assert config.root == str(tmp_path / "state")
    assert config.address == str(tmp_path / "a.sock")
    assert (config.log.level, config.log.format, config.domain_id) == ("debug", "json", "other")


def test_debug_reaches_the_worker(run: Callable[..., Result], commands: list[list[str]]) -> None:
    run("serve", "--debug")
    assert commands[0][-2] == "--debug"


@pytest.mark.usefixtures("commands")
def test_wrong_log_level(run: Callable[..., Result]) -> None:
    result = run("serve", "--log-level", "loud")
    assert result.code == 78
    assert result.err == (
        'lazyimg: --log-level: expected debug, info, warning, error, got "loud"\n'
    )


def test_who_is_not_root_becomes_nothing(
    run: Callable[..., Result], commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = run("serve")
    assert result.code == 77
    assert result.err == "lazyimg: lazyimg serve: mounting needs root; run it as root\n"
    assert commands == []
