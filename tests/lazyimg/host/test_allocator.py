"""Freed memory that is used again. In processes of their own: it cannot be undone."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from typing import TYPE_CHECKING

from lazyimg.host.allocator import keep_freed_memory

if TYPE_CHECKING:
    import pytest

COUNT_FAULTS = """
import resource, sys
from lazyimg.host.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def use():
    for _ in range(50):
        b"x" * (4 << 20)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(what: str) -> int:
    ended = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS, what], check=True, capture_output=True, text=True
    )
    return int(ended.stdout)


def test_large_blocks_are_used_again() -> None:
    assert faults("keep") < 1024


def test_other_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    assert not keep_freed_memory()
