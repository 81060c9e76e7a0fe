"""Workers and supervisors that are killed, at every moment, while the kernel waits for them.

With cachefiles: OPENs, domains and /dev/cachefiles itself are what is at stake. What holds for the
transports of plain files, whose moments are others, is in `tests/transports`: the takeovers of the
contract, `test_fuse`, `test_fanotify` and `test_daemon`.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import shlex
import signal
import subprocess
import tarfile
import tempfile
import time
from collections import Counter
from concurrent.futures import wait
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from lazyimg.errors import DaemonUnavailableError
from tests.real.docker_registry import Registry, running_registry
from tests.real.lazyimg_process import Lazyimg, kill_all, mounts_below, worker_of
from tests.real.oci_layout import LayoutWriter
from tests.real.plain_image import PlainImage, make_plain_image
from tests.real.readers import running_readers
from tests.real.scale import scaled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KILLING: Final = scaled(120, least=10)  # seconds
ROUNDS: Final = scaled(60, least=4)
SIZE: Final = scaled(256 << 20, least=64 << 20)  # bytes
READERS: Final = 8
AFTERWARDS: Final = 5.0  # seconds of reading in peace
PATIENCE: Final = 240.0
PIECE: Final = 16_384
SUPERVISOR_MEMORY: Final = 15 << 20


@pytest.fixture(scope="module")
def image(disk: Path) -> Iterator[PlainImage]:
    with tempfile.TemporaryDirectory(dir=disk) as directory:
        yield make_plain_image(Path(directory), "image", seed=1, size=SIZE)


@pytest.fixture(scope="module")
def registry(disk: Path, image: PlainImage) -> Iterator[Registry]:
    """A registry that has the image, converted, as image:1 and small:1."""
    with (
        tempfile.TemporaryDirectory(dir=disk) as directory,
        running_registry(Path(directory)) as running,
    ):
        Lazyimg(disk / "nowhere").verb("convert", image.reference, f"{running.address}/image:1")
        yield running


@pytest.fixture
def reference(registry: Registry) -> str:
    return f"{registry.address}/image:1"


@pytest.fixture
def lazyimg(disk: Path) -> Iterator[Lazyimg]:
    with tempfile.TemporaryDirectory(dir=disk) as directory:
        yield Lazyimg(Path(directory, "state"))
        left = mounts_below(Path(directory))
        unmount(left)
        assert left == []


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "mnt"
    directory.mkdir()
    yield directory
    unmount(mounts_below(tmp_path))


def unmount(left: list[str]) -> None:
    """Take away what a test that failed has left."""
    for point in reversed(left):
        subprocess.run(["umount", "-l", point], check=True, timeout=PATIENCE)


def eventually(condition: Callable[[], Any]) -> Any:
    """Wait until a condition holds; return what it gives."""
    end = time.monotonic() + PATIENCE
    while not (result := condition()):
        assert time.monotonic() < end, condition
        time.sleep(0.05)
    return result


def kill_worker(daemon: subprocess.Popen[bytes]) -> None:
    """Kill the worker; there is one, or will be."""
    os.kill(eventually(lambda: worker_of(daemon)), signal.SIGKILL)


def stuck(pid: str = "[0-9]*") -> list[str]:
    """Return the processes that cannot be killed."""
    found = []
    for path in Path("/proc").glob(f"{pid}/stat"):
        try:
            name, _, rest = path.read_text().rpartition(")")
        except OSError:
            continue
        if rest.split()[0] == "D":
            found.append(name)
    return found


def assert_device_is_free() -> None:
    """Fail if somebody holds /dev/cachefiles, or is stuck behind it."""
    os.close(os.open("/dev/cachefiles", os.O_RDWR))
    eventually(lambda: not stuck())


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def read_all(directory: Path) -> str:
    """Read all files; return what is said of failures."""
    command = ["sh", "-c", "cat * */* >/dev/null"]
    return subprocess.run(
        command, cwd=directory, stderr=subprocess.PIPE, text=True, check=False, timeout=PATIENCE
    ).stderr


def assert_readable(mount: Path, image: PlainImage, *, pieces: int = 100) -> None:
    """Read pieces of files, other ones each time, and compare them."""
    paths = sorted(path for path in image.files.rglob("*") if path.is_file())
    for path in random.choices(paths, k=pieces):  # noqa: S311 - offsets
        offset = random.randrange(path.stat().st_size)  # noqa: S311
        with path.open("rb") as there, (mount / path.relative_to(image.files)).open("rb") as here:
            expected = os.pread(there.fileno(), PIECE, offset)
            assert os.pread(here.fileno(), PIECE, offset) == expected, (path, offset)


@pytest.mark.parametrize("ready", [False, True])
def test_worker_killed_every_second_while_processes_read(
    image: PlainImage, reference: str, lazyimg: Lazyimg, target: Path, *, ready: bool
) -> None:
    """Killed a second after the last time, and a second after it was ready again."""
    with lazyimg.serving() as daemon:
        lazyimg.verb("mount", reference, target)
        killed = 0
        with running_readers(target, image.files, processes=READERS) as readers:
            end = time.monotonic() + KILLING
            while time.monotonic() < end:
                if ready:
                    lazyimg.status()
                time.sleep(1)
                kill_worker(daemon)
                killed += 1
            lazyimg.status()
            time.sleep(AFTERWARDS)
            report = readers.finish(PATIENCE, stop=True)
        status = lazyimg.status()
        logging.getLogger(__name__).info("killed %d times: %s", killed, report)
        assert (report.errors, report.short, report.wrong) == ({}, 0, [])
        assert report.reads > 0
        assert status["restarts"] >= killed
        assert [mount["directory"] for mount in status["mounts"]] == [str(target)]
        assert_readable(target, image)
    assert_device_is_free()
    assert mounts_below(target.parent) == []


def test_worker_killed_with_an_open_unanswered(
    image: PlainImage, reference: str, lazyimg: Lazyimg, target: Path
) -> None:
    with lazyimg.serving() as daemon:
        _, command = lazyimg.verb("fsid", reference).splitlines()
        for _ in range(ROUNDS):
            worker = eventually(lambda: worker_of(daemon))
            lazyimg.status()  # it is ready
            os.kill(worker, signal.SIGSTOP)
            mounting = subprocess.Popen([*shlex.split(command)[:-1], str(target)])
            eventually(partial(stuck, str(mounting.pid)))  # it waits for the answer to an OPEN
            os.kill(worker, signal.SIGKILL)
            assert mounting.wait(PATIENCE) == 0
            assert_readable(target, image, pieces=20)
            subprocess.run(["umount", str(target)], check=True, timeout=PATIENCE)
    assert_device_is_free()


@pytest.mark.parametrize("read_write", [False, True])
def test_worker_killed_with_a_mount_in_flight(
    image: PlainImage, reference: str, lazyimg: Lazyimg, target: Path, *, read_write: bool
) -> None:
    chance = random.Random(1)  # noqa: S311 - moments
    ended: Counter[str] = Counter()
    with lazyimg.serving() as daemon:
        lazyimg.mount(reference, target, read_write=read_write)  # takes longer than the next ones
        lazyimg.unmount(target)
        begun = time.monotonic()
        lazyimg.mount(reference, target, read_write=read_write)
        usual = time.monotonic() - begun
        lazyimg.unmount(target)
        for _ in range(ROUNDS):
            mounting = lazyimg.start_mounting(reference, target, read_write=read_write)
            wait([mounting], timeout=chance.uniform(0, usual))
            kill_worker(daemon)
            failure = mounting.exception()
            eventually(lambda: not stuck())
            mounts = [mount["directory"] for mount in lazyimg.status()["mounts"]]
            assert mounts == mounts_below(target.parent)
            assert mounts or failure is not None
            ended[describe(failure, mounts)] += 1
            if not mounts:  # it was undone
                lazyimg.mount(reference, target, read_write=read_write)
            assert_readable(target, image, pieces=20)
            lazyimg.unmount(target)
            assert list((lazyimg.root / "mnt").iterdir()) == []
            assert list((lazyimg.root / "scratch").iterdir()) == []
    logging.getLogger(__name__).info("mounting: %s", ended)
    assert_device_is_free()


def describe(failure: BaseException | None, mounts: list[str]) -> str:
    """Say how a request ended, and what is there."""
    assert failure is None or isinstance(failure, DaemonUnavailableError), failure
    return f"{'failed' if failure else 'done'}, {'mounted' if mounts else 'not mounted'}"


def test_worker_killed_during_umount(
    image: PlainImage, reference: str, lazyimg: Lazyimg, target: Path
) -> None:
    chance = random.Random(2)  # noqa: S311 - moments
    ended: Counter[str] = Counter()
    with lazyimg.serving() as daemon:
        lazyimg.mount(reference, target, read_write=True)
        begun = time.monotonic()
        lazyimg.unmount(target)
        usual = time.monotonic() - begun
        for _ in range(ROUNDS):
            lazyimg.mount(reference, target, read_write=True)
            (target / "new").write_text("mine")
            unmounting = lazyimg.start_unmounting(target)
            wait([unmounting], timeout=chance.uniform(0, usual))
            kill_worker(daemon)
            failure = unmounting.exception()
            eventually(lambda: not stuck())
            mounts = [mount["directory"] for mount in lazyimg.status()["mounts"]]
            assert mounts == mounts_below(target.parent)
            assert failure is not None or not mounts
            ended[describe(failure, mounts)] += 1
            if mounts:  # it had not begun
                assert (target / "new").read_text() == "mine"
                assert_readable(target, image, pieces=5)
                lazyimg.unmount(target)
            assert mounts_below(target.parent) == []
            assert mounts_below(lazyimg.root) == []
            assert list((lazyimg.root / "scratch").iterdir()) == []
    logging.getLogger(__name__).info("unmounting: %s", ended)
    assert_device_is_free()


def test_both_killed_and_started_again_without_a_registry(
    disk: Path, image: PlainImage, registry: Registry, lazyimg: Lazyimg, target: Path
) -> None:
    writable = target.with_name("rw")
    writable.mkdir()
    with tempfile.TemporaryDirectory(dir=disk) as directory:
        with running_registry(Path(directory)) as going:
            reference = f"{going.address}/image:1"
            lazyimg.verb("convert", f"{registry.address}/image:1", reference)
            with lazyimg.serving(ends=-signal.SIGKILL) as daemon:
                lazyimg.verb("prefetch", "-q", reference)
                lazyimg.verb("mount", reference, target)
                lazyimg.verb("mount", "--rw", reference, writable)
                (writable / "new").write_text("mine")
                kill_all(daemon)
                drop_caches()
                for mount in (target, writable):  # of metadata, the kernel gives ENOBUFS
                    assert re.search("Input/output error|No buffer space", read_all(mount))
        assert_device_is_free()
        with lazyimg.serving():
            status = lazyimg.status()
            mounts = [(one["directory"], one["read_write"]) for one in status["mounts"]]
            assert mounts == [(str(target), False), (str(writable), True)]
            assert all(one["present"] == one["size"] for one in status["mounts"])
            drop_caches()
            assert_readable(target, image)
            assert (writable / "new").read_text() == "mine"
            assert lazyimg.status()["fetches"] == 0
        assert mounts_below(target.parent) == []
    with lazyimg.serving():
        assert lazyimg.status()["mounts"] == []


def test_dead_mount_that_somebody_is_in_is_replaced(
    image: PlainImage, reference: str, lazyimg: Lazyimg, target: Path
) -> None:
    """Who comes later finds the image, with all that is local; who is in the dead one, errors."""
    with lazyimg.serving(ends=-signal.SIGKILL) as daemon:
        lazyimg.verb("prefetch", "-q", reference)
        lazyimg.verb("mount", reference, target)
        insider = subprocess.Popen(
            ["sh", "-c", "read line; cat */* >/dev/null"],
            cwd=target,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        kill_all(daemon)
    drop_caches()
    try:
        with lazyimg.serving(ends=-signal.SIGKILL) as daemon:
            (mount,) = lazyimg.status()["mounts"]
            assert (mount["directory"], mount["dead"]) == (str(target), True)
            assert mount["present"] == mount["size"]
            assert "is in a dead mount" in lazyimg.verb("mount")
            drop_caches()
            assert_readable(target, image)
            kill_worker(daemon)
            assert_readable(target, image)
            lazyimg.verb("umount", target)
            lazyimg.verb("mount", reference, target)
            assert_readable(target, image)
            assert lazyimg.status()["fetches"] == 0
            kill_all(daemon)
        assert insider.poll() is None
    finally:
        _, said = insider.communicate(b"\n", PATIENCE)
    assert re.search(b"Input/output error|No buffer space|Stale", said)
    with lazyimg.serving():  # nobody is in it any more
        (mount,) = lazyimg.status()["mounts"]
        assert not mount["dead"]
        assert mount["present"] == mount["size"]
        assert "domain_id=lazyimg " in lazyimg.verb("fsid", reference)
        assert_readable(target, image)
        assert lazyimg.status()["fetches"] == 0
    assert_device_is_free()


def test_supervisor_killed_leaves_its_worker_serving(
    image: PlainImage, reference: str, lazyimg: Lazyimg, target: Path
) -> None:
    with lazyimg.serving(ends=-signal.SIGKILL) as daemon:
        lazyimg.verb("mount", reference, target)
        worker = worker_of(daemon)
        assert worker is not None
        daemon.kill()
        daemon.wait()
        assert_readable(target, image)
        eventually(lambda: lazyimg.status()["supervisor"] == 0)
        assert "none: if the process dies" in lazyimg.verb("status")
        assert str(lazyimg.root) in lazyimg.failure("serve", status=79)
        os.kill(worker, signal.SIGTERM)
        eventually(lambda: not Path(f"/proc/{worker}").exists())
    assert mounts_below(target.parent) == []
    assert_device_is_free()


def test_prefetch_of_a_mount_that_was_taken_over(
    image: PlainImage, reference: str, lazyimg: Lazyimg, target: Path
) -> None:
    with lazyimg.serving() as daemon:
        lazyimg.verb("mount", reference, target)
        kill_worker(daemon)
        lazyimg.verb("prefetch", "-q", reference)
        (mount,) = lazyimg.status()["mounts"]
        assert mount["present"] == mount["size"]
        fetches = lazyimg.status()["fetches"]
        assert_readable(target, image)
        assert lazyimg.status()["fetches"] == fetches


def test_prefetch_of_what_nobody_can_read_of_a_mount_that_was_taken_over(
    disk: Path, registry: Registry, lazyimg: Lazyimg, target: Path
) -> None:
    """The upper layer hides a file: the kernel has nobody who would have it open its device."""
    with tempfile.TemporaryDirectory(dir=disk) as directory:
        work, layers = Path(directory), []
        writer = LayoutWriter(work / "layout")
        for number, names in enumerate((["seen", "hidden"], ["hidden"])):
            with tarfile.open(work / f"{number}.tar", "w") as tar:
                for name in names:
                    (work / name).write_bytes(os.urandom(1 << 20))
                    tar.add(work / name, name)
            layers.append(writer.add_layer(work / f"{number}.tar"))
        writer.add_image("hiding", layers, ["/seen"])
        reference = f"{registry.address}/hiding:1"
        lazyimg.verb("convert", f"oci:{work}/layout:hiding", reference)
    with lazyimg.serving() as daemon:
        lazyimg.verb("mount", reference, target)
        lazyimg.verb("prefetch", "-q", "--path", "/*", reference)
        kill_worker(daemon)
        (event,) = json.loads(lazyimg.verb("prefetch", "-q", "--json", reference))
        assert event["present"] == event["total"] == 2 << 20
        (mount,) = lazyimg.status()["mounts"]
        assert (mount["present"], mount["size"]) == (2 << 20, 3 << 20)


def test_status_tells_of_supervisor_and_restarts(lazyimg: Lazyimg) -> None:
    with lazyimg.serving() as daemon:
        first = lazyimg.status()
        assert (first["supervisor"], first["restarts"]) == (daemon.pid, 0)
        assert first["pid"] == worker_of(daemon)
        kill_worker(daemon)
        second = json.loads(lazyimg.verb("status", "--json"))
        assert (second["supervisor"], second["restarts"]) == (daemon.pid, 1)
        assert second["pid"] != first["pid"]
        fields = dict(
            line.split(":", 1)
            for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines()
        )
        memory = int(fields["VmRSS"].split()[0]) * 1024
        logging.getLogger(__name__).info("supervisor: %.1f MB", memory / 2**20)
        assert memory < SUPERVISOR_MEMORY
