"""The supervisor's own command line: who starts it, and how it starts."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NamedTuple

from lazyimg.host.handed_fds import take_handed
from lazyimg.host.open_files import raise_open_files
from lazyimg.logs import configure_logs
from lazyimg.supervisor.device import ProcessDevice
from lazyimg.supervisor.server import Supervisor

if TYPE_CHECKING:
    from collections.abc import Sequence


class LogSettings(NamedTuple):
    """How to log; as `lazyimg.config.LogSettings`, which costs more memory than all of this."""

    level: str
    format: str


def supervisor_command(worker: Sequence[str], logs: LogSettings) -> list[str]:
    """Give the command of a supervisor that keeps `worker` running: a bare interpreter's.

    Args:
        worker: its command, with the program's path first.
        logs: how the supervisor logs.
    """
    program = os.path.join(os.path.dirname(__file__), "__main__.py")  # noqa: PTH118, PTH120
    return [sys.executable, "-I", "-S", program, logs.level, logs.format, *worker]


def main(arguments: Sequence[str]) -> int:
    """Supervise; `arguments` are those behind the program in `supervisor_command`."""
    level, form, *worker = arguments
    configure_logs(LogSettings(level, form))
    handed = take_handed(os.environ)
    raise_open_files()
    return Supervisor(ProcessDevice(worker, os.environ)).run(handed)
