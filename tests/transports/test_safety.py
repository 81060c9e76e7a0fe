"""The net below the tests: a file system that never answers keeps nobody."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from tests.real import guard as freeing
from tests.real import safety
from tests.real.safety import READING, Guard, SafetyNet, StuckError, guarded, safety_net

if TYPE_CHECKING:
    from collections.abc import Iterator

SILENT: Final = """
import ctypes, os, struct, sys
fd = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
if ctypes.CDLL(None).mount(b"silent", sys.argv[1].encode(), b"fuse", 7, options):
    sys.exit("mount")
unique = struct.unpack_from("=IIQ", os.read(fd, 1 << 17))[2]
reply = struct.pack("=IIIIHHIIHHII", 7, 31, 1 << 17, 0, 12, 9, 1 << 17, 1, 32, 0, 0, 0)
os.write(fd, struct.pack("=IiQ", 16 + len(reply) + 20, 0, unique) + reply + bytes(20))
print("ready", flush=True)
while True:
    try:
        os.read(fd, 1 << 18)  # who waits for what nobody took can be killed
    except OSError:
        break  # aborted
    print("taken", flush=True)
"""
"""A FUSE server that answers INIT, and takes everything else."""


class Silent(NamedTuple):
    """A mount whose every user waits for ever, and the process that serves it."""

    target: Path
    server: subprocess.Popen[bytes]

    def start_reader(self, net: SafetyNet) -> subprocess.Popen[bytes]:
        """Start a reader, which waits when this returns."""
        reader = net.start(["cat", self.target / "file"])
        self.expect(b"taken\n")
        return reader

    def expect(self, line: bytes) -> None:
        """Wait for what the server says."""
        assert self.server.stdout is not None
        assert self.server.stdout.readline() == line


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[Silent]:
    target = tmp_path / "silent"
    target.mkdir()
    command: list[str | Path] = [sys.executable, "-c", SILENT, target]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        silent = Silent(target, server)
        silent.expect(b"ready\n")
        try:
            yield silent
        finally:
            server.kill()


def read_silence(guard: Guard, silent: Silent) -> None:
    """Leave a reader stuck in a test."""
    with safety_net(guard, silent.target.parent) as net:
        reader = silent.start_reader(net)
        reader.kill()
        with pytest.raises(subprocess.TimeoutExpired):
            reader.wait(0.2)
        assert freeing.state_of(reader.pid) == "D"


def test_reader_that_cannot_be_killed_is_freed_and_the_test_fails(
    tmp_path: Path, silent: Silent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safety, "ENDING", 1.0)
    with guarded(tmp_path) as guard:
        with pytest.raises(StuckError, match=r"could not be killed: .*aborted FUSE .*0 were left"):
            read_silence(guard, silent)
        assert freeing.mounts_at(str(tmp_path)) == []


def read_too_long(silent: Silent) -> None:
    """Let a reader wait for longer than the guard does."""
    directory = silent.target.parent
    with guarded(directory) as guard, safety_net(guard, directory) as net:
        reader = silent.start_reader(net)
        guard.limit(0.1)
        _, said = net.finish(reader)
        assert reader.returncode == 1
        assert said
        end = time.monotonic() + READING
        while freeing.mounts_at(str(directory)):  # it is about to detach it
            assert time.monotonic() < end
            time.sleep(0.01)


def test_guard_acts_when_a_limit_passes(tmp_path: Path, silent: Silent) -> None:
    with pytest.raises(StuckError, match=r"a limit has passed\naborted FUSE connection \d+\n"):
        read_too_long(silent)
    assert freeing.mounts_at(str(tmp_path)) == []


def test_guard_acts_when_the_tests_have_ended(tmp_path: Path, silent: Silent) -> None:
    with pytest.raises(StuckError, match="aborted FUSE connection"), guarded(tmp_path):
        assert freeing.mounts_at(str(tmp_path)) != []
    assert freeing.mounts_at(str(tmp_path)) == []


def leave_mount(guard: Guard, target: Path) -> None:
    """Mount something, and forget it."""
    with safety_net(guard, target.parent):
        target.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", target], check=True, timeout=READING)


def test_mount_that_is_left_fails_the_test(tmp_path: Path) -> None:
    with guarded(tmp_path) as guard:
        with pytest.raises(StuckError, match="left mounted"):
            leave_mount(guard, tmp_path / "left")
        assert freeing.mounts_at(str(tmp_path)) == []


def test_function_in_a_process_of_its_own(tmp_path: Path) -> None:
    with guarded(tmp_path) as guard, safety_net(guard, tmp_path) as net:
        (tmp_path / "file").write_text("content")
        assert net.call(Path.read_text, tmp_path / "file") == "content"
        with pytest.raises(FileNotFoundError):
            net.call(Path.read_text, tmp_path / "missing")
        with pytest.raises(OSError, match="No such file"):
            net.run(["cat", tmp_path / "missing"])
        with pytest.raises(StuckError, match=r"did not end within 0\.2 s"):
            net.run(["sleep", "1000"], timeout=0.2)
