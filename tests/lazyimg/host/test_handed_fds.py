"""Fds that are handed over, by number and name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lazyimg.host.handed_fds import take_handed

ROOT = str(Path(__file__).resolve().parents[3])

TAKE = """
import json, os, sys
sys.path[:0] = [sys.argv[1]]
from lazyimg.host.handed_fds import line_up, take_handed
fds = [os.open(path, os.O_RDONLY) for path in sys.argv[3:]]
order = json.loads(sys.argv[2])
line_up([fds[number] for number in order])
inherited = [os.get_inheritable(3 + number) for number in range(len(order))]
names = {"LISTEN_FDNAMES": "a:b"} | {"LISTEN_FDS": str(len(order))}
taken = take_handed({"LISTEN_PID": str(os.getpid())} | names)
now = [os.get_inheritable(fd) for _, fd in taken]
print(json.dumps([[[name, os.read(fd, 9).decode()] for name, fd in taken], inherited, now]))
"""


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ([], []),
        ([0, 1, 2], [["a", "0"], ["b", "1"], ["unknown", "2"]]),
        ([2, 0], [["a", "2"], ["b", "0"]]),
    ],
)
def test_lined_up_and_taken(tmp_path: Path, order: list[int], expected: list[list[str]]) -> None:
    paths = []
    for number in range(3):
        path = tmp_path / str(number)
        path.write_text(str(number))
        paths.append(str(path))
    shown = subprocess.run(
        [sys.executable, "-I", "-S", "-c", TAKE, ROOT, json.dumps(order), *paths],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    count = len(order)
    assert json.loads(shown.stdout) == [expected, [True] * count, [False] * count]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LISTEN_PID": "1", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"},
        {"LISTEN_PID": str(os.getpid())},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "-1"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"},
    ],
)
def test_nothing_is_for_us(environment: dict[str, str]) -> None:
    assert take_handed(environment) == []
