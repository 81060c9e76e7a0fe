"""Sockets for root."""

from __future__ import annotations

import socket
import stat
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import StorageError
from lazyimg.host.sockets import make_socket_directory, start_for_root

if TYPE_CHECKING:
    from pathlib import Path


class FakeServer:
    """Binds as gRPC does."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.started = False

    def add_insecure_port(self, address: str) -> int:
        try:
            self.socket.bind(address.removeprefix("unix:"))
        except OSError as error:
            raise RuntimeError("no such place") from error
        return 1

    async def start(self) -> None:
        self.started = True


async def test_socket_is_for_root_only_and_other_files_are_not(tmp_path: Path) -> None:
    server = FakeServer()
    path = tmp_path / "new" / "socket"
    make_socket_directory(path)
    make_socket_directory(path)
    await start_for_root(server, path)
    server.socket.close()
    assert server.started
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    (tmp_path / "file").touch(0o644)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


async def test_no_place_for_a_socket(tmp_path: Path) -> None:
    server = FakeServer()
    path = tmp_path / "file" / "socket"
    with pytest.raises(StorageError) as caught:
        await start_for_root(server, path)
    assert str(caught.value) == f"{path}: cannot listen: no such place; check the address"
    server.socket.close()
    (tmp_path / "file").touch()
    with pytest.raises(StorageError) as caught:
        make_socket_directory(path)
    assert str(caught.value) == f"{tmp_path}/file: cannot be made: File exists"
    (tmp_path / "other").touch(0o644)
    assert stat.S_IMODE((tmp_path / "other").stat().st_mode) == 0o644
