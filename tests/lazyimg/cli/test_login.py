"""`lazyimg login`."""

from __future__ import annotations

import base64
import io
import json
import sys
from typing import TYPE_CHECKING

import click
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fakes.registry import FakeRegistry
    from tests.lazyimg.cli.conftest import Result


@pytest.fixture(autouse=True)
def _users(registry: FakeRegistry) -> None:
    registry.auth = "basic"
    registry.users = {"user": "pass"}


def type_in(monkeypatch: pytest.MonkeyPatch, text: str, *, terminal: bool = False) -> None:
    stream = io.StringIO(text)
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stdin", stream)


def test_password_from_standard_input(
    run: Callable[..., Result],
    registry: FakeRegistry,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    type_in(monkeypatch, "pass\n")
    file = home / ".docker" / "config.json"
    result = run("login", registry.host, "-u", "user", "--password-stdin")
    assert result == (0, f"kept in {file}\n", "")
    kept = json.loads(file.read_text())["auths"][registry.host]["auth"]
    assert base64.b64decode(kept) == b"user:pass"
    assert file.stat().st_mode & 0o777 == 0o600


def test_credentials_as_a_flag_and_a_file_of_its_own(
    run: Callable[..., Result], registry: FakeRegistry, tmp_path: Path
) -> None:
    file = tmp_path / "auth.json"
    result = run("login", registry.host, "--creds", "user:pass", "--authfile", str(file))
    assert result.code == 0
    assert registry.host in json.loads(file.read_text())["auths"]


def test_wrong_password_is_not_kept(
    run: Callable[..., Result],
    registry: FakeRegistry,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    type_in(monkeypatch, "wrong\n")
    result = run("login", registry.host, "-u", "user", "--password-stdin")
    assert result.code == 76
    assert result.err == (
        f"lazyimg: {registry.host}: the registry refuses these credentials; "
        "check user name and password\n"
    )
    assert not (home / ".docker").exists()


def test_questions_on_a_terminal(
    run: Callable[..., Result], registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, "", terminal=True)
    answers = {"user name": "user", "password": "pass"}
    hidden = []

    def prompt(text: str, *, hide_input: bool, err: bool) -> str:
        assert err
        hidden.append(hide_input)
        return answers[text]

    monkeypatch.setattr(click, "prompt", prompt)
    assert run("login", registry.host).code == 0
    assert hidden == [False, True]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ((), "lazyimg: login: no user name; give it with --username\n"),
        (("-u", "user"), "lazyimg: login: no password; give it with --password-stdin\n"),
        (
            ("-u", "user", "--password-stdin"),
            "lazyimg: --password-stdin: nothing came from standard input\n",
        ),
    ],
)
def test_nobody_to_ask(
    flags: tuple[str, ...],
    text: str,
    run: Callable[..., Result],
    registry: FakeRegistry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    type_in(monkeypatch, "")
    assert run("login", registry.host, *flags) == (64, "", text)
