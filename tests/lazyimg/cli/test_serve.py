"""`lazyimg serve`: the configuration reaches the daemon."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from lazyimg import app
from lazyimg.errors import KernelBusyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lazyimg.config import Config
    from tests.lazyimg.cli.conftest import Result


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    logging.raiseExceptions = True


def test_flags_go_before_the_environment(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    served: list[Config] = []
    monkeypatch.setattr(app, "run", served.append)
    monkeypatch.setenv("LAZYIMG_LOG_LEVEL", "error")
    monkeypatch.setenv("LAZYIMG_DOMAIN_ID", "other")
    monkeypatch.chdir(tmp_path)
    result = run(
        "serve", "--root", "state", "--address", "a.sock", "--log-level", "debug",
        "--log-format", "json",
    )  # fmt: skip
    assert result.code == 0
    (config,) = served
    assert config.root == str(tmp_path / "state")
    assert config.address == str(tmp_path / "a.sock")
    assert (config.log.level, config.log.format, config.domain_id) == ("debug", "json", "other")
    assert logging.root.level == logging.DEBUG


def test_failure_is_one_line(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Config) -> None:
        raise KernelBusyError("/dev/cachefiles", "is held by process 7", "stop it")

    monkeypatch.setattr(app, "run", fail)
    assert run("serve") == (72, "", "lazyimg: /dev/cachefiles: is held by process 7; stop it\n")


def test_wrong_log_level(run: Callable[..., Result]) -> None:
    result = run("serve", "--log-level", "loud")
    assert result.code == 78
    assert result.err == (
        'lazyimg: --log-level: expected debug, info, warning, error, got "loud"\n'
    )
