"""What runs inside of kernel-vm until the power is cut: check what is left, then fill on.

`python -m tests.real.power_cut_guest SHARE`: SHARE is a directory of the host with `images.json`
(tag -> directory with the image's files), the storage of a registry that has the images, and
`synced.json` (tag -> files that are on the disk, as an earlier run said; a tag that is there was
mounted). Lines on standard output, as they come true:

    checked READ FAILED    every byte that could be read without a registry was right
    fresh                  all of it could be read: it was removed, so that there is more to fill
    mounted TAG
    synced TAG NAME        the file was read, and the disk synced afterwards
    lost TAG NAME WHAT     a synced file, of which this would have to be fetched again
    wrong TAG NAME WHAT    other bytes than the image has
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Final

from tests.real.docker_registry import running_registry
from tests.real.lazyimg_process import Lazyimg
from tests.real.readers import running_readers

PIECE: Final = 1 << 16
OFFLINE: Final = {"LAZYIMG_REGISTRY_RETRIES": "0", "LAZYIMG_REGISTRY_CONNECT_TIMEOUT": "2s"}
PORT: Final = 5000  # of the registry; nobody else is in the kernel


def main() -> None:
    """Check, then fill until the power is cut."""
    share, disk = Path(sys.argv[1]), Path(os.environ["LAZYIMG_VM_DISK"])
    images = {
        tag: Path(path) for tag, path in json.loads((share / "images.json").read_text()).items()
    }
    synced = json.loads((share / "synced.json").read_text())
    for tag in images:
        (disk / tag).mkdir(exist_ok=True)
    state = disk / "state"
    if synced and check(Lazyimg(state, OFFLINE), images, synced):
        shutil.rmtree(state)
        os.sync()
        say("fresh")
    fill(Lazyimg(state), share, images)


def say(*words: object) -> None:
    """Write a line that the host sees at once."""
    print(*words, flush=True)  # noqa: T201 - for the host


def check(lazyimg: Lazyimg, images: dict[str, Path], synced: dict[str, list[str]]) -> bool:
    """Read everything that was mounted, while nobody answers; tell whether it is all there."""
    read = failed = 0
    with lazyimg.serving():
        lazyimg.status()
        for tag, names in synced.items():
            mount(lazyimg, f"127.0.0.1:{PORT}/{tag}", lazyimg.root.parent / tag)
            for path in sorted(path for path in images[tag].rglob("*") if path.is_file()):
                name = str(path.relative_to(images[tag]))
                good, bad = compare(lazyimg.root.parent / tag / name, path)
                if bad and name in names:
                    say("lost", tag, name, f"{bad} pieces")
                if good < 0:
                    say("wrong", tag, name, "other bytes")
                read, failed = read + good, failed + bad
            lazyimg.unmount(lazyimg.root.parent / tag)
    say("checked", read, failed)
    return not failed


def compare(path: Path, reference: Path) -> tuple[int, int]:
    """Return how many pieces are right and how many cannot be read; -1 where one is wrong."""
    good = bad = 0
    with path.open("rb", buffering=0) as here, reference.open("rb") as there:
        while expected := there.read(PIECE):
            try:
                data = os.pread(here.fileno(), len(expected), there.tell() - len(expected))
            except OSError:
                bad += 1
                continue
            if data != expected[: len(data)]:
                return -1, bad
            good += len(data) == len(expected)
            bad += len(data) != len(expected)
    return good, bad


def mount(lazyimg: Lazyimg, reference: str, target: Path) -> None:
    """Mount an image, unless the daemon has done so itself."""
    mounted = [mount["directory"] for mount in lazyimg.status()["mounts"]]
    if str(target) not in mounted:
        lazyimg.mount(reference, target)


def fill(lazyimg: Lazyimg, share: Path, images: dict[str, Path]) -> None:
    """Mount every image; read at random, and file by file with a sync after each."""
    with running_registry(share, port=PORT), lazyimg.serving():
        for tag in images:
            mount(lazyimg, f"127.0.0.1:{PORT}/{tag}", lazyimg.root.parent / tag)
            os.sync()
            say("mounted", tag)
        with running_readers(
            lazyimg.root.parent / next(iter(images)), next(iter(images.values())), processes=2
        ):
            while True:
                fill_once(lazyimg, images)


def fill_once(lazyimg: Lazyimg, images: dict[str, Path]) -> None:
    """Read every file once."""
    for tag, files in images.items():
        for path in sorted(files.rglob("*/*"), key=lambda path: path.stat().st_size):
            name = str(path.relative_to(files))
            good, bad = compare(lazyimg.root.parent / tag / name, path)
            if good < 0 or bad:
                say("wrong", tag, name, "while it was filled")
            os.sync()
            say("synced", tag, name)


if __name__ == "__main__":
    main()
