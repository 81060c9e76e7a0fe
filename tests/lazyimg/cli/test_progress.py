"""Progress: bars on a terminal, lines elsewhere, nothing; never on standard output."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

from lazyimg.cli.progress import (
    MAX_NAME,
    PlainMeter,
    QuietMeter,
    RichMeter,
    open_meter,
    shorten_name,
)

if TYPE_CHECKING:
    import pytest

MB = 1_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_are_seconds_apart() -> None:
    lines: list[str] = []
    clock = Clock()
    meter = PlainMeter(lines.append, clock)
    for second in range(6):
        clock.now = second
        meter.update("app", second * 10 * MB, 100 * MB)
    clock.now = 10.0
    meter.update("app", 100 * MB, 100 * MB)
    meter.finish("app")
    assert lines == [
        "app: 20.0 MB of 100.0 MB (20 %), 10.0 MB/s, 8 s left",
        "app: 40.0 MB of 100.0 MB (40 %), 10.0 MB/s, 6 s left",
        "app: 100.0 MB of 100.0 MB (100 %), 10.0 MB/s",
        "app: 100.0 MB of 100.0 MB (100 %), 10.0 MB/s, done",
    ]


def test_plain_rate_counts_from_the_first_update() -> None:
    lines: list[str] = []
    clock = Clock()
    meter = PlainMeter(lines.append, clock)
    meter.update("app", 90 * MB, 100 * MB)
    clock.now = 10.0
    meter.update("app", 95 * MB, 100 * MB)
    assert lines == ["app: 95.0 MB of 100.0 MB (95 %), 500.0 kB/s, 10 s left"]


def test_plain_with_unknown_total_and_without_progress() -> None:
    lines: list[str] = []
    clock = Clock()
    meter = PlainMeter(lines.append, clock)
    meter.update("a", 0, None)
    clock.now = 2.0
    meter.update("a", 0, None)
    meter.finish("a")
    meter.update("empty", 0, 0)
    meter.finish("empty")
    meter.finish("never seen", "already there")
    assert lines == [
        "a: 0 B, 0 B/s",
        "a: 0 B, done",
        "empty: 0 B of 0 B, done",
        "never seen: already there",
    ]


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with open_meter("quiet") as meter:
        assert isinstance(meter, QuietMeter)
        meter.update("a", 1, 2)
        meter.finish("a", "note")
    assert capsys.readouterr() == ("", "")


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with open_meter("auto") as meter:
        assert isinstance(meter, PlainMeter)
        meter.update("a", 1, 2)
        meter.finish("a")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("a: 1 B of 2 B (50 %)")


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with open_meter("auto") as meter:
        assert isinstance(meter, RichMeter)
        meter.update("registry.test/[red]a", 25 * MB, 100 * MB)
        meter.update("registry.test/[red]a", 50 * MB, 100 * MB)
        meter.update("unknown", 5 * MB, None)
        meter.update("[red]b", 1, 2)
        meter.finish("unknown")
        meter.finish("registry.test/[red]a")
        meter.finish("[red]b", "failed")
        meter.finish("late", "is there already")
    text = terminal.getvalue()
    assert "registry.test/[red]a" in text
    assert "[red]b: failed" in text
    assert "late: is there already" in text
    assert "100.0/100.0 MB" in text
    assert "5.0/5.0 MB" in text
    assert "[red]b" not in text.rpartition("late:")[2].rpartition("unknown")[2]


def test_plain_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with open_meter("plain") as meter:
        assert isinstance(meter, PlainMeter)


def test_long_name_keeps_its_end() -> None:
    name = shorten_name("registry.example.com/team/project/app:1.2.3")
    assert len(name) == MAX_NAME
    assert name.startswith("…")
    assert name.endswith("project/app:1.2.3")
    assert shorten_name("app") == "app"
