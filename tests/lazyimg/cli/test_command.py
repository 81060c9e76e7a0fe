"""The way in: verbs, failures as one line, exit codes; in this process and in one of its own."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import click
import pytest

from lazyimg import errors
from lazyimg.cli.command import ALIASES, VERBS, main, root
from lazyimg.errors import LazyimgError, RegistryError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

HEAVY = ("aiohttp", "asyncio", "rich", "msgspec", "zstandard", "construct", "lazyimg.config")


def command_of(name: str) -> click.Command:
    command = root.get_command(click.Context(root), name)
    assert command is not None
    return command


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make `lazyimg status` raise."""

    def invoke(_: object) -> None:
        raise error

    monkeypatch.setattr(command_of("status"), "invoke", invoke)


def run_process(arguments: Sequence[str], **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lazyimg", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "80"} | variables,
    )


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text and verb.summary in text for name, verb in VERBS.items())
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("name", VERBS)
def test_summary_is_the_first_line_of_the_verbs_help(name: str) -> None:
    command = command_of(name)
    assert command.name == name
    assert (command.help or "").splitlines()[0] == VERBS[name].summary


@pytest.mark.parametrize("name", VERBS)
def test_verbs_help_fits_80_columns(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_alias_is_the_same_command() -> None:
    for alias, name in ALIASES.items():
        assert command_of(alias) is command_of(name)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from lazyimg.cli.command import main; main(['--help']); "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "[]"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("lazyimg 0.")


def test_no_verb_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 64
    assert "Commands:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["mont"], "lazyimg: no such command 'mont'; 'lazyimg --help' shows how"),
        (
            ["status", "--nope"],
            "lazyimg: status: no such option '--nope'; 'lazyimg status --help' shows how",
        ),
        (
            ["fsid"],
            "lazyimg: fsid: missing argument 'REF'; 'lazyimg fsid --help' shows how",
        ),
    ],
)
def test_usage_error(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 64
    captured = capsys.readouterr()
    assert captured.err.replace("--nope'.", "--nope'") == f"{text}\n"
    assert captured.out == ""


def test_each_family_has_its_exit_code_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    families = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, LazyimgError)
    ]
    for family in families:
        fail_with(monkeypatch, family("a/place", "is\nbroken", "mend it"))
        assert main(["status"]) == family.exit_code
        assert capsys.readouterr().err == "lazyimg: a/place: is broken; mend it\n"
    assert RegistryError in families


def test_control_characters_do_not_reach_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(monkeypatch, LazyimgError("a\x1b[31m", "b"))
    main(["status"])
    assert capsys.readouterr().err == "lazyimg: a\\x1b[31m: b\n"


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 74, "/x: No space left on device"),
        (OSError(errno.EIO, "Input/output error"), 74, "Input/output error"),
        (ZeroDivisionError("oh"), 1, "internal error: ZeroDivisionError: oh; --debug shows where"),
        (click.ClickException("odd"), 1, "odd"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_other_failures(
    error: BaseException,
    code: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fail_with(monkeypatch, error)
    assert main(["status"]) == code
    assert capsys.readouterr().err == f"lazyimg: {text}\n"


@pytest.mark.parametrize("arguments", [["--debug", "status"], ["status", "--debug"]])
def test_debug_shows_where(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*arguments, "--address", str(tmp_path / "none")]) == 75
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith("lazyimg: ")


def test_reader_that_goes_away() -> None:
    command = f"{sys.executable} -m lazyimg config default | true; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    assert result.stdout.strip() in {"141", "0"}  # 0: everything fitted into the pipe before


def test_closed_pipe_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fail_with(monkeypatch, BrokenPipeError())
    saved = os.dup(1)
    try:
        assert main(["status"]) == 141
    finally:
        os.dup2(saved, 1)
        os.close(saved)
    assert capfd.readouterr().err == ""


def test_closed_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BrokenPipeError

    fail_with(monkeypatch, LazyimgError("a", "b"))
    monkeypatch.setattr(click, "echo", refuse)
    assert main(["status"]) == 1


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    result = run_process(["status"], LAZYIMG_ADDRESS=str(tmp_path / "none"))
    assert result.returncode == 75
    assert result.stdout == ""
    assert result.stderr == (
        f"lazyimg: {tmp_path / 'none'}: no daemon answers there; start it with: lazyimg serve\n"
    )


def test_completion_of_a_verb() -> None:
    result = run_process(
        [], _LAZYIMG_COMPLETE="bash_complete", COMP_WORDS="lazyimg sta", COMP_CWORD="1"
    )
    assert "status" in result.stdout
    assert result.returncode == 0
