"""Many containers on layers that nobody downloaded: one after the other, and all at once."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import tempfile
import time
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from lazyimg_formats.zstd_chunked.location import POSITION
from tests.contracts.snapshots import mounted
from tests.real.containerd import Containerd, running_containerd
from tests.real.docker_registry import Registry, running_registry
from tests.real.eventually import eventually
from tests.real.held import look_at, settled
from tests.real.lazyimg_process import Lazyimg, mounts_below
from tests.real.program_images import make_program_images, sums
from tests.real.scale import scaled
from tests.real.snapshot_client import SnapshotClient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lazyimg.snapshotter.proto import snapshots_pb2 as pb
    from tests.real.counting_proxy import Exchange
    from tests.real.plain_image import PlainImage

NAMES: Final = ("one", "two", "three", "four", "five")[: scaled(5, least=2)]
SIZE: Final = 2 << 20
CYCLES: Final = scaled(500)
CONTAINERS: Final = scaled(50, least=6)
WARMING: Final = 6  # cycles until pools of threads and caches have their size
LIMIT: Final = 900.0  # seconds for all containers
TOOK: Final = re.compile(r"\b([A-Z][a-z]+): (\d+\.\d{3}) s$", re.MULTILINE)
PROXY_PLUGIN: Final = """
[proxy_plugins.lazyimg]
type = "snapshot"
address = "{address}"
"""


@pytest.fixture(scope="module")
def source(disk: Path) -> Iterator[tuple[Registry, dict[str, PlainImage]]]:
    """A registry with images on one base, converted."""
    with (
        tempfile.TemporaryDirectory(dir=disk) as directory,
        running_registry(Path(directory)) as running,
    ):
        images = make_program_images(Path(directory), NAMES, size=SIZE)
        lazyimg = Lazyimg(disk / "nowhere")
        for name, image in images.items():
            lazyimg.verb("convert", image.reference, f"{running.address}/{name}:1")
        yield running, images


@pytest.fixture
def registry(source: tuple[Registry, dict[str, PlainImage]]) -> Registry:
    return source[0]


@pytest.fixture
def images(source: tuple[Registry, dict[str, PlainImage]]) -> dict[str, PlainImage]:
    return source[1]


@pytest.fixture
def place(disk: Path) -> Iterator[Path]:
    """A directory for the daemon and containerd; nothing is mounted there afterwards."""
    with tempfile.TemporaryDirectory(dir=disk) as directory:
        yield Path(directory)
        assert mounts_below(Path(directory)) == []


@pytest.fixture
def lazyimg(place: Path) -> Lazyimg:
    state = place / "state"
    settings = {
        "LAZYIMG_SNAPSHOTTER_ADDRESS": str(state / "snapshotter.sock"),
        "LAZYIMG_LOG_LEVEL": "debug",  # says how long each call takes
        "LAZYIMG_COMPLETION_BYTES_PER_SECOND": "0",  # only containers read
    }
    return Lazyimg(state, settings)


def plugin(lazyimg: Lazyimg) -> str:
    return PROXY_PLUGIN.format(address=lazyimg.settings["LAZYIMG_SNAPSHOTTER_ADDRESS"])


def pull(lazyimg: Lazyimg, containerd: Containerd, reference: str) -> None:
    """Have containerd know an image, of which nothing is downloaded."""
    socket = containerd.directory / "socket"
    printed = json.loads(lazyimg.verb("pull", "--json", "--containerd", socket, reference))
    assert printed["layers"].keys() <= {"lazy", "present"}


def cycle(client: SnapshotClient, top: str, target: Path, number: int) -> None:
    """Make a container and a view of it, read a little, write, and remove both."""
    with mounted(client.prepare("container", top), target) as root:
        files = sorted((root / "data").iterdir())
        (root / "data/new").write_bytes(files[number % len(files)].read_bytes())
    client.view("view", top)
    for key in ("container", "view"):
        client.remove(key)


def test_containers_leak_nothing(
    lazyimg: Lazyimg, registry: Registry, place: Path, tmp_path: Path
) -> None:
    directories = [
        lazyimg.root / name for name in ("mnt", "snapshotter/snapshots", "snapshotter/removed")
    ]
    with (
        lazyimg.serving(),
        closing(SnapshotClient(lazyimg.root / "snapshotter.sock")) as client,
    ):
        with running_containerd(place / "containerd", plugin(lazyimg)) as containerd:
            pull(lazyimg, containerd, f"{registry.address}/one:1")
        (top,) = {info.name for info in client.list()} - {info.parent for info in client.list()}
        pid = int(lazyimg.status()["pid"])
        for number in range(WARMING):
            cycle(client, top, tmp_path / "target", number)
        client.cleanup()
        before = look_at(pid, *directories)
        assert before.entries == 0
        for number in range(CYCLES):
            cycle(client, top, tmp_path / "target", number)
        client.cleanup()
        after = settled(pid, before, *directories)
        assert after.is_no_more_than(before), (before, after)


def test_removal_while_the_registry_hangs(
    lazyimg: Lazyimg, registry: Registry, place: Path, tmp_path: Path
) -> None:
    """The kernel may wait for what was being read; nobody else does."""
    lazyimg.settings["LAZYIMG_FILL_READ_DEADLINE"] = "wait"
    with (
        lazyimg.serving(),
        closing(SnapshotClient(lazyimg.root / "snapshotter.sock")) as client,
    ):
        tops: list[str] = []
        with running_containerd(place / "containerd", plugin(lazyimg)) as containerd:
            for name in NAMES[:2]:
                before = {info.name for info in client.list()}
                pull(lazyimg, containerd, f"{registry.address}/{name}:1")
                listed = {info.name: info.parent for info in client.list()}
                tops += listed.keys() - before - set(listed.values())
        cycle(client, tops[1], tmp_path / "target", 0)
        mount(client.prepare("slow", tops[0]), tmp_path / "slow")
        registry.counts.held = True
        try:
            asked = len(registry.counts.exchanges)
            with subprocess.Popen(["cat", tmp_path / "slow/data/00"]) as reader:
                eventually(lambda: len(registry.counts.exchanges) > asked)
                reader.kill()
            subprocess.run(["umount", "-l", tmp_path / "slow"], check=True)
            client.remove("slow")
            cycle(client, tops[1], tmp_path / "target", 0)
            assert client.list()
        finally:
            registry.counts.held = False
        client.cleanup()
        assert mounts_below(lazyimg.root / "mnt") == []


def mount(mounts: list[pb.Mount], target: Path) -> None:
    """Mount what a snapshotter said, as containerd does."""
    (one,) = mounts
    target.mkdir()
    options = ",".join(one.options)
    subprocess.run(["mount", "-t", one.type, one.source, "-o", options, target], check=True)


def test_many_containers_at_once(
    lazyimg: Lazyimg,
    registry: Registry,
    images: dict[str, PlainImage],
    place: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with (
        lazyimg.serving(),
        running_containerd(place / "containerd", plugin(lazyimg)) as containerd,
    ):
        references = {name: f"{registry.address}/{name}:1" for name in NAMES}
        for reference in references.values():
            pull(lazyimg, containerd, reference)
        registry.counts.clear()
        begin = time.monotonic()
        running = [
            (name, number, start(containerd, references[name], f"{name}-{number}", tmp_path))
            for number, name in enumerate(NAMES * -(-CONTAINERS // len(NAMES)))
        ]
        expected = {name: sums(image) for name, image in images.items()}
        for name, number, process in running:
            _, errors = process.communicate(timeout=LIMIT)
            assert process.returncode == 0, errors
            assert (tmp_path / f"{name}-{number}").read_text() == expected[name]
        took = time.monotonic() - begin
        indexes = set().union(*(indexes_of(each, lazyimg) for each in references.values()))
        reads = map(read_range, registry.counts.blob_reads())
        spans = [one for one in reads if one[:2] not in indexes]
        assert fetched_twice(spans) == {}
        for reference in references.values():
            containerd.ctr("image", "rm", "--sync", reference)
        assert mounts_below(lazyimg.root / "mnt") == []
        assert list((lazyimg.root / "snapshotter/snapshots").iterdir()) == []
    calls: defaultdict[str, list[float]] = defaultdict(list)
    for name, seconds in TOOK.findall(capfd.readouterr().err):
        calls[name].append(float(seconds))
    longest = {name: (len(times), max(times)) for name, times in calls.items()}
    assert longest["Prepare"][0] >= len(running)
    logging.getLogger(__name__).info(
        "%d containers in %.1f s; calls (count, longest in s): %s", len(running), took, longest
    )


def start(
    containerd: Containerd, reference: str, name: str, results: Path
) -> subprocess.Popen[str]:
    """Start a container that reads all of its image's files, and writes what it found."""
    return subprocess.Popen(
        [
            *("ctr", "--address", str(containerd.directory / "socket"), "run", "--rm"),
            *("--cgroup", "", "--snapshotter", "lazyimg"),
            *("--mount", f"type=bind,src={results},dst=/out,options=rbind:rw", reference, name),
            *("sh", "-c", f"sha256sum /data/* >/out/{name}"),
        ],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def indexes_of(reference: str, lazyimg: Lazyimg) -> set[tuple[str, int]]:
    """Return blob and first byte of each layer's index, which an image fetches for itself."""
    layers = json.loads(lazyimg.verb("inspect", "--raw", reference))["layers"]
    return {
        (layer["digest"], int(layer["annotations"][POSITION].partition(":")[0])) for layer in layers
    }


def fetched_twice(reads: list[tuple[str, int, int]]) -> dict[str, list[tuple[int, int]]]:
    """Return the ranges of each blob that were fetched again, as (first byte, last byte)."""
    again: dict[str, list[tuple[int, int]]] = {}
    ends: dict[str, int] = {}
    for digest, first, last in sorted(reads):
        if first <= ends.get(digest, -1):
            again.setdefault(digest, []).append((first, last))
        ends[digest] = max(ends.get(digest, -1), last)
    return again


def read_range(read: Exchange) -> tuple[str, int, int]:
    """Return which blob was read, its first and its last byte."""
    found = re.fullmatch(r"bytes=(\d+)-(\d+)", read.range or "")
    assert found is not None, read
    return read.path.rpartition("/")[2], int(found[1]), int(found[2])
