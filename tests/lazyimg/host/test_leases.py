"""Whether a file is open elsewhere, asked of the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from lazyimg.host.leases import is_open_elsewhere

if TYPE_CHECKING:
    from pathlib import Path

HOLD = "import os, sys; os.open(sys.argv[1], os.O_RDONLY); print('open', flush=True); input()"


def test_file_that_is_open_once_twice_and_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    assert not is_open_elsewhere(fd)
    second = os.open(path, os.O_RDONLY)
    assert is_open_elsewhere(fd)
    os.close(second)
    assert not is_open_elsewhere(fd)
    os.close(fd)


def test_file_that_another_process_has_open(tmp_path: Path) -> None:
    path = tmp_path / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    command: list[str | Path] = [sys.executable, "-c", HOLD, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        assert is_open_elsewhere(fd)
        holder.communicate(b"\n", timeout=30)
    assert not is_open_elsewhere(fd)
    os.close(fd)


def test_what_has_no_leases(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(OSError, match="Invalid argument"):
        is_open_elsewhere(fd)
    os.close(fd)
