"""The power is cut while images are mounted and filling; what is left must be right.

Drives kernel-vm from outside: a signal to it is a power cut of the kernel inside, whose disk image
is kept. tests/real/power_cut_guest.py is what runs inside.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import random
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from tests.real.docker_registry import running_registry
from tests.real.lazyimg_process import Lazyimg
from tests.real.plain_image import make_plain_image
from tests.real.scale import scaled

if TYPE_CHECKING:
    from collections.abc import Iterator

CUTS: Final = scaled(30, least=2)
IMAGES: Final = {"one": 96 << 20, "two": 8 << 20}
FILLING: Final = 25.0  # seconds until the cut, at most, after the mounts
BOOT: Final = 300.0
SEED: Final = 5
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
def running_machine(directory: Path) -> Iterator[Machine]:
    """Boot with the disk image in a directory, which the guest sees too."""
    command = [f"{PROJECT}/scripts/kernel-vm", "--disk-image", f"{directory}/disk.img"]
    options = ["--disk", "2G", "--memory", "1G", f"--share={directory}", f"--timeout={2 * BOOT}"]
    guest = ["--", "python", "-m", "tests.real.power_cut_guest", str(directory)]
    with subprocess.Popen(
        [*command, *options, *guest],
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


def test_power_cuts(tmp_path: Path) -> None:
    chance = random.Random(SEED)  # noqa: S311 - moments
    images = {}
    with running_registry(tmp_path) as registry:
        for number, (tag, size) in enumerate(IMAGES.items()):
            image = make_plain_image(tmp_path, tag, seed=number, size=size)
            lazyimg = Lazyimg(tmp_path / "nowhere")
            lazyimg.verb("convert", image.reference, f"{registry.origin}/{tag}")
            images[tag] = str(image.files)
    (tmp_path / "images.json").write_text(json.dumps(images))
    synced: dict[str, list[str]] = {}
    checked, kept = [], 0
    for number in range(CUTS + 1):
        (tmp_path / "synced.json").write_text(json.dumps(synced))
        with running_machine(tmp_path) as machine:
            if number == CUTS:
                machine.wait_for("checked")
            else:
                machine.wait_for("mounted", chance.randint(1, len(IMAGES)))
                time.sleep(chance.uniform(0, FILLING))
            said = machine.cut()
        check_disk(tmp_path / "disk.img")
        assert [words for words in said if words[0] in {"wrong", "lost"}] == []
        checked += [words[1:] for words in said if words[0] == "checked"]
        logging.getLogger(__name__).info("cut %d: %s", number, checked[-1:])
        for words in said:
            if words[0] == "fresh":
                synced.clear()
            elif words[0] == "mounted":
                synced.setdefault(words[1].strip(), [])
            elif words[0] == "synced":
                synced[words[1]].append(words[2].strip())
                kept += 1
    logging.getLogger(__name__).info("checked: %s, synced: %d", checked, kept)
    assert len(checked) == CUTS
    assert kept > 0
    assert any(int(read) > 0 for read, _ in checked)
