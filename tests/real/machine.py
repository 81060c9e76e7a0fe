"""kernel-vm, driven from outside: a guest says what comes true, and the power is cut.

A signal to kernel-vm is a power cut of the kernel inside, whose disk image is kept.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

BOOT: Final = 300.0
"""Seconds that it may take until it says something."""

PROJECT: Final = Path(__file__).resolve().parents[2]
TOOLS: Final = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}


class Machine:
    """A kernel that is up: what it says, line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.said: list[list[str]] = []
        self._process = process
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, args=(process.stdout,))
        self._reader.start()

    def _read(self, output: IO[str]) -> None:
        for line in output:
            if line.endswith("\n"):  # else the power was cut in the middle of it
                self._lines.put(line)
        self._lines.put("")

    def wait_for(self, word: str, count: int = 1) -> None:
        """Wait until it has said this so often."""
        end = time.monotonic() + BOOT
        while sum(words[0] == word for words in self.said) < count:
            line = self._lines.get(timeout=max(0.1, end - time.monotonic()))
            assert line, f"the kernel ended before it said {word}"
            self.said.append(line.split(maxsplit=3))

    def cut(self) -> list[list[str]]:
        """Cut the power; give all that was said."""
        self._process.send_signal(signal.SIGTERM)
        self._reader.join(60)
        assert self._process.wait(60) == 128 + signal.SIGTERM
        while line := self._lines.get():
            self.said.append(line.split(maxsplit=3))
        return self.said


@contextmanager
def running_machine(directory: Path, guest: str) -> Iterator[Machine]:
    """Boot with the disk image in a directory; run a module of tests.real, which sees it too."""
    command = [f"{PROJECT}/scripts/kernel-vm", "--disk-image", f"{directory}/disk.img"]
    options = ["--disk", "2G", "--memory", "1G", f"--share={directory}", f"--timeout={2 * BOOT}"]
    program = ["--", "python", "-m", f"tests.real.{guest}", str(directory)]
    with subprocess.Popen(
        [*command, *options, *program],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    ) as process:
        try:
            yield Machine(process)
        finally:
            if process.poll() is None:
                process.terminate()


def check_disk(image: Path) -> None:
    """Let e2fsck replay the journal; there must be nothing to repair."""
    for options, allowed in (("-fp", {0, 1}), ("-fn", {0})):
        ended = subprocess.run(
            ["e2fsck", options, image], env=TOOLS, capture_output=True, text=True, check=False
        )
        assert ended.returncode in allowed, ended.stdout
