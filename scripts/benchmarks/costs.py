"""What a daemon's worker has used of what is dear where a kernel is slow."""

from __future__ import annotations

import hashlib
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.real.lazyimg_process import worker_of

if TYPE_CHECKING:
    from collections.abc import Callable

MB: Final = 1_000_000
MIB: Final = 1 << 20
_DIGESTS: Final = 64
"""Times that a MiB is digested to learn how fast the machine is."""


def rate_of_digests() -> float:
    """Say how fast this machine is at the moment: MB/s of sha256, for each second of CPU."""
    piece = bytes(MIB)
    begin = time.process_time()
    for _ in range(_DIGESTS):
        hashlib.sha256(piece)
    return _DIGESTS * MIB / MB / max(time.process_time() - begin, 0.01)


def count_costs(daemon: subprocess.Popen[bytes]) -> dict[str, int]:
    """Give what the worker has had so far: page faults, switches."""
    directory = Path("/proc", str(_worker(daemon)))
    faults = int((directory / "stat").read_text().rpartition(")")[2].split()[7])
    switches = 0
    for thread in directory.glob("task/*/status"):
        switches += sum(map(int, re.findall(r"ctxt_switches:\s*(\d+)", thread.read_text())))
    return {"page faults": faults, "switches of threads": switches}


def count_calls(daemon: subprocess.Popen[bytes], work: Callable[[], object]) -> int:
    """Give how many system calls the worker makes while `work` is done; needs strace."""
    command = ["strace", "-f", "-c", "-U", "calls", "-p", str(_worker(daemon))]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as counter:
        assert counter.stderr is not None  # noqa: S101 - a pipe, see above
        counter.stderr.readline()  # it is attached
        work()
        counter.send_signal(signal.SIGINT)
        table = counter.stderr.read()
    total = re.search(r"^ *(\d+) total$", table, re.MULTILINE)
    if total is None:
        raise RuntimeError(f"strace gives no table: {table}")
    return int(total[1])


def _worker(daemon: subprocess.Popen[bytes]) -> int:
    worker = worker_of(daemon)
    if worker is None:
        raise RuntimeError("the daemon has no worker")
    return worker
