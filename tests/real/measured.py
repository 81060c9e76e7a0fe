"""Runs a function in a process of its own and tells what that took."""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Measured(NamedTuple, Generic[T]):
    """What a function gave or raised, and what it took.

    Attributes:
        result: its value; None when it raised.
        error: what it raised.
        before: bytes of memory that the process had before it.
        peak: the most bytes of memory that the process ever had.
    """

    result: T | None
    error: Exception | None
    before: int
    peak: int


async def run_measured(
    function: Callable[..., T], *arguments: object, seconds: int = 0
) -> Measured[T]:
    """Run a module's function; after so many seconds of the processor its process is killed."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(pool, _measure, function, arguments, seconds)


def _measure(
    function: Callable[..., T], arguments: tuple[object, ...], seconds: int
) -> Measured[T]:
    if seconds:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    before = peak_memory("self")
    try:
        return Measured(function(*arguments), None, before, peak_memory("self"))
    except Exception as error:
        return Measured(None, error, before, peak_memory("self"))


def peak_memory(pid: int | str) -> int:
    """Return the most bytes that a process has ever had in memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM:"))
    return int(peak.split()[1]) << 10
