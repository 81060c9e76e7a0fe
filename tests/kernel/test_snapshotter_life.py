"""Kills and restarts below the real containerd, with layers that nobody downloaded."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import tempfile
import time
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import grpc
import pytest

from lazyimg.snapshotter.proto import snapshots_pb2 as pb
from tests.contracts.snapshots import mounted
from tests.real.containerd import Containerd, running_containerd, serving_containerd
from tests.real.docker_registry import Registry, running_registry
from tests.real.eventually import PATIENCE, eventually
from tests.real.lazyimg_process import Lazyimg, kill_all, mounts_below, worker_of
from tests.real.program_images import make_program_images, sums
from tests.real.scale import scaled
from tests.real.snapshot_client import SnapshotClient
from tests.real.snapshot_loop import SnapshotLoop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real.plain_image import PlainImage

NAME: Final = "one"
SIZE: Final = 4 << 20
PROXY_PLUGIN: Final = """
[proxy_plugins.lazyimg]
type = "snapshot"
address = "{address}"
"""

READ: Final = "sha256sum /data/*"
READ_SLOWLY: Final = (
    'for file in /data/*; do line=$(sha256sum $file); echo "$line"; echo "$line" >> /said; done'
)
WAIT: Final = "echo up; while :; do sleep 1; done"
KILLS: Final = scaled(60, least=3)
REPLACED: Final = scaled(20)
LASTING: Final = 3.0  # seconds until a kill, at most
SEED: Final = 3


@pytest.fixture(scope="module")
def source(disk: Path) -> Iterator[tuple[Registry, PlainImage]]:
    """A registry with an image, converted."""
    with (
        tempfile.TemporaryDirectory(dir=disk) as directory,
        running_registry(Path(directory)) as running,
    ):
        image = make_program_images(Path(directory), [NAME], size=SIZE)[NAME]
        Lazyimg(disk / "nowhere").verb("convert", image.reference, f"{running.address}/{NAME}:1")
        yield running, image


@pytest.fixture
def registry(source: tuple[Registry, PlainImage]) -> Registry:
    return source[0]


@pytest.fixture
def reference(registry: Registry) -> str:
    return f"{registry.address}/{NAME}:1"


@pytest.fixture
def expected(source: tuple[Registry, PlainImage]) -> str:
    return sums(source[1])


@pytest.fixture
def place(disk: Path) -> Iterator[Path]:
    """A directory for the daemon and containerd; nothing is mounted there afterwards."""
    with tempfile.TemporaryDirectory(dir=disk) as directory:
        yield Path(directory)
        assert mounts_below(Path(directory)) == []


@pytest.fixture
def lazyimg(place: Path) -> Lazyimg:
    state = place / "state"
    return Lazyimg(state, {"LAZYIMG_SNAPSHOTTER_ADDRESS": str(state / "snapshotter.sock")})


def plugin(lazyimg: Lazyimg) -> str:
    return PROXY_PLUGIN.format(address=lazyimg.settings["LAZYIMG_SNAPSHOTTER_ADDRESS"])


def pull(lazyimg: Lazyimg, containerd: Containerd, reference: str) -> None:
    """Have containerd know an image, of which nothing is downloaded."""
    socket = containerd.directory / "socket"
    printed = json.loads(lazyimg.verb("pull", "--json", "--containerd", socket, reference))
    assert printed["layers"].keys() == {"lazy"}


def said(containerd: Containerd, name: str) -> Path:
    """Return the file that a container sees as /said.

    What a container prints, containerd may lose the end of, when it is slow.
    """
    return containerd.directory / f"{name}.said"


def run_command(containerd: Containerd, reference: str, name: str, program: str) -> list[str]:
    """Return the command that runs a container in the foreground."""
    said(containerd, name).touch()
    mount = f"type=bind,src={said(containerd, name)},dst=/said,options=rbind:rw"
    return [
        *("ctr", "--address", str(containerd.directory / "socket"), "run", "--rm"),
        *("--cgroup", "", "--mount", mount, "--snapshotter", "lazyimg"),
        *(reference, name, "sh", "-c", program),
    ]


def run(containerd: Containerd, reference: str, program: str) -> str:
    """Run a container to its end; return what its program says."""
    name = f"run-{time.monotonic_ns()}"
    command = run_command(containerd, reference, name, f"{program} > /said")
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert ended.returncode == 0, ended.stderr
    return said(containerd, name).read_text()


def wait_until_connected(containerd: Containerd) -> None:
    """Wait until containerd has noticed that there is a snapshotter again."""

    def prepared() -> bool:
        try:
            containerd.ctr("snapshots", "--snapshotter", "lazyimg", "prepare", "probe")
        except AssertionError:
            return False
        return True

    eventually(prepared)
    containerd.ctr("snapshots", "--snapshotter", "lazyimg", "rm", "probe")


def remove_all(lazyimg: Lazyimg, containerd: Containerd, reference: str) -> None:
    """Remove the image; nothing is left of its layers."""
    containerd.ctr("image", "rm", "--sync", reference)
    assert containerd.ctr("snapshots", "--snapshotter", "lazyimg", "ls").splitlines()[1:] == []
    assert mounts_below(lazyimg.root / "mnt") == []
    assert directories(lazyimg) == set()


def directories(lazyimg: Lazyimg) -> set[str]:
    """Return the names of the snapshots' directories."""
    return {path.name for path in (lazyimg.root / "snapshotter/snapshots").iterdir()}


@contextmanager
def container(
    containerd: Containerd, reference: str, name: str, program: str
) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """Run a container while the block runs; gives ctr's process, and what it prints."""
    with subprocess.Popen(
        run_command(containerd, reference, name, program),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            yield process, process.stdout
        finally:
            process.kill()


def test_worker_killed_while_a_container_reads(
    lazyimg: Lazyimg, place: Path, reference: str, expected: str
) -> None:
    with (
        lazyimg.serving() as daemon,
        running_containerd(place / "containerd", plugin(lazyimg)) as containerd,
    ):
        pull(lazyimg, containerd, reference)
        with container(containerd, reference, "reads", READ_SLOWLY) as (process, output):
            for number, _ in enumerate(output, 1):
                if number in {1, 4, 7}:
                    eventually(lambda: worker_of(daemon) is not None)
                    kill_worker(daemon)
            assert process.wait(PATIENCE) == 0
        assert said(containerd, "reads").read_text() == expected
        assert run(containerd, reference, READ) == expected
        remove_all(lazyimg, containerd, reference)


def test_worker_killed_before_containerd_calls(
    lazyimg: Lazyimg, place: Path, reference: str
) -> None:
    """Just before the calls of a container's start, and before those of its end."""
    with (
        lazyimg.serving() as daemon,
        running_containerd(place / "containerd", plugin(lazyimg)) as containerd,
    ):
        for number in range(REPLACED):
            pull(lazyimg, containerd, reference)
            kill_worker(daemon)
            assert run(containerd, reference, "echo up") == "up\n"
            program = "echo up; read line || true"
            with container(containerd, reference, f"{number}", program) as (process, output):
                assert output.readline() == "up\n"
                kill_worker(daemon)
                assert process.stdin is not None
                process.stdin.close()
                assert (process.wait(PATIENCE), output.read()) == (0, "")
            remove_all(lazyimg, containerd, reference)


def kill_worker(daemon: subprocess.Popen[bytes]) -> None:
    """Kill the worker, and wait until its connections are closed.

    What containerd had asked it just then would fail, rightly: how far it came is not known.
    Containers that run ask nothing.
    """
    pid = worker_of(daemon)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{pid}").exists())


def test_both_killed_below_a_running_container(
    lazyimg: Lazyimg, place: Path, reference: str, expected: str
) -> None:
    with (
        running_containerd(place / "containerd", plugin(lazyimg)) as containerd,
        lazyimg.serving(ends=-signal.SIGKILL) as daemon,
    ):
        wait_until_connected(containerd)  # it was there first, and tries again now and then
        pull(lazyimg, containerd, reference)
        with container(containerd, reference, "waits", WAIT) as (_, output):
            assert output.readline() == "up\n"
            kill_all(daemon)
            check_survivor(lazyimg, containerd, reference, expected)


def check_survivor(lazyimg: Lazyimg, containerd: Containerd, reference: str, expected: str) -> None:
    """Start the daemon again: new containers run, the old one has what it had, or errors."""
    with lazyimg.serving():
        wait_until_connected(containerd)
        assert run(containerd, reference, READ) == expected
        address = ("ctr", "--address", str(containerd.directory / "socket"))
        ended = subprocess.run(
            [*address, "task", "exec", "--exec-id", "e", "waits", "sh", "-c", READ],
            capture_output=True, text=True, check=False, timeout=PATIENCE,
        )  # fmt: skip
        assert ended.returncode != 0
        right = set(expected.splitlines())
        assert {line for line in ended.stdout.splitlines() if "/data/" in line} <= right
        end_container(containerd, "waits")
        assert run(containerd, reference, READ) == expected
        remove_all(lazyimg, containerd, reference)


def end_container(containerd: Containerd, name: str) -> None:
    """Kill and remove a container, which the ctr that runs it may do at the same time."""
    address = ("ctr", "--address", str(containerd.directory / "socket"))
    for command in (("task", "kill", "-s", "KILL", name), ("task", "rm", "-f", name)):
        subprocess.run([*address, *command], capture_output=True, check=False, timeout=PATIENCE)
    eventually(lambda: name not in containerd.ctr("task", "ls"))
    subprocess.run(
        [*address, "container", "rm", name], capture_output=True, check=False, timeout=PATIENCE
    )
    eventually(lambda: name not in containerd.ctr("container", "ls", "-q"))


def test_containerd_killed(lazyimg: Lazyimg, place: Path, reference: str, expected: str) -> None:
    with lazyimg.serving():
        with serving_containerd(place / "containerd", plugin(lazyimg)) as (containerd, process):
            pull(lazyimg, containerd, reference)
            with container(containerd, reference, "waits", WAIT) as (_, output):
                assert output.readline() == "up\n"
                process.kill()
                process.wait()
        with running_containerd(place / "containerd", plugin(lazyimg)) as containerd:
            assert "RUNNING" in containerd.ctr("task", "ls")
            read = containerd.ctr("task", "exec", "--exec-id", "e", "waits", "sh", "-c", READ)
            assert read == expected
            assert run(containerd, reference, READ) == expected
            end_container(containerd, "waits")
            remove_all(lazyimg, containerd, reference)


def test_everything_killed_and_unmounted(
    registry: Registry, lazyimg: Lazyimg, place: Path, reference: str, expected: str
) -> None:
    """What a reboot leaves: the disk. tests/integration/test_reboot.py boots anew."""
    with (
        lazyimg.serving(ends=-signal.SIGKILL) as daemon,
        serving_containerd(place / "containerd", plugin(lazyimg)) as (containerd, process),
    ):
        pull(lazyimg, containerd, reference)
        with container(containerd, reference, "waits", WAIT) as (_, output):
            assert output.readline() == "up\n"
            kill_all(daemon)
            process.kill()
            process.wait()
            kill_shims(place)
    for point in reversed(mounts_below(place)):
        subprocess.run(["umount", "-l", point], check=True, timeout=PATIENCE)
    subprocess.run(["rm", "-r", place / "containerd/state"], check=True)
    before = len(registry.counts.exchanges)
    with (
        lazyimg.serving(),
        running_containerd(place / "containerd", plugin(lazyimg)) as containerd,
    ):
        assert run(containerd, reference, "echo again") == "again\n"
        assert manifests(registry, before) == []
        assert run(containerd, reference, READ) == expected
        end_container(containerd, "waits")
        remove_all(lazyimg, containerd, reference)


def manifests(registry: Registry, before: int) -> list[str]:
    """Return the manifests that were asked for since so many exchanges."""
    return [one.path for one in registry.counts.exchanges[before:] if "/manifests/" in one.path]


def kill_shims(place: Path) -> None:
    """Kill what containerd leaves: its shims, its container "waits", and what runc knows of it."""
    pids, parents = [], dict[int, int]()
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            words = (directory / "cmdline").read_bytes().split(b"\0")
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(directory.name)] = int(fields[1])
        ours = any(word.startswith(os.fsencode(place)) for word in words)
        if ours and words[0].endswith(b"containerd-shim-runc-v2"):
            pids.append(int(directory.name))
    for pid, parent in parents.items():
        if pid in pids or parent in pids:
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    delete = ("runc", "--root", "/run/containerd/runc/default", "delete", "--force", "waits")
    subprocess.run(delete, check=True, timeout=PATIENCE)  # else it is in the way of the next run


def test_worker_killed_at_any_moment(lazyimg: Lazyimg, place: Path, reference: str) -> None:
    """As in tests/containerd/test_kills.py, on layers that nobody downloaded."""
    chance = random.Random(SEED)  # noqa: S311 - moments
    socket = Path(lazyimg.settings["LAZYIMG_SNAPSHOTTER_ADDRESS"])
    with lazyimg.serving() as daemon:
        with running_containerd(place / "containerd", plugin(lazyimg)) as containerd:
            pull(lazyimg, containerd, reference)
        with closing(SnapshotClient(socket)) as client:
            image = {info.name for info in client.list()}
            (top,) = image - {info.parent for info in client.list()}
        loops = [SnapshotLoop(f"loop{number}", SEED + number, base=top) for number in range(2)]
        for _ in range(KILLS):
            for loop in loops:
                loop.start(socket)
            time.sleep(chance.uniform(0, LASTING))
            eventually(lambda: worker_of(daemon) is not None)
            os.kill(worker_of(daemon) or 0, signal.SIGKILL)
            for loop in loops:
                loop.wait()
            with closing(SnapshotClient(socket)) as client:
                eventually(partial(answers, client))
                check_all(client, loops, lazyimg, image)
        with closing(SnapshotClient(socket)) as client:
            remove_leaves(client)
            client.cleanup()
        assert mounts_below(lazyimg.root / "mnt") == []
        assert directories(lazyimg) == set()


def test_container_that_leaves_its_mount(
    registry: Registry, lazyimg: Lazyimg, place: Path, reference: str, expected: str
) -> None:
    """Its snapshot is removed while something is still in its root: others of its image start."""
    socket = Path(lazyimg.settings["LAZYIMG_SNAPSHOTTER_ADDRESS"])
    with (
        lazyimg.serving(),
        running_containerd(place / "containerd", plugin(lazyimg)) as containerd,
        closing(SnapshotClient(socket)) as client,
    ):
        pull(lazyimg, containerd, reference)
        (top,) = {info.name for info in client.list()} - {info.parent for info in client.list()}
        (first,) = client.prepare("first", top)
        (view,) = client.view("view", top)
        lower = dict(option.partition("=")[::2] for option in first.options)["lowerdir"]
        assert view.source == lower  # they differ by the upper directory only
        client.remove("view")
        with mounted([first], place / "left") as left:
            client.remove("first")
            client.cleanup()
            assert mounts_below(lazyimg.root / "mnt") == []
            assert run(containerd, reference, READ) == expected
            command = ["sha256sum", *sorted(path.name for path in (left / "data").iterdir())]
            read = subprocess.run(
                command, cwd=left / "data", capture_output=True, text=True, check=True
            )
            assert read.stdout.replace("  ", "  /data/") == expected
        assert run(containerd, reference, READ) == expected
        remove_all(lazyimg, containerd, reference)


def answers(client: SnapshotClient) -> bool:
    try:
        client.list()
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False
    return True


def check_all(
    client: SnapshotClient, loops: list[SnapshotLoop], lazyimg: Lazyimg, image: set[str]
) -> None:
    """Compare what is there with what was answered; disk and mounts with the records."""
    for loop in loops:
        loop.settle(client)
        loop.check_files()
    known = {key: one for loop in loops for key, one in loop.snapshots.items()}
    listed = {info.name: (info.kind, info.parent) for info in client.list()}
    assert listed.keys() == known.keys() | image
    assert all(listed[key] == (one.kind, one.parent) for key, one in known.items())
    client.cleanup()
    with closing(sqlite3.connect(lazyimg.root / "snapshotter/records.sqlite")) as db:
        rows = db.execute("SELECT number FROM snapshot EXCEPT SELECT number FROM remote")
        assert directories(lazyimg) == {str(number) for (number,) in rows}
    stood_on = any(on_image(client, key) for key, one in known.items() if one.kind != pb.COMMITTED)
    assert len(mounts_below(lazyimg.root / "mnt")) == stood_on


def on_image(client: SnapshotClient, key: str) -> bool:
    """Whether a snapshot stands on layers that were not downloaded."""
    (mount,) = client.mounts(key)
    return bool(re.search(r"/mnt/[0-9a-f]{64}", f"{mount.source} {mount.options}"))


def remove_leaves(client: SnapshotClient) -> None:
    """Remove all snapshots, from the top."""
    while listed := client.list():
        for key in {info.name for info in listed} - {info.parent for info in listed}:
            client.remove(key)
