"""Processes that read a mount at random offsets and check every byte against a reference tree.

    with running_readers(mount, reference, processes=8, reads=10_000) as readers:
        ...                              # whatever shall happen meanwhile
        report = readers.finish(timeout=600)
    assert report.wrong == []

Each process is this file, run as a plain program: it needs the standard library only, starts in
a moment, and opens every file once. Without `reads` it goes on until `finish` stops it. The
reference has the same files, on another file system; other kinds of entries are passed over.

A read that the kernel answers with fewer bytes than there are is *short*: its first bytes were
right and a later one could not be had, as read(2) has it. It counts as a read, not as an error.
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

TYPE_CHECKING = False  # typing itself would cost each process its start
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType
    from typing import Any

MAX_LENGTH = 16_384  # bytes of one read
KEPT = 10  # of what was wrong, by each process


@dataclass
class Report:
    """What reading was like.

    Attributes:
        reads: that ended, well or not.
        size: bytes that were read, and compared.
        errors: how many reads failed, by errno's name.
        short: reads that gave fewer bytes than there are.
        wrong: the first reads whose bytes were other ones: (path, offset, bytes).
        slowest: seconds of the slowest read.
        slow: the slowest ones: (seconds, path, offset, bytes, result).
    """

    reads: int = 0
    size: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    short: int = 0
    wrong: list[tuple[str, int, int]] = field(default_factory=list)
    slowest: float = 0.0
    slow: list[tuple[float, str, int, int, str]] = field(default_factory=list)

    def __str__(self) -> str:
        """Say it in a line."""
        return (
            f"{self.reads} reads ({self.size >> 20} MiB), errors {self.errors}, {self.short} short,"
            f" {len(self.wrong)} wrong, slowest {self.slowest:.2f} s"
        )


class Readers:
    """The processes."""

    def __init__(self, processes: list[subprocess.Popen[str]]) -> None:
        self.processes = processes

    def finish(self, timeout: float, *, stop: bool = False) -> Report:
        """Wait for all, or stop them after the reads that they are in; give all reports in one.

        Raises:
            TimeoutError: a read does not end.
        """
        if stop:
            for process in self.processes:
                process.send_signal(signal.SIGTERM)
        end = time.monotonic() + timeout
        reports = []
        for process in self.processes:
            try:
                output, _ = process.communicate(timeout=max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired as error:
                raise TimeoutError(f"reader {process.pid} has not ended") from error
            assert process.returncode == 0, f"reader ended with {process.returncode}"
            reports.append(Report(**json.loads(output)))
        return add_up(reports)


@contextmanager
def running_readers(
    mount: Path,
    reference: Path,
    *,
    processes: int,
    reads: int | None = None,
    seed: int = 0,
    pause: float = 0.0,
) -> Iterator[Readers]:
    """Start processes that do `reads` in all, or read until they are stopped; kill what is left.

    Each waits for `pause` seconds after each read.
    """
    each = None if reads is None else -(-reads // processes)
    started = []
    try:
        for number in range(processes):
            settings = {
                "mount": str(mount),
                "reference": str(reference),
                "reads": each,
                "seed": seed * 1000 + number,
                "pause": pause,
            }
            started.append(
                subprocess.Popen(
                    [sys.executable, "-I", "-S", __file__, json.dumps(settings)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd="/",
                    start_new_session=True,
                )
            )
        yield Readers(started)
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
        for process in started:
            process.wait(60)
            if process.stdout is not None:
                process.stdout.close()


def add_up(reports: list[Report]) -> Report:
    """Give several reports in one."""
    errors: Counter[str] = Counter()
    for report in reports:
        errors.update(report.errors)
    return Report(
        reads=sum(report.reads for report in reports),
        size=sum(report.size for report in reports),
        errors=dict(errors),
        short=sum(report.short for report in reports),
        wrong=[wrong for report in reports for wrong in report.wrong],
        slowest=max((report.slowest for report in reports), default=0.0),
        slow=sorted((slow for report in reports for slow in report.slow), reverse=True)[:KEPT],
    )


# The process.


class Reader:
    """One process: its files, its chance, its report."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.report = Report()
        self.stopped = False
        self._left = settings["reads"]
        self._pause = settings["pause"]
        self._chance = random.Random(settings["seed"])  # noqa: S311 - offsets
        self._files = list(open_files(settings["mount"], settings["reference"]))
        self._sizes = [size for _, size, _, _ in self._files]

    def stop(self, _number: int, _frame: FrameType | None) -> None:
        """End after the read under way."""
        self.stopped = True

    def run(self) -> None:
        """Read until there is nothing left to do."""
        while not self.stopped and self._left != 0:
            if self._left is not None:
                self._left -= 1
            chance = self._chance
            name, size, here, there = chance.choices(self._files, self._sizes)[0]
            length = min(1 << chance.randrange(MAX_LENGTH.bit_length()), size)
            self._read(name, chance.randrange(size - length + 1), length, here, there)
            if self._pause:
                time.sleep(self._pause)

    def _read(self, name: str, offset: int, length: int, here: int, there: int) -> None:
        report = self.report
        begun = time.monotonic()
        try:
            data = os.pread(here, length, offset)
            result = "" if len(data) == length else "short"
        except OSError as error:
            data, result = b"", errno.errorcode.get(error.errno or 0, "?")
            report.errors[result] = report.errors.get(result, 0) + 1
        seconds = time.monotonic() - begun
        report.reads += 1
        report.size += len(data)
        report.short += result == "short"
        if os.pread(there, length, offset)[: len(data)] != data and len(report.wrong) < KEPT:
            report.wrong.append((name, offset, length))
        if len(report.slow) < KEPT or seconds > report.slow[-1][0]:
            report.slowest = max(report.slowest, seconds)
            report.slow.append((round(seconds, 3), name, offset, length, result))
            report.slow.sort(reverse=True)
            del report.slow[KEPT:]


def open_files(mount: str, reference: str) -> Iterator[tuple[str, int, int, int]]:
    """Open every regular file that is not empty, in both trees."""
    for directory, _, names in os.walk(reference):
        for name in sorted(names):
            path = os.path.join(directory, name)  # noqa: PTH118 - pathlib takes long to import
            if os.path.isfile(path) and not os.path.islink(path):  # noqa: PTH113, PTH114
                there = os.open(path, os.O_RDONLY)
                size = os.fstat(there).st_size
                inner = os.path.relpath(path, reference)
                if size:
                    here = os.open(f"{mount}/{inner}", os.O_RDONLY)
                    yield inner, size, here, there


def main() -> None:
    """Read as the argument says, and print the report."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # opening may take long
    reader = Reader(json.loads(sys.argv[1]))
    signal.signal(signal.SIGTERM, reader.stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    reader.run()
    print(json.dumps(asdict(reader.report)))  # noqa: T201 - for the harness


if __name__ == "__main__":
    main()
