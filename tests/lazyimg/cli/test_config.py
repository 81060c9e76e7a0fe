"""`lazyimg config`."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING

from lazyimg.config import list_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from tests.lazyimg.cli.conftest import Result


def test_default_is_a_commented_file(run: Callable[..., Result]) -> None:
    result = run("config", "default")
    assert result.code == 0
    assert tomllib.loads(result.out)["address"] == "/run/lazyimg/lazyimg.sock"
    assert all(setting.variable in result.out for setting in list_settings())


def test_dump_puts_everything_together(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.toml"
    file.write_text('root = "/file"\n[log]\nlevel = "debug"\n')
    monkeypatch.setenv("LAZYIMG_LOG_LEVEL", "error")
    result = run("config", "dump", "--config", str(file), "--address", "/flag.sock")
    dumped = tomllib.loads(result.out)
    assert (dumped["root"], dumped["address"], dumped["log"]["level"]) == (
        "/file",
        "/flag.sock",
        "error",
    )
    assert "#" not in result.out
    as_json = json.loads(run("config", "dump", "--json", "--config", str(file)).out)
    assert as_json["root"] == "/file"


def test_wrong_file(run: Callable[..., Result], tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("speed = 1\n")
    assert run("--config", str(file), "config", "dump") == (
        78,
        "",
        f"lazyimg: {file}: unknown key 'speed'; 'lazyimg config default' lists those there are\n",
    )
