"""Lint, format and types, as tests."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.architecture.source import PROJECT, python_scripts

CHECKED = [
    "formats/lazyimg_formats",
    "lazyimg",
    "tests",
    "scripts/benchmarks",
    *map(str, python_scripts()),
]


def test_lint() -> None:
    check("ruff", "check", "--quiet", *CHECKED)


def test_format() -> None:
    check("ruff", "format", "--quiet", "--diff", *CHECKED)


def test_types() -> None:
    check("mypy", "--scripts-are-modules", *CHECKED)


def check(tool: str, *arguments: str) -> None:
    """Run a tool of this environment over the project; fail with what it says."""
    ended = subprocess.run(
        [sys.executable, "-m", tool, *arguments],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        pytest.fail(ended.stdout + ended.stderr, pytrace=False)
