"""The daemon's process: what it is started with, and how it fails."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import pytest

from lazyimg import app, worker
from lazyimg.config import CachefilesSettings, Config, LogSettings
from lazyimg.errors import KernelBusyError
from lazyimg.worker import main, worker_command

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    logging.raiseExceptions = True


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (Config(), "{}"),
        (Config(root="/r"), '{"root":"/r"}'),
        (
            Config(domain_id="d", cachefiles=CachefilesSettings(tag="t", brun=50)),
            '{"domain_id":"d","cachefiles":{"tag":"t","brun":50}}',
        ),
    ],
)
def test_command_has_what_differs_from_the_defaults(
    config: Config, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Config] = []
    monkeypatch.setattr(app, "run", lambda config, *_: served.append(config))
    command = worker_command(config)
    assert command == [sys.executable, "-P", "-m", "lazyimg.worker", text]
    assert main(command[4:]) == 0
    assert served == [config]


def test_logs_are_set_up_first(monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[int] = []
    monkeypatch.setattr(app, "run", lambda *_: levels.append(logging.root.level))
    main(worker_command(Config(log=LogSettings(level="debug")))[4:])
    assert levels == [logging.DEBUG]


def test_failure_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise KernelBusyError("/dev/cachefiles", "is held by\nprocess \x1b7", "stop it")

    monkeypatch.setattr(app, "run", fail)
    assert main(["{}"]) == 72
    assert capsys.readouterr() == (
        "",
        "lazyimg: /dev/cachefiles: is held by process \\x1b7; stop it\n",
    )


def test_internal_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("odd")

    monkeypatch.setattr(app, "run", fail)
    assert main(["{}"]) == 1
    assert capsys.readouterr().err == (
        "lazyimg: internal error: ValueError: odd; --debug shows where\n"
    )
    assert main(["--debug", "{}"]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert worker.__doc__ is not None
