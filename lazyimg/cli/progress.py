"""How far long work is: bars on a terminal, lines elsewhere, nothing. Always on standard error."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

import click

from lazyimg.cli.output import format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Progress, TaskID

PLAIN_INTERVAL: Final = 2.0
"""Seconds between two lines about the same task."""

MAX_NAME: Final = 28
"""Characters of a task's name beside its bar: what 80 columns have room for."""


class Meter(Protocol):
    """Shows tasks, each known by its name."""

    def update(self, task: str, done: int, total: int | None) -> None:
        """Say that `done` bytes of `total` (None: not known yet) are done."""
        ...

    def finish(self, task: str, note: str = "") -> None:
        """Say that a task has ended: with everything done, or as the note says."""
        ...


@contextmanager
def open_meter(mode: str) -> Iterator[Meter]:
    """Give the meter for `mode`: "auto", "plain" or "quiet"."""
    if mode == "quiet":
        yield QuietMeter()
    elif mode == "auto" and sys.stderr.isatty():
        with _bars() as bars:
            yield RichMeter(bars)
    else:
        yield PlainMeter(_print_line, time.monotonic)


def _print_line(line: str) -> None:
    click.echo(line, err=True)


class QuietMeter:
    """Shows nothing."""

    def update(self, task: str, done: int, total: int | None) -> None:
        """Do nothing."""

    def finish(self, task: str, note: str = "") -> None:
        """Do nothing."""


class PlainMeter:
    """Prints a line about each task now and then, and one at its end."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._write = write
        self._clock = clock
        self._started: dict[str, tuple[float, int]] = {}
        self._printed: dict[str, float] = {}
        self._last: dict[str, tuple[int, int | None]] = {}

    def update(self, task: str, done: int, total: int | None) -> None:
        """Print a line if the last one is `PLAIN_INTERVAL` old."""
        now = self._clock()
        began, base = self._started.setdefault(task, (now, done))
        self._last[task] = (done, total)
        if now - self._printed.setdefault(task, now) < PLAIN_INTERVAL:
            return
        self._printed[task] = now
        rate = (done - base) / (now - began)
        parts = [_amount(done, total), f"{format_size(rate)}/s"]
        if total is not None and rate > 0 and total > done:
            parts.append(f"{format_duration((total - done) / rate)} left")
        self._write(f"{task}: {', '.join(parts)}")

    def finish(self, task: str, note: str = "") -> None:
        """Print the last line."""
        done, total = self._last.get(task, (0, None))
        began, base = self._started.get(task, (self._clock(), 0))
        elapsed = self._clock() - began
        if note:
            self._write(f"{task}: {note}")
            return
        rate = f"{format_size((done - base) / elapsed)}/s, " if done > base and elapsed else ""
        self._write(f"{task}: {_amount(done, total)}, {rate}done")


def _amount(done: int, total: int | None) -> str:
    if total is None:
        return format_size(done)
    percent = f" ({done * 100 // total} %)" if total else ""
    return f"{format_size(done)} of {format_size(total)}{percent}"


class RichMeter:
    """Shows a bar for each task."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._ends: dict[str, tuple[int, int]] = {}

    def update(self, task: str, done: int, total: int | None) -> None:
        """Move the task's bar."""
        end = done if total is None else total
        self._ends[task] = (end, end)
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(shorten_name(task), total=total)
        self._bars.update(self._tasks[task], completed=done, total=total)

    def finish(self, task: str, note: str = "") -> None:
        """Fill the task's bar, or put a line with the note in its place."""
        if note:
            self._bars.console.print(f"{task}: {note}", markup=False, highlight=False)
            if task in self._tasks:
                self._bars.remove_task(self._tasks.pop(task))
            return
        self.update(task, *self._ends.get(task, (0, 0)))


def shorten_name(name: str) -> str:
    """Give a name that leaves room for its bar: the end says more than the start."""
    return name if len(name) <= MAX_NAME else f"…{name[1 - MAX_NAME :]}"


def _bars() -> Progress:
    from rich.console import Console  # noqa: PLC0415  80 ms that only a terminal needs
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        expand=True,
    )
