"""`lazyimg login`."""

from __future__ import annotations

import base64
import io
import json
import ssl
import sys
from typing import TYPE_CHECKING

import click
import pytest
import trustme

from tests.lazyimg.cli.conftest import registry_in_thread

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


def test_password_that_is_no_text(
    run: Callable[..., Result], registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, "pass\udcff\n")
    result = run("login", registry.host, "-u", "user", "--password-stdin")
    assert result.code == 64
    assert result.err == "lazyimg: login: a user name or password that is not UTF-8\n"


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


def test_kept_where_the_configuration_says(
    run: Callable[..., Result],
    registry: FakeRegistry,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "elsewhere.json"))
    file, config = tmp_path / "node.json", tmp_path / "config.toml"
    config.write_text(f'[registry]\nauthfile = "{file}"\n')
    result = run("login", registry.host, "--creds", "user:pass", "--config", str(config))
    assert result == (0, f"kept in {file}\n", "")
    result = run("logout", registry.host, "--config", str(config))
    assert result == (0, f"removed from {file}\n", "")
    assert not (tmp_path / "elsewhere.json").exists()
    assert not (home / ".docker").exists()
    flag = tmp_path / "flag.json"
    login = ("login", registry.host, "--creds", "user:pass", "--config", str(config))
    assert run(*login, "--authfile", str(flag)) == (0, f"kept in {flag}\n", "")


def test_certificates_of_the_configured_directory(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with registry_in_thread(context) as private:
        private.auth, private.users = "token", {"user": "pass"}
        login = ("login", private.host, "--creds", "user:pass")
        assert "its certificate cannot be verified" in run(*login).err
        directory = tmp_path / "certs.d" / private.host
        directory.mkdir(parents=True)
        authority.cert_pem.write_to_path(str(directory / "ca.crt"))
        monkeypatch.setenv("LAZYIMG_REGISTRY_HOSTS_DIR", str(tmp_path / "certs.d"))
        assert run(*login).code == 0


def test_proxy_of_the_configuration(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAZYIMG_REGISTRY_PROXY", "http://127.0.0.1:1")
    result = run("login", "registry.test", "--creds", "user:pass")
    assert result.code == 69
    assert result.err == (
        "lazyimg: https://registry.test/v2/: the proxy 127.0.0.1 cannot be reached: Connection"
        " refused\n"
    )


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
