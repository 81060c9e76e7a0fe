"""The limit of open files, of a process of its own."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import resource
from lazyimg.host.open_files import raise_open_files
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
print(raise_open_files(), raise_open_files(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_limit_is_raised_to_the_hard_one() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout.split() == [str(hard)] * 4
