"""Writes to a cache until it is killed, and says what it has done.

Run as ``python -m tests.real.cache_writer DIRECTORY BOOT SEED``. Each line is said after the fact:

    made NAME             the device is new, nothing of it is present
    written NAME A B      blocks A to B - 1 are present
    synced NAME A B       so, and a power cut may come
    complete NAME         all of it, synced
    removing NAME         said before: nothing is known of it from now on

A device's bytes follow from its name; see `content`.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lazyimg.cache.device_cache import DeviceCache
from lazyimg.host.space import CacheLimits

if TYPE_CHECKING:
    from lazyimg.cache.device_file import DeviceFile

BLOCK: Final = 4096
BLOCKS: Final = 2000
SIZE: Final = BLOCKS * BLOCK
NAMES: Final = ("device0", "device1", "device2")
LONGEST: Final = 6  # blocks of a write
FREE: Final = CacheLimits(bstop=0, fstop=0)


def content(name: str, first: int, last: int) -> bytes:
    """Give the bytes of blocks `first` to `last` - 1, none of which has a zero page."""
    pages = [hashlib.shake_128(f"{name} {number}".encode()).digest(64) for number in range(BLOCKS)]
    return b"".join(page * (BLOCK // 64) for page in pages[first:last])


def wrong_blocks(file: DeviceFile) -> list[int]:
    """Give the blocks that are said to be present and have other bytes."""
    reference = content(file.name, 0, BLOCKS)
    found = file.path.read_bytes()
    return [
        number
        for run in file.present()
        for number in range(run.start // BLOCK, run.stop // BLOCK)
        if found[number * BLOCK :][:BLOCK] != reference[number * BLOCK :][:BLOCK]
    ]


def say(*words: object) -> None:
    """Say a line, at once and whole."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Writer:
    """One device: two threads write it, one syncs it, and when it is complete it starts anew."""

    def __init__(self, cache: DeviceCache, name: str, seed: int) -> None:
        self._cache = cache
        self._name = name
        self._seed = f"{seed} {name}"
        self._content = content(name, 0, BLOCKS)

    def run(self) -> None:
        """Go on until the process is killed."""
        while True:
            self._cache.release(self._name)
            say("removing", self._name)
            self._cache.remove(self._name)
            file = self._cache.open(self._name, SIZE)
            say("made", self._name)
            complete = threading.Event()
            file.on_complete(complete.set)
            threads = [
                threading.Thread(target=self._write, args=(file, number)) for number in range(2)
            ]
            threads.append(threading.Thread(target=self._sync, args=(file, complete)))
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            say("complete", self._name)

    def _write(self, file: DeviceFile, number: int) -> None:
        chance = random.Random(f"{self._seed} {number}")  # noqa: S311 - which blocks
        while absent := file.absent(0, SIZE):
            run = chance.choice(absent)
            first = chance.randrange(run.start, run.stop, BLOCK) // BLOCK
            last = min(first + chance.randint(1, LONGEST), BLOCKS)
            view = memoryview(self._content)[first * BLOCK : last * BLOCK]
            middle = len(view) // 2
            file.write_now(first * BLOCK, [view[:middle], view[middle:]])
            say("written", self._name, first, last)

    def _sync(self, file: DeviceFile, complete: threading.Event) -> None:
        while not complete.wait(0.005):
            present = file.present()
            file.sync()
            for run in present:
                say("synced", self._name, run.start // BLOCK, run.stop // BLOCK)


def main() -> None:
    """Write until killed."""
    directory, boot, seed = sys.argv[1:]
    cache = DeviceCache(Path(directory), FREE, boot=boot)
    cache.load()
    for name in NAMES:
        threading.Thread(target=Writer(cache, name, int(seed)).run).start()


if __name__ == "__main__":
    main()
