"""Logs: one line for each event, in both forms, without secrets."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from typing import TYPE_CHECKING

import pytest

from lazyimg.config import LogSettings
from lazyimg.logs import JsonFormatter, Repeats, TextFormatter, configure_logs, redact

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    logging.raiseExceptions = True


def record(message: str, level: int = logging.INFO, **facts: object) -> logging.LogRecord:
    made = logging.LogRecord("lazyimg.fill", level, __file__, 1, message, (), None)
    made.created = 0.125
    made.facts = facts
    return made


def test_text_line() -> None:
    line = TextFormatter(journal=False).format(record("fetched", device="ab", path="a b", size=3))
    assert line == (
        '1970-01-01T00:00:00.125Z info    lazyimg.fill: fetched device=ab path="a b" size=3'
    )


def test_journal_line_has_a_priority_and_no_time() -> None:
    formatter = TextFormatter(journal=True)
    assert formatter.format(record("gone", logging.ERROR)) == "<3>lazyimg.fill: gone"
    assert formatter.format(record("odd", 35)) == "<6>lazyimg.fill: odd"


def test_json_line() -> None:
    event = json.loads(JsonFormatter().format(record("fetched", size=3, time="not this one")))
    assert event == {
        "time": "1970-01-01T00:00:00.125Z",
        "level": "info",
        "logger": "lazyimg.fill",
        "message": "fetched",
        "size": 3,
    }


@pytest.mark.parametrize("formatter", [TextFormatter(journal=False), JsonFormatter()])
def test_one_line_whatever_is_in_it(formatter: logging.Formatter) -> None:
    made = record("two\nlines", fact="three\nfour")
    try:
        int("x\ny")
    except ValueError:
        made.exc_info = sys.exc_info()
    line = formatter.format(made)
    assert "\n" not in line
    assert "ValueError" in line


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("got Basic dXNlcjpwYXNz", "got Basic ***"),
        ("https://user:pw@host/v2/", "https://***@host/v2/"),
        ("GET https://host/blob?X-Sig=1&b=2 failed", "GET https://host/blob?*** failed"),
        ('{"password": "x"}', '{"password": ***'),
        ("token=abc", "token=***"),
        ("nothing here", "nothing here"),
    ],
)
def test_secrets_are_replaced(text: str, clean: str) -> None:
    assert "abc" not in redact(text)
    if "Bearer" not in text:
        assert redact(text) == clean


def test_secret_in_a_fact() -> None:
    made = record("asked", url="https://host/blob?sig=topsecret", other=ValueError("token=abc"))
    assert "topsecret" not in TextFormatter(journal=False).format(made)
    line = JsonFormatter().format(made)
    assert "topsecret" not in line
    assert "abc" not in line


def test_configure_logs_sets_level_and_form() -> None:
    stream = io.StringIO()
    configure_logs(LogSettings(level="warning", format="json"), stream)
    logging.getLogger("lazyimg.x").info("quiet")
    logging.getLogger("lazyimg.x").warning("loud", extra={"facts": {"n": 1}})
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["n"] == 1
    configure_logs(LogSettings(), stream)
    assert len(logging.root.handlers) == 1


@pytest.mark.parametrize(
    ("stream", "line"),
    [
        ("{0.st_dev}:{0.st_ino}", "<4>lazyimg.x: loud"),
        ("8:1", "warning lazyimg.x: loud"),
    ],
)
def test_priorities_only_where_the_journal_reads(
    stream: str, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with (tmp_path / "stderr").open("w+") as file:
        monkeypatch.setattr(sys, "stderr", file)
        monkeypatch.setenv("JOURNAL_STREAM", stream.format(os.fstat(file.fileno())))
        configure_logs(LogSettings())
        logging.getLogger("lazyimg.x").warning("loud")
        file.seek(0)
        assert file.read().endswith(f"{line}\n")


def test_standard_error_that_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logs(LogSettings())
    logging.getLogger("lazyimg.x").warning("loud")
    assert stream.getvalue().endswith("warning lazyimg.x: loud\n")


def test_repeated_events_are_counted() -> None:
    now = 1000.0
    repeats = Repeats(period=60, clock=lambda: now)
    assert repeats.due("a") == ""
    assert [repeats.due("a"), repeats.due("a"), repeats.due("b")] == [None, None, ""]
    now += 59.9
    assert repeats.due("a") is None
    now += 5.5
    assert repeats.due("a") == " (and 3 more like it in the last 65 s)"
    assert repeats.due("a") is None
    now += 60
    assert repeats.due("b") == ""


def test_only_so_many_kinds_of_events_are_remembered() -> None:
    repeats = Repeats(capacity=2, clock=lambda: 0.0)
    assert [repeats.due(event) for event in "abcab"] == [""] * 5
    assert repeats.due("b") is None
