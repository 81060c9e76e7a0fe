"""Logs: one line for each event, in both forms, without secrets."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazyimg import logs
from lazyimg.config import LogSettings
from lazyimg.logs import JsonFormatter, QueuedLines, Repeats, TextFormatter, configure_logs, redact

if TYPE_CHECKING:
    from collections.abc import Iterator


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
        ("https://host/token: no answer in time", "https://host/token: no answer in time"),
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
        logging.root.handlers[0].flush()
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


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def fill_pipe(end: int) -> int:
    """Fill a pipe; return how many bytes it takes."""
    os.set_blocking(end, False)
    size = 0
    with suppress(BlockingIOError):
        while True:
            size += os.write(end, b"x" * 4096)
    return size


def read_exactly(end: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += os.read(end, size - len(data))
    return data


@pytest.mark.parametrize("blocking", [True, False])
def test_nobody_waits_for_a_pipe_that_is_full(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, *, blocking: bool
) -> None:
    monkeypatch.setattr(logs, "FLUSH_TIMEOUT", 0.01)
    end, full = pipe
    size = fill_pipe(full)
    os.set_blocking(full, blocking)
    handler = QueuedLines(full, capacity=3)
    handler.setFormatter(TextFormatter(journal=False))
    for number in range(10):
        handler.handle(record(f"line {number}"))
    handler.flush()
    read_exactly(end, size)
    prefix = "1970-01-01T00:00:00.125Z info    lazyimg.fill: line "
    expected = "".join(f"{prefix}{number}\n" for number in range(3))
    assert read_exactly(end, len(expected)).decode() == expected
    lost = os.read(end, 4096).decode()
    assert lost.endswith("warning lazyimg.logs: 7 lines were lost: nobody read them\n")
    monkeypatch.setattr(logs, "FLUSH_TIMEOUT", 60)
    handler.flush()
    handler.handle(record("line 10"))
    handler.flush()
    assert os.read(end, 4096).decode() == f"{prefix}10\n"


def test_nobody_reads_any_more(pipe: tuple[int, int]) -> None:
    end, write_end = pipe
    closed = os.dup(end)
    os.close(end)
    handler = QueuedLines(write_end)
    handler.handle(record("to nobody"))
    handler.flush()
    os.dup2(closed, end)
    os.close(closed)


def test_flush_without_a_line(pipe: tuple[int, int]) -> None:
    QueuedLines(pipe[1]).flush()


def test_name_that_is_not_utf8(pipe: tuple[int, int]) -> None:
    handler = QueuedLines(pipe[1])
    handler.handle(record("caf\udce9"))
    handler.flush()
    assert os.read(pipe[0], 100) == b"caf\\udce9\n"


class Wordless:
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise ValueError


def test_what_cannot_be_formatted_does_not_break_who_logs(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)  # as `configure_logs` has it
    handler = QueuedLines(pipe[1])
    handler.setFormatter(TextFormatter(journal=False))
    handler.handle(record("a line", of=Wordless()))
    handler.setFormatter(None)
    handler.handle(record("next"))
    handler.flush()
    assert os.read(pipe[0], 100) == b"next\n"


def test_no_thread_for_now(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(logging, "raiseExceptions", False)
    handler = QueuedLines(pipe[1])
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        handler.handle(record("first"))
    handler.handle(record("second"))
    handler.flush()
    assert os.read(pipe[0], 100) == b"first\nsecond\n"


def test_process_with_a_full_standard_error_ends(pipe: tuple[int, int]) -> None:
    """Also the interpreter's own end does not wait for it."""
    fill_pipe(pipe[1])
    os.set_blocking(pipe[1], True)
    program = (
        "import logging; from lazyimg import logs; from lazyimg.config import LogSettings;"
        "logs.FLUSH_TIMEOUT = 0.1; logs.configure_logs(LogSettings());"
        "[logging.warning('x' * 100) for _ in range(1000)]; print('done')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=pipe[1],
        check=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout == b"done\n"


def test_standard_error_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    configure_logs(LogSettings())
    logging.getLogger("lazyimg.x").warning("to nobody")
