"""The snapshotter is killed at any moment: what was answered is there, and nothing else.

Its layers are unpacked as usual; tests/kernel kills it with layers that are loaded lazily.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sqlite3
import subprocess
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from tests.real.containerd import Containerd, running_containerd
from tests.real.lazyimg_process import worker_of
from tests.real.plain_image import PlainImage, make_plain_image
from tests.real.scale import scaled
from tests.real.snapshot_client import SnapshotClient
from tests.real.snapshot_loop import SnapshotLoop
from tests.real.snapshotter_process import (
    kill,
    start_snapshotter,
    supervised_snapshotter,
    wait_until_ready,
)

KILLS: Final = scaled(200)
KILLS_BELOW_CONTAINERD: Final = scaled(60)
REPLACED: Final = scaled(40, least=2)
LOOPS: Final = 4
LASTING: Final = 0.4  # seconds until a kill, at most
STARTING: Final = 1.0  # seconds that a start takes, about
CONNECTING: Final = 30.0  # seconds; containerd tries every three
SEED: Final = 11
NAME: Final = "tests.local/image:plain"
PROXY_PLUGIN: Final = """
[proxy_plugins.lazyimg]
type = "snapshot"
address = "{socket}"
"""


def check_all(client: SnapshotClient, loops: list[SnapshotLoop], root: Path) -> None:
    """Compare what is there with what was answered, and the disk with the records."""
    for loop in loops:
        loop.settle(client)
        loop.check_files()
    expected = {
        key: (known.kind, known.parent, known.label)
        for loop in loops
        for key, known in loop.snapshots.items()
    }
    listed = {info.name: (info.kind, info.parent, info.labels["told"]) for info in client.list()}
    assert listed == expected
    client.cleanup()
    assert directories(root) == recorded(root)
    assert list((root / "removed").iterdir()) == []


def directories(root: Path) -> set[str]:
    """Return the names of the snapshots' directories."""
    return {path.name for path in (root / "snapshots").iterdir()}


def recorded(root: Path) -> set[str]:
    """Return the names that snapshots' directories must have."""
    with closing(sqlite3.connect(f"file:{root}/records.sqlite?mode=ro", uri=True)) as db:
        return {str(number) for (number,) in db.execute("SELECT number FROM snapshot")}


def test_killed_at_any_moment(tmp_path: Path) -> None:
    chance = random.Random(SEED)  # noqa: S311 - moments
    root, socket = tmp_path / "root", tmp_path / "socket"
    loops = [SnapshotLoop(f"loop{number}", SEED + number) for number in range(LOOPS)]
    in_start = 0
    for _ in range(KILLS):
        process = start_snapshotter(root, socket)
        if chance.random() < 0.2:  # in its start
            in_start += 1
            time.sleep(chance.uniform(0.3 * STARTING, STARTING))
            kill(process)
            process = start_snapshotter(root, socket)
        wait_until_ready(process)
        with closing(SnapshotClient(socket)) as client:
            check_all(client, loops, root)
        for loop in loops:
            loop.start(socket)
        time.sleep(chance.uniform(0, LASTING))
        kill(process)
        for loop in loops:
            loop.wait()
    steps = sum(loop.steps for loop in loops)
    logging.getLogger(__name__).info("%d answers, %d kills in the start", steps, in_start)
    assert steps > KILLS


class Importing:
    """Imports and removes an image, over and over; what fails is counted."""

    def __init__(self, containerd: Containerd, archive: Path) -> None:
        self.done = self.failed = 0
        self._containerd = containerd
        self._archive = archive
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            for command in (import_command(self._archive), ["image", "rm", "--sync", NAME]):
                try:
                    self._containerd.ctr(*command)
                    self.done += 1
                except AssertionError:
                    self.failed += 1


def test_containerd_goes_on_after_kills(tmp_path: Path) -> None:
    chance = random.Random(SEED)  # noqa: S311 - moments
    image = make_plain_image(tmp_path, "plain", seed=1, size=1 << 20, layers=4)
    archive = pack(image, tmp_path / "plain.tar")
    root, socket = tmp_path / "root", tmp_path / "socket"
    with running_containerd(tmp_path / "c", PROXY_PLUGIN.format(socket=socket)) as containerd:
        process = start_snapshotter(root, socket)
        wait_until_ready(process)
        importing = Importing(containerd, archive)
        for _ in range(KILLS_BELOW_CONTAINERD):
            time.sleep(chance.uniform(0, 1))
            kill(process)
            process = start_snapshotter(root, socket)
            wait_until_ready(process)
        importing.stop()
        logging.getLogger(__name__).info("%d done, %d not", importing.done, importing.failed)
        check_containerd(containerd, archive, image)
        assert directories(root) == set()
        assert recorded(root) == set()
        kill(process)


def test_calls_wait_for_the_next_process(tmp_path: Path) -> None:
    """The socket outlives the process: what is called meanwhile is done by the next one.

    The supervisor waits longer and longer before it starts one.
    """
    root, socket, took = tmp_path / "root", tmp_path / "socket", []
    with (
        supervised_snapshotter(root, socket) as daemon,
        running_containerd(tmp_path / "c", PROXY_PLUGIN.format(socket=socket)) as containerd,
    ):
        for number in range(REPLACED):
            for call in (["prepare", f"key {number}"], ["commit", f"{number}", f"key {number}"]):
                kill_worker(daemon)
                begin = time.monotonic()
                containerd.ctr("snapshots", "--snapshotter", "lazyimg", *call)
                took.append(time.monotonic() - begin)
        listed = containerd.ctr("snapshots", "--snapshotter", "lazyimg", "ls").splitlines()[1:]
        assert sorted(line.split()[0] for line in listed) == sorted(map(str, range(REPLACED)))
    logging.getLogger(__name__).info("calls took %.2f to %.2f s", min(took), max(took))


def kill_worker(daemon: subprocess.Popen[bytes]) -> None:
    """Kill the process that answers, and wait until its connections are closed.

    A call that was under way would fail, and so it should: nobody knows how far it had come.
    """
    pid = worker_of(daemon)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    limit = time.monotonic() + CONNECTING
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < limit
        time.sleep(0.01)


def pack(image: PlainImage, archive: Path) -> Path:
    """Make what `ctr image import` takes of an image in a layout."""
    layout = image.reference.removeprefix("oci:").rpartition(":")[0]
    subprocess.run(["tar", "-C", layout, "-cf", archive, "."], check=True)
    return archive


def import_command(archive: Path) -> list[str | Path]:
    """Return ctr's arguments that import the image as NAME."""
    base, _, _ = NAME.rpartition(":")
    return ["image", "import", "--snapshotter", "lazyimg", "--base-name", base, archive]


def wait_until_connected(containerd: Containerd) -> None:
    """Wait until containerd has noticed that there is a snapshotter again."""
    limit = time.monotonic() + CONNECTING
    while True:
        try:
            containerd.ctr("snapshots", "--snapshotter", "lazyimg", "prepare", "probe")
        except AssertionError:
            if time.monotonic() > limit:
                raise
            time.sleep(0.1)
        else:
            break
    containerd.ctr("snapshots", "--snapshotter", "lazyimg", "rm", "probe")


def check_containerd(containerd: Containerd, archive: Path, image: PlainImage) -> None:
    """Import the image, compare what is in it, and remove all of it."""
    ctr, target = containerd.ctr, containerd.directory / "target"
    wait_until_connected(containerd)
    ctr(*import_command(archive))
    target.mkdir()
    ctr("image", "mount", "--snapshotter", "lazyimg", NAME, target)
    try:
        subprocess.run(["diff", "--recursive", image.files, target], check=True)
    finally:
        ctr("image", "unmount", "--snapshotter", "lazyimg", "--rm", target)
    ctr("image", "rm", "--sync", NAME)
    assert ctr("snapshots", "--snapshotter", "lazyimg", "ls").splitlines()[1:] == []
