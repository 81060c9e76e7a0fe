"""Flags that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
from click.testing import CliRunner

from lazyimg.cli.invocation import Invocation
from lazyimg.cli.options import (
    access_options,
    check_platform,
    common_options,
    output_option,
    pass_invocation,
    platform_option,
    progress_option,
    read_access,
)
from lazyimg.errors import UsageError

if TYPE_CHECKING:
    from lazyimg.api.messages import Access

NOTHING = {
    "authfile": None,
    "creds": None,
    "plain_http": False,
    "insecure": False,
    "tls_verify": False,
    "ca_file": None,
    "hosts_dir": None,
}


def call(decorator: Any, *arguments: str) -> dict[str, Any]:
    """Give what a command with these flags gets."""
    got: dict[str, Any] = {}

    def function(**flags: Any) -> None:
        got.update(flags)

    result = CliRunner().invoke(click.command()(decorator(function)), arguments)
    assert result.exit_code == 0, result.output
    return got


@pytest.mark.parametrize(
    ("arguments", "output"),
    [([], "table"), (["--json"], "json"), (["--format", "json"], "json")],
)
def test_output(arguments: list[str], output: str) -> None:
    assert call(output_option, *arguments) == {"output": output}


@pytest.mark.parametrize(
    ("arguments", "progress"),
    [
        ([], "auto"),
        (["-q"], "quiet"),
        (["--progress", "plain"], "plain"),
        (["--progress", "plain", "--quiet"], "quiet"),
    ],
)
def test_progress(arguments: list[str], progress: str) -> None:
    assert call(progress_option, *arguments) == {"progress": progress}


@pytest.mark.parametrize(
    ("text", "platform"),
    [
        ("", ""),
        ("local", ""),
        ("linux/arm64", "linux/arm64"),
        ("linux/aarch64/v8", "linux/arm64"),
        ("linux/arm/v7", "linux/arm/v7"),
    ],
)
def test_platform(text: str, platform: str) -> None:
    assert check_platform(text) == platform
    assert call(platform_option, "--platform", text) == {"platform": platform}


def test_platform_that_is_none() -> None:
    with pytest.raises(UsageError, match=r"^--platform: expected os/arch"):
        check_platform("a/b/c/d")


def access_of(*arguments: str) -> Access:
    access: Access = call(access_options, *arguments)["access"]
    return access


def test_access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ca.pem").touch()
    Path("hosts").mkdir()
    access = access_of(
        "--authfile", "auth.json", "--ca-file", "ca.pem", "--creds", "u:p", "--hosts-dir", "hosts"
    )
    assert access.hosts_dir == str(tmp_path / "hosts")
    assert access.authfile == str(tmp_path / "auth.json")
    assert access.ca_file == str(tmp_path / "ca.pem")
    assert (access.username, access.password) == ("u", "p")
    assert not access.plain_http
    assert not access.insecure
    assert access_of("--plain-http").plain_http


@pytest.mark.parametrize(
    ("arguments", "insecure"),
    [
        (["--insecure"], True),
        (["--skip-verify"], True),
        (["--tls-verify=false"], True),
        (["--tls-verify=true"], False),
        ([], False),
    ],
)
def test_certificates(arguments: list[str], insecure: bool) -> None:  # noqa: FBT001  a parameter
    assert access_of(*arguments).insecure is insecure


@pytest.mark.parametrize("text", ["a\udcff:b", "a:b\udcff"])
def test_creds_that_are_no_text(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--creds: a user name or password that is not UTF-8$"):
        read_access(NOTHING | {"creds": text})


@pytest.mark.parametrize("text", ["nocolon", ":p"])
def test_creds_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--creds: expected USER:PASS$"):
        read_access(NOTHING | {"creds": text})


@pytest.mark.parametrize("before", [True, False])
def test_common_flags_before_and_behind_the_verb(
    before: bool,  # noqa: FBT001  a parameter
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    got: list[Invocation] = []

    @click.group()
    @common_options
    def group() -> None: ...

    @group.command()
    @common_options
    @pass_invocation
    def verb(invocation: Invocation) -> None:
        got.append(invocation)

    flags = ["--address", "a.sock", "--config", "c.toml", "--debug"]
    arguments = [*flags, "verb"] if before else ["verb", *flags]
    assert CliRunner().invoke(group, arguments).exit_code == 0
    assert got == [Invocation(True, Path("c.toml"), str(tmp_path / "a.sock"))]  # noqa: FBT003
