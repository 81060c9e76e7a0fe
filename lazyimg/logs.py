"""Logs: one line for each event on standard error, for people (text) or machines (json).

Modules log with the standard library: `logging.getLogger(__name__)`, a short constant message, and
the facts as `extra={"facts": {...}}`. The text form carries no time where systemd's journal
reads it (it has its own), and begins with the priority that the journal understands.

What can fail a thousand times a second for one reason is logged through `Repeats`: once, and then
now and again, with how often.

Who logs never waits: a thread of its own writes the lines (`QueuedLines`). When standard error
takes nothing (a full pipe, a stopped terminal) lines wait in memory, `QUEUE` of them, and what does
not fit is lost and counted. At the end of the process what is left gets `FLUSH_TIMEOUT`.

Secrets never get here: facts hold no credentials, no headers, and URLs without their query. As a
second line of defence, anything that looks like one is replaced.
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
import sys
import threading
import time
from collections import OrderedDict, deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

_PRIORITIES: Final = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}
"""syslog(3) priorities, as sd-daemon(3) writes them in front of a line."""

_SECRETS: Final = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]+"), r"\1 ***"),
    (re.compile(r"(https?://)[^/\s@]+@"), r"\1***@"),
    (re.compile(r"(https?://[^\s?\"']+)\?[^\s\"']+"), r"\1?***"),
    (
        re.compile(
            r"(?i)(?<!/)\b(password|token|secret|identitytoken|authorization)([\"']?\s*[=:]\s*)\S+"
        ),
        r"\1\2***",
    ),
)


QUEUE: Final = 10_000
"""Lines that wait for standard error; some 2 MB."""

FLUSH_TIMEOUT: Final = 2.0
"""Seconds that the last lines of a process may take."""


def redact(text: str) -> str:
    """Give `text` with what looks like a credential or a signed URL's query replaced by ``***``."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


class TextFormatter(logging.Formatter):
    """``time level logger: message key=value ...``; a traceback is folded into the line."""

    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """Give the record's line."""
        facts = "".join(f" {key}={_show(value)}" for key, value in _facts(record).items())
        line = redact(f"{record.name}: {record.getMessage()}{facts}").replace("\n", "\\n")
        if self._journal:
            return f"<{_PRIORITIES.get(record.levelno, 6)}>{line}"
        return f"{_time(record)} {record.levelname.lower():7} {line}"


class JsonFormatter(logging.Formatter):
    """An object: time, level, logger, message, and the event's facts."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the record's line."""
        event: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        event |= {key: value for key, value in _facts(record).items() if key not in event}
        clean = {key: redact(v) if isinstance(v, str) else v for key, v in event.items()}
        return json.dumps(clean, default=lambda value: redact(str(value)), ensure_ascii=False)


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    facts = dict(getattr(record, "facts", {}))
    if record.exc_info:
        facts["traceback"] = logging.Formatter().formatException(record.exc_info)
    return facts


def _show(value: Any) -> str:
    text = str(value)
    return text if re.fullmatch(r"[^\s\"=]+", text) else json.dumps(text, ensure_ascii=False)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class LogChoice(Protocol):
    """How to log: `lazyimg.config.LogSettings`, or the little that a small process has of it."""

    @property
    def level(self) -> str:
        """Give what is logged: debug, info, warning or error."""
        ...

    @property
    def format(self) -> str:
        """Give the form of a line: text or json."""
        ...


def configure_logs(settings: LogChoice, stream: TextIO | None = None) -> None:
    """Send this process's logs to `stream` (standard error) as `settings` says."""
    fd = _standard_error() if stream is None else None
    handler = logging.StreamHandler(stream) if fd is None else QueuedLines(fd)
    journal = fd is not None and _is_journal(fd)
    handler.setFormatter(
        JsonFormatter() if settings.format == "json" else TextFormatter(journal=journal)
    )
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(settings.level.upper())
    logging.getLogger("asyncio").setLevel(max(logging.WARNING, logging.root.level))
    logging.raiseExceptions = False  # a closed standard error must not break what is logged about


def _standard_error() -> int | None:
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or no file
        return None


def _is_journal(fd: int) -> bool:
    """Tell whether standard error goes to systemd's journal. Source: systemd.exec(5)."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class QueuedLines(logging.Handler):
    """Writes lines to a file descriptor, in a thread that begins with the first one.

    Args:
        fd: where to write.
        capacity: lines that may wait.
    """

    def __init__(self, fd: int, capacity: int = QUEUE) -> None:
        super().__init__()
        self._fd = fd
        self._capacity = capacity
        self._lines: deque[bytes] = deque()
        self._lost = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line; never waits for who reads it, and never breaks who logs."""
        try:
            line = self.format(record).encode(errors="backslashreplace") + b"\n"
            with self._changed:
                self._take(line)
        except Exception:
            self.handleError(record)

    def _take(self, line: bytes) -> None:
        if self._lost or len(self._lines) >= self._capacity:
            self._lost += 1
            return
        self._lines.append(line)
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="log", daemon=True)
            thread.start()  # else the next line tries again
            self._thread = thread
        self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all lines are written, but not for long."""
        with self._changed:
            if self._thread is not None:
                self._changed.wait_for(lambda: not self._lines, FLUSH_TIMEOUT)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                line = self._lines[0]
            self._write(line)
            with self._changed:
                self._lines.popleft()
                if self._lost and not self._lines:
                    self._lines.append(self._format_lost())
                    self._lost = 0
                self._changed.notify_all()

    def _format_lost(self) -> bytes:
        text = f"{self._lost} lines were lost: nobody read them"
        record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (), None)
        return self.format(record).encode() + b"\n"

    def _write(self, line: bytes) -> None:
        """Write a line, or lose it: nobody reads the pipe any more, or the disk is full."""
        while line:
            try:
                line = line[os.write(self._fd, line) :]
            except BlockingIOError:  # somebody who shares the file made it so
                select.select([], [self._fd], [])
            except OSError:
                return


class Repeats:
    """Says which of many equal events get a line. For one thread.

    Args:
        period: seconds between two lines about equal events.
        capacity: kinds of events that are remembered; the oldest are forgotten first.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        period: float = 60.0,
        capacity: int = 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._period = period
        self._capacity = capacity
        self._clock = clock
        self._seen: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()

    def due(self, event: Hashable) -> str | None:
        """Take an event in; None if it gets no line.

        Otherwise gives what to put behind the line: "", or how many had none since the last one.
        """
        now = self._clock()
        said, left_out = self._seen.get(event, (-self._period, 0))
        if event in self._seen and now - said < self._period:
            self._seen[event] = said, left_out + 1
            return None
        self._seen[event] = now, 0
        self._seen.move_to_end(event)
        if len(self._seen) > self._capacity:
            self._seen.popitem(last=False)
        return f" (and {left_out} more like it in the last {now - said:.0f} s)" if left_out else ""
