"""One reader of a file: says "ready", is told when to begin, reads, and prints when it has ended.

    python -I -S scripts/benchmarks/transport_reader.py FILE KIND START STOP COUNT SEED

Behind that it prints the seconds of CPU that its reads took.

KIND is `sequential`: bytes START to STOP in pieces of 1 MiB; or `random`: COUNT blocks of 4 KiB
between them, each once. It fails when a read gives fewer bytes than there are. The standard library
only: it starts in a moment.
"""

from __future__ import annotations

import os
import random
import sys
import time

MIB = 1 << 20
BLOCK = 4096


def main() -> None:
    """Read."""
    path, kind, *numbers = sys.argv[1:]
    start, stop, count, seed = map(int, numbers)
    if kind == "random":
        blocks = random.Random(seed).sample(range(start // BLOCK, stop // BLOCK), count)  # noqa: S311
        pieces = [(block * BLOCK, BLOCK) for block in blocks]
    else:
        pieces = [(offset, min(MIB, stop - offset)) for offset in range(start, stop, MIB)]
    buffer = memoryview(bytearray(MIB))
    fd = os.open(path, os.O_RDONLY)
    if kind == "random":
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    print("ready", flush=True)
    begin = float(sys.stdin.readline())
    time.sleep(max(0.0, begin - time.monotonic()))  # the same clock for all processes
    used = time.process_time()
    for offset, length in pieces:
        if os.preadv(fd, [buffer[:length]], offset) != length:
            sys.exit(f"{path}: short at {offset}")
    print(time.monotonic(), time.process_time() - used, flush=True)


if __name__ == "__main__":
    main()
