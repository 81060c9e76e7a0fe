"""Sockets for root."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import ConfigurationError, InUseError, StorageError
from lazyimg.host.sockets import make_socket_directory, remove_stale_socket

if TYPE_CHECKING:
    from pathlib import Path


def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError) as caught:
        make_socket_directory(tmp_path / "file" / "socket")
    assert str(caught.value) == f"{tmp_path}/file: cannot be made: File exists"


@pytest.mark.parametrize(
    ("modes", "allowed"),
    [
        ((0o755, 0o755), True),
        ((0o700, 0o700), True),
        ((0o1777, 0o755), True),  # as below /tmp: nobody else can rename what is root's
        ((0o755, 0o1777), False),
        ((0o755, 0o775), False),
        ((0o755, 0o757), False),
        ((0o777, 0o755), False),
        ((0o770, 0o700), False),
    ],
)
def test_directories_in_which_others_may_write(
    tmp_path: Path,
    modes: tuple[int, int],
    allowed: bool,  # noqa: FBT001
) -> None:
    upper, lower = tmp_path / "upper", tmp_path / "upper/lower"
    lower.mkdir(parents=True)
    for directory, mode in zip((upper, lower), modes, strict=True):
        directory.chmod(mode)
    if allowed:
        make_socket_directory(lower / "socket")
        return
    with pytest.raises(ConfigurationError) as caught:
        make_socket_directory(lower / "socket")
    shared = lower if modes[0] in {0o755, 0o700} else upper
    assert str(caught.value) == (
        f"{lower}/socket: others than root may change {shared}, and so replace the socket; "
        "choose another address, or make the directory root's"
    )


def test_socket_on_which_somebody_listens(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        text = r"/socket: a daemon listens there; stop it, or use another address$"
        with pytest.raises(InUseError, match=text):
            remove_stale_socket(path)
        assert path.is_socket()
    remove_stale_socket(path)
    assert not path.exists()


def test_what_is_no_socket_stays(tmp_path: Path) -> None:
    remove_stale_socket(tmp_path / "none")
    (tmp_path / "file").write_text("mine")
    remove_stale_socket(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_socket_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(StorageError, match=r"cannot listen: .*wrong type"):
            remove_stale_socket(path)
    assert path.is_socket()


def test_stale_socket_that_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))

    def refuse(_path: Path, *, missing_ok: bool) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(type(path), "unlink", refuse)
    with pytest.raises(StorageError, match="cannot be removed: Operation not permitted"):
        remove_stale_socket(path)
