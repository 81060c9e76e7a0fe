"""What a killed process leaves about the events that it had read."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from lazyimg.transports.fanotify.journal import Journal, Place

if TYPE_CHECKING:
    from pathlib import Path

KILLED = """
import os, signal, sys
from pathlib import Path
from lazyimg.transports.fanotify.journal import Journal, Place
journal = Journal(Path(sys.argv[1]), 64)
journal.put(Place(5, 1 << 40, 4096, 8192))
journal.put(Place(6, 2, 0, 4096))
journal.put(Place(63, 3, 1 << 60, 1))
journal.clear(6)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_places_that_are_taken(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", 8)
    assert journal.taken() == []
    journal.put(Place(0, 1, 2, 3))
    journal.put(Place(7, 4, 5, 6))
    journal.put(Place(8, 9, 9, 9))  # there is none for it
    assert journal.taken() == [Place(0, 1, 2, 3), Place(7, 4, 5, 6)]
    journal.clear(0)
    journal.clear(8)
    assert journal.taken() == [Place(7, 4, 5, 6)]
    journal.close()


def test_process_that_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    killed = subprocess.run([sys.executable, "-c", KILLED, path], check=False, timeout=30)
    assert killed.returncode == -9
    journal = Journal(path, 64)
    assert journal.taken() == [Place(5, 1 << 40, 4096, 8192), Place(63, 3, 1 << 60, 1)]
    journal.close()
