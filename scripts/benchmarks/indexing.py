"""From a tar's headers to a bootstrap: microseconds per entry; and a large image in a child."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lazyimg.images.merge import merge_layers
from lazyimg_formats.device_table import BLOCK_SIZE
from lazyimg_formats.erofs.tree import Device
from lazyimg_formats.erofs.writer import serialize_image
from lazyimg_formats.estargz.toc import parse_stargz_toc
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.tar.scanner import TarScanner
from lazyimg_formats.zstd_chunked.entries import KINDS, format_time
from lazyimg_formats.zstd_chunked.location import FOOTER_FRAME_SIZE, parse_footer
from lazyimg_formats.zstd_chunked.toc import parse_toc
from scripts.benchmarks.conversion import convert
from scripts.benchmarks.measure import Figure
from scripts.benchmarks.tars import tar_of_machine, tar_of_small_files

if TYPE_CHECKING:
    from lazyimg_formats.layer import LayerIndex
    from lazyimg_formats.tar.scanner import Member

PIECE: Final = 1 << 20
PROJECT: Final = Path(__file__).resolve().parents[2]
PARTS: Final = ("tar scan", "index", "merge and bootstrap")
CHUNK: Final = 4 << 20
HEADERS: Final = 512
DIGEST: Final = "sha256:" + "ab" * 32
TYPES: Final = {kind: name for name, kind in KINDS.items()}


def measure_indexing(work: Path, *, rounds: int, quick: bool) -> list[Figure]:
    """Measure the steps on a tar of this machine, and a large image."""
    tar = tar_of_machine(40_000_000 if quick else 200_000_000)
    toc, end = make_toc(tar)
    steps: dict[str, list[float]] = {name: [] for name in PARTS}
    for _ in range(rounds):
        for name, seconds in _run_steps(tar, toc, end).items():
            steps[name].append(seconds)
    figures = [Figure(f"{name}, each entry", "us", kept) for name, kept in steps.items()]
    total = [sum(values) for values in zip(*steps.values(), strict=True)]
    figures.append(Figure("scan, index and bootstrap, each entry", "us", total, 20.0, most=True))
    runs = [measure_stargz(tar) for _ in range(rounds)]
    figures.append(Figure("index of eStargz, each entry", "us", runs, 15.0, most=True))
    return figures + _measure_large(work, rounds, 20_000 if quick else 100_000)


def make_toc(tar: bytes) -> tuple[bytes, int]:
    """Give the TOC of a tar that was converted, and where its files' frames end."""
    blob = convert(tar, Digest.of(tar))
    location = parse_footer(blob[-FOOTER_FRAME_SIZE:])
    stored = blob[location.offset : location.offset + location.length]
    return location.decode(stored), location.data_end


def _run_steps(tar: bytes, toc: bytes, end: int) -> dict[str, float]:
    """Give each step's microseconds of CPU for one entry."""
    times = [time.process_time()]
    scanner = TarScanner()
    entries = 0
    for at in range(0, len(tar), PIECE):
        entries += len(scanner.feed(tar[at : at + PIECE]))
    scanner.finish()
    times.append(time.process_time())
    index = parse_toc(toc, end=end)
    times.append(time.process_time())
    make_bootstrap(index)
    times.append(time.process_time())
    del index
    gc.collect()
    steps = zip(PARTS, times[:-1], times[1:], strict=True)
    return {name: 1e6 * (after - before) / entries for name, before, after in steps}


def measure_stargz(tar: bytes) -> float:
    """Give microseconds of CPU for one entry of an eStargz layer's index."""
    scanner = TarScanner()
    members = [
        one for at in range(0, len(tar), PIECE) for one in scanner.feed(tar[at : at + PIECE])
    ]
    toc, end = make_stargz_toc(members)
    begin = time.process_time()
    index = parse_stargz_toc(toc, end=end)
    taken = time.process_time() - begin
    assert len(index.entries) == len(members)  # noqa: S101 - the figure would be another's
    return 1e6 * taken / len(members)


def make_stargz_toc(members: list[Member]) -> tuple[bytes, int]:
    """Give a TOC as stargz-snapshotter writes it, and where its files' members end."""
    entries: list[dict[str, Any]] = []
    offset = HEADERS
    for member in members:
        entry = member.entry
        toc: dict[str, Any] = {
            "name": entry.path.decode(errors="replace"),
            "type": TYPES[entry.kind],
            "modtime": format_time(entry.mtime, 0),
            "mode": entry.mode,
            "uid": entry.uid,
            "gid": entry.gid,
            "linkName": entry.target.decode(errors="replace"),
            "NumLink": 0,
        }
        if member.has_data:
            toc |= {"size": entry.size, "digest": DIGEST}
        entries.append(toc)
        for at in range(0, entry.size if member.has_data else 0, CHUNK):
            if at:
                toc = {"name": toc["name"], "type": "chunk", "chunkOffset": at}
                entries.append(toc)
            length = min(CHUNK, entry.size - at)
            toc |= {"offset": offset, "chunkDigest": DIGEST}
            toc |= {"chunkSize": length} if length == CHUNK else {}
            offset += length + HEADERS
    document = {"version": 1, "entries": entries}
    return json.dumps(document, indent="\t", ensure_ascii=False).encode(), offset


def make_bootstrap(index: LayerIndex) -> bytes:
    """Give the bootstrap of an image of one layer."""
    (root,) = merge_layers([(index, 0)])
    return serialize_image(root, [Device(index.table.name, index.table.size // BLOCK_SIZE)])


def _measure_large(work: Path, rounds: int, entries: int) -> list[Figure]:
    toc, end = make_toc(tar_of_small_files(entries))
    path = work / "toc"
    path.write_bytes(toc)
    runs = []
    for _ in range(rounds):
        command = [sys.executable, "-m", "scripts.benchmarks.indexing", str(path), str(end)]
        ended = subprocess.run(command, check=True, capture_output=True, text=True, cwd=PROJECT)
        runs.append(json.loads(ended.stdout))
    name = f"{entries:,} entries"
    return [
        Figure(f"{name}: index", "s of CPU", [run["index"] for run in runs]),
        Figure(
            f"{name}: merge and bootstrap",
            "s of CPU",
            [run["build"] for run in runs],
            1.0,
            most=True,
        ),
        Figure(f"{name}: most memory", "MB", [run["memory"] for run in runs], 300.0, most=True),
    ]


def main() -> None:
    """Be the child: build one image, and say what it took."""
    path, end = sys.argv[1:]
    begin = time.process_time()
    index = parse_toc(Path(path).read_bytes(), end=int(end))
    middle = time.process_time()
    make_bootstrap(index)
    done = time.process_time()
    (most,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    memory = int(most) * 1024 / 1e6
    print(json.dumps({"index": middle - begin, "build": done - middle, "memory": memory}))


if __name__ == "__main__":
    main()
