"""Who can reach the snapshotter: root, and nobody else, at no time. Needs root."""

from __future__ import annotations

import os
import socket
import stat
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest

from tests.real.snapshotter_process import running_snapshotter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NOBODY: Final = 65534
REFUSED: Final = 13
"""Exit status of a child that was refused."""


@pytest.fixture
def open_path(tmp_path: Path) -> Iterator[Path]:
    """Give a directory that everybody may look into, and make everything with the mask 0."""
    for each in (tmp_path, *tmp_path.parents):
        if each.stat().st_mode & 0o077 == 0:
            each.chmod(0o755)
    mask = os.umask(0)
    yield tmp_path
    os.umask(mask)


@pytest.mark.parametrize("user", [1, 1000, NOBODY])
def test_others_are_refused(open_path: Path, user: int) -> None:
    path = open_path / "socket"
    with running_snapshotter(open_path / "root", path):
        found = path.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o600, 0, 0)
        assert status(start_as(user, lambda: connect(path))) == REFUSED
        assert connect(path) == 0


def test_others_are_refused_in_the_first_moment(open_path: Path) -> None:
    path = open_path / "socket"
    child = start_as(NOBODY, lambda: connect_when_it_is_there(path))
    with running_snapshotter(open_path / "root", path):
        assert status(child) == REFUSED


def test_others_see_nothing_of_what_is_unpacked(open_path: Path) -> None:
    root = open_path / "root"
    with running_snapshotter(root, open_path / "socket"):
        for each in ("snapshots", "records.sqlite"):
            assert (root / each).exists()
            assert status(start_as(NOBODY, partial(look, root / each))) == REFUSED


def start_as(user: int, call: Callable[[], int]) -> int:
    """Start a child of another user that ends with what `call` gives; return its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            code = call()
        finally:
            os._exit(code)
    return child


def status(child: int) -> int:
    _, ended = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(ended)


def connect(path: Path) -> int:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except PermissionError:
            return REFUSED
    return 0


def connect_when_it_is_there(path: Path) -> int:
    while True:
        try:
            return connect(path)
        except FileNotFoundError:
            continue


def look(path: Path) -> int:
    try:
        os.close(os.open(path, os.O_RDONLY))
    except PermissionError:
        return REFUSED
    return 0
