"""The limit of open files and the standard files, of processes of their own."""

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


LIMITED = """
import resource
from lazyimg.host.open_files import raise_open_files
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
print(raise_open_files(100), raise_open_files(hard + 1))
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_limit_is_lowered_where_it_must_not_be_higher() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout.split() == ["100", str(hard), str(hard), str(hard)]


STANDARD = """
import os, sys
from lazyimg.host.open_files import open_standard_files
open_standard_files()
open_standard_files()
if len(sys.argv) > 1:
    os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
"""
LIST = """
import os
os.write(1, " ".join(os.readlink(f"/proc/self/fd/{number}") for number in range(3)).encode())
"""


def test_closed_standard_files_are_opened_for_those_who_follow() -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" "$2" <&- 2>&-', sys.executable, STANDARD, LIST],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    first, output, error = done.stdout.split()
    assert (first, error) == ("/dev/null", "/dev/null")
    assert output.startswith("pipe:")
