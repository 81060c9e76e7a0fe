"""Files changed as a whole or not at all, and changed back."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from contextlib import suppress
from errno import EACCES, EPERM, EROFS
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazyimg.errors import (
    ConfigurationError,
    CorruptError,
    InUseError,
    LazyimgError,
    NotFoundError,
    NotRootError,
    StorageError,
)
from lazyimg.setup import change
from lazyimg.setup.change import MAX_SIZE, ConfigurationFile

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def file(tmp_path: Path) -> ConfigurationFile:
    """A file in a directory of its own."""
    path = tmp_path / "etc" / "config.toml"
    path.parent.mkdir()
    path.write_bytes(b"old")
    path.chmod(0o640)
    return ConfigurationFile(path)


def accept(_: Path) -> None:
    """Find nothing wrong."""


def names(file: ConfigurationFile) -> list[str]:
    return sorted(path.name for path in file.path.parent.iterdir())


def problem(kind: type[LazyimgError], step: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        step()
    return str(caught.value)


def test_change_and_undo(file: ConfigurationFile) -> None:
    seen: list[tuple[Path, bytes, bytes]] = []

    def check(aside: Path) -> None:
        seen.append((aside.parent, aside.read_bytes(), file.path.read_bytes()))

    file.change(b"old", b"new", check)
    assert seen == [(file.path.parent, b"new", b"old")]
    assert file.read() == b"new"
    assert file.copy.read_bytes() == b"old"
    assert names(file) == ["config.toml", "config.toml.before-lazyimg", "config.toml.lazyimg"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in file.path.parent.iterdir()} == {0o640}
    assert file.undo()
    assert file.read() == b"old"
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o640
    assert names(file) == ["config.toml"]


@given(st.binary(max_size=64), st.binary(max_size=64))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_undo_restores_every_byte(tmp_path: Path, before: bytes, after: bytes) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(before)
    file = ConfigurationFile(path)
    file.change(before, after, accept)
    assert path.read_bytes() == after
    assert file.undo() == (before != after)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_change_that_is_refused(file: ConfigurationFile) -> None:
    def refuse(_: Path) -> None:
        raise ConfigurationError("it", "is refused")

    problem(ConfigurationError, lambda: file.change(b"old", b"new", refuse))
    assert file.read() == b"old"
    assert names(file) == ["config.toml"]


def test_second_change_keeps_the_first_copy(file: ConfigurationFile) -> None:
    file.change(b"old", b"new", accept)
    file.change(b"new", b"newer", accept)
    assert file.copy.read_bytes() == b"old"
    assert file.undo()
    assert file.read() == b"old"


def test_others_changed_it(file: ConfigurationFile) -> None:
    file.change(b"old", b"new", accept)
    file.path.write_bytes(b"theirs")
    said = problem(ConfigurationError, file.undo)
    assert said == (
        f"{file.path}: was changed by somebody else after lazyimg changed it; take the lines out by"
        f" hand: compare it with {file.copy}, how it was before"
    )
    said = problem(ConfigurationError, lambda: file.change(b"theirs", b"new", accept))
    assert said == (
        f"{file.path}: was changed by somebody else after lazyimg changed it; remove"
        f" {file.path}.lazyimg to have it copied anew; {file.copy} is how it was before"
    )
    assert file.read() == b"theirs"
    assert file.copy.read_bytes() == b"old"


def test_others_undid_it(file: ConfigurationFile) -> None:
    file.change(b"old", b"new", accept)
    file.path.write_bytes(b"old")
    file.change(b"old", b"newer", accept)
    assert file.read() == b"newer"
    file.path.write_bytes(b"old")
    assert not file.undo()
    assert names(file) == ["config.toml"]


def test_others_change_it_at_the_same_time(file: ConfigurationFile) -> None:
    def write(_: Path) -> None:
        file.path.write_bytes(b"theirs")

    said = problem(InUseError, lambda: file.change(b"old", b"new", write))
    assert said == f"{file.path}: somebody else is changing it; try again"
    assert file.read() == b"theirs"


@pytest.mark.parametrize("step", ["rename", "write_file", "sync_directory"])
def test_end_in_the_middle(
    file: ConfigurationFile, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def end(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path if step == "rename" else change, step, end)
        with pytest.raises(KeyboardInterrupt):
            file.change(b"old", b"new", accept)
    assert file.read() == (b"new" if step == "sync_directory" else b"old")
    with suppress(NotFoundError):  # it ended before anything was noted
        file.undo()
    assert file.read() == b"old"
    assert names(file) == ["config.toml"]


def test_nothing_to_undo(file: ConfigurationFile) -> None:
    said = problem(NotFoundError, file.undo)
    assert said == f"{file.path}: lazyimg has not changed it; nothing is to undo"


def test_copy_that_is_gone_or_another(file: ConfigurationFile) -> None:
    file.change(b"old", b"new", accept)
    file.copy.write_bytes(b"other")
    wanted = (
        f"{file.copy}: is missing, or not the copy that lazyimg made; take the lines out of"
        f" {file.path} by hand"
    )
    assert problem(CorruptError, file.undo) == wanted
    file.copy.unlink()
    assert problem(CorruptError, file.undo) == wanted
    assert file.read() == b"new"


@pytest.mark.parametrize("text", ["", "[]", '{"before": 1}', json.dumps({"x": 1})])
def test_record_of_somebody_else(file: ConfigurationFile, text: str) -> None:
    file.path.with_name("config.toml.lazyimg").write_text(text)
    assert problem(CorruptError, file.undo) == (
        f"{file.path}.lazyimg: is not what lazyimg wrote; remove it; {file.copy} is config.toml"
        " from before"
    )


def test_no_file(file: ConfigurationFile) -> None:
    file.path.unlink()
    assert problem(NotFoundError, file.read) == (
        f"{file.path}: does not exist; name the file that containerd uses (--file), or make an"
        " empty one"
    )


def test_symbolic_link(file: ConfigurationFile) -> None:
    link = file.path.with_name("link.toml")
    link.symlink_to("config.toml")
    assert problem(ConfigurationError, ConfigurationFile(link).read) == (
        f"{link}: is a symbolic link; name the file that it leads to: --file {file.path}"
    )


def test_no_file_at_all(file: ConfigurationFile) -> None:
    directory = ConfigurationFile(file.path.parent)
    assert problem(ConfigurationError, directory.read) == f"{directory.path}: is no file"


def test_file_that_is_too_large(file: ConfigurationFile) -> None:
    file.path.write_bytes(bytes(MAX_SIZE + 1))
    assert problem(ConfigurationError, file.read) == f"{file.path}: over 1048576 bytes"


@pytest.mark.parametrize(
    ("number", "user", "kind", "remedy"),
    [
        (EACCES, 1000, NotRootError, "; run it as root"),
        (EPERM, 1000, NotRootError, "; run it as root"),
        (EPERM, 0, StorageError, ""),
        (EROFS, 1000, StorageError, ""),
    ],
)
def test_directory_that_cannot_be_written(
    file: ConfigurationFile,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    user: int,
    kind: type[LazyimgError],
    remedy: str,
) -> None:
    def fail(**_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(tempfile, "mkstemp", fail)
    said = problem(kind, lambda: file.change(b"old", b"new", accept))
    assert said == f"{file.path}: cannot be changed: {os.strerror(number)}{remedy}"
    assert names(file) == ["config.toml"]


def test_owner_stays(file: ConfigurationFile, monkeypatch: pytest.MonkeyPatch) -> None:
    owners: list[tuple[int, int]] = []
    real = os.fstat

    def another(handle: int) -> os.stat_result:
        return os.stat_result([*real(handle)[:4], 4321, *real(handle)[5:]])

    monkeypatch.setattr(os, "fstat", another)
    monkeypatch.setattr(os, "fchown", lambda _, user, group: owners.append((user, group)))
    file.change(b"old", b"new", accept)
    assert set(owners) == {(os.geteuid(), file.path.stat().st_gid)}
    assert len(owners) == 3
