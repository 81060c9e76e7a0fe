"""Freed memory that is used again. In processes of their own: it cannot be undone."""

from __future__ import annotations

import ctypes
import functools
import mmap
import subprocess
import sys

import pytest

from lazyimg.host import allocator
from lazyimg.host.allocator import give_back_memory, keep_freed_memory, reserve_memory

COUNT_FAULTS = """
import resource, sys
from lazyimg.host.allocator import keep_freed_memory, reserve_memory
if "keep" in sys.argv[1]:
    assert keep_freed_memory()
def use():
    for _ in range(50):
        b"x" * (4 << 20)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

COUNT_FIRST_FAULTS = COUNT_FAULTS.replace("def use", "reserve_memory()\ndef use").replace(
    "use()\nbefore", "before"
)


def faults(what: str, program: str = COUNT_FAULTS) -> int:
    ended = subprocess.run(
        [sys.executable, "-c", program, what], check=True, capture_output=True, text=True
    )
    return int(ended.stdout)


def test_large_blocks_are_used_again() -> None:
    assert faults("keep") < 1024


def test_reserved_memory_is_there_at_the_first_use() -> None:
    assert faults("keep", COUNT_FIRST_FAULTS) < 200  # a block has 1024 pages


def test_kernel_that_gives_no_pages_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_MADV_POPULATE_WRITE", 12345)
    assert not reserve_memory(1 << 20)


def test_no_memory_to_reserve() -> None:
    assert not reserve_memory(1 << 60)


def test_block_that_stays_protected_is_not_given_back() -> None:
    class Libc:
        freed = False

        def malloc(self, _size: object) -> int:
            return 4096

        def madvise(self, *_arguments: object) -> int:
            return 0

        def mprotect(self, *arguments: object) -> int:
            return -1 if arguments[2] == mmap.PROT_READ | mmap.PROT_WRITE else 0

        def free(self, _block: object) -> None:
            self.freed = True

    class Functions(Libc):
        """Functions whose result types can be set, as those of ctypes."""

        def __getattribute__(self, name: str) -> object:
            found = super().__getattribute__(name)
            return functools.partial(found) if callable(found) else found

    libc = Functions()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ctypes, "CDLL", lambda _name: libc)
        assert not reserve_memory(1 << 20)
    assert not libc.freed


def test_other_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    assert not keep_freed_memory()


COUNT_PAGES = """
import mmap
from lazyimg.host.allocator import HeapMemory, keep_freed_memory
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE
keep_freed_memory()
memory, before = HeapMemory(), resident()
memory.take()
taken = resident()
memory.give_back()
print(taken - before, resident() - before)
"""


def test_freed_memory_is_given_back() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", COUNT_PAGES], capture_output=True, text=True, check=True
    )
    taken, left = map(int, ran.stdout.split())
    assert taken > 15 << 20
    assert left < 4 << 20


def test_other_c_library_gives_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    assert not give_back_memory()
