"""The supervisor as a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lazyimg.supervisor.command import LogSettings, supervisor_command

MEMORY = 15 << 10  # KiB
LOGS = LogSettings("info", "text")

WORKER = """
import os, signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(sys.argv[1])))
channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
channel.connect("\\0" + os.environ["NOTIFY_SOCKET"][1:])
channel.send(b"STATUS=" + os.environ["LAZYIMG_WORKER_RESTARTS"].encode())
channel.send(b"STATUS=%d" % os.getpid())
channel.send(b"READY=1")
while True:
    signal.pause()
"""


def worker(code: int = 0) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", WORKER, str(code)]


@pytest.fixture
def manager(tmp_path: Path) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    channel.bind(str(tmp_path / "notify"))
    channel.settimeout(30)
    return channel


def start(command: list[str], tmp_path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        supervisor_command(command, LOGS),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
    )


def test_worker_is_started_again_and_stopped(tmp_path: Path, manager: socket.socket) -> None:
    with manager:
        supervisor = start(worker(), tmp_path)
        assert manager.recv(100) == b"STATUS=0"
        first = int(manager.recv(100)[7:])
        assert manager.recv(100) == b"READY=1"
        os.kill(first, signal.SIGKILL)
        assert manager.recv(100) == b"STATUS=1"
        assert int(manager.recv(100)[7:]) != first
        supervisor.send_signal(signal.SIGTERM)
        assert manager.recv(100) == b"STOPPING=1"
        _, errors = supervisor.communicate(timeout=30)
    assert supervisor.returncode in (0, 128 + signal.SIGTERM)  # it may not have had its handler
    assert "the worker ended with signal 9; it is started again now" in errors


def test_exit_code_is_the_workers(tmp_path: Path, manager: socket.socket) -> None:
    with manager:
        supervisor = start(worker(5), tmp_path)
        while manager.recv(100) != b"READY=1":
            pass
        supervisor.send_signal(signal.SIGTERM)
        _, errors = supervisor.communicate(timeout=30)
    assert supervisor.returncode == 5
    assert "the worker ended with code 5" in errors


def test_failure_of_the_worker_is_said_by_it_alone(tmp_path: Path) -> None:
    program = "import sys; print('lazyimg: no', file=sys.stderr); sys.exit(72)"
    supervisor = start([sys.executable, "-c", program], tmp_path)
    _, errors = supervisor.communicate(timeout=30)
    assert (supervisor.returncode, errors) == (72, "lazyimg: no\n")


def test_supervisor_is_small(tmp_path: Path, manager: socket.socket) -> None:
    with manager:
        supervisor = start(worker(), tmp_path)
        while manager.recv(100) != b"READY=1":
            pass
        lines = Path(f"/proc/{supervisor.pid}/status").read_text().splitlines()
        (memory,) = [int(line.split()[1]) for line in lines if line.startswith("VmRSS")]
        supervisor.send_signal(signal.SIGINT)
        supervisor.communicate(timeout=30)
    assert memory < MEMORY


def test_fds_of_a_service_manager_are_passed_on(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("content")
    program = "import os, sys; print(os.environ['LISTEN_FDNAMES'], os.read(3, 9), file=sys.stderr)"
    command = supervisor_command([sys.executable, "-c", program], LOGS)
    script = (
        "import os, sys; fd = os.open(sys.argv[1], os.O_RDONLY); os.dup2(os.dup(fd), 3);"
        "os.environ |= {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1', 'LISTEN_FDNAMES': 'x'};"
        "os.execv(sys.argv[2], sys.argv[2:])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "kept"), *command],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert ended.stderr == "x b'content'\n"


def test_it_imports_nothing_but_what_it_needs() -> None:
    program = (
        "import sys; sys.path.append(sys.argv[1]); import lazyimg.supervisor.command;"
        "print(*(name for name in sys.modules if 'site-packages' in"
        " str(getattr(sys.modules[name], '__file__', ''))"
        " or name in {'asyncio', 'dataclasses', 'inspect', 'pathlib', 'subprocess'}))"
    )
    root = str(Path(__file__).resolve().parents[3])
    shown = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, root],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.split() == []
