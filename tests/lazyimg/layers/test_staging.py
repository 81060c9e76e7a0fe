"""A device is written as its tar arrives, and is what the index of the layer says."""

from __future__ import annotations

import gzip
import io
import os
import random
import tarfile
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from lazyimg.fill.assembly import gather
from lazyimg.fill.decode import decode_spans
from lazyimg.layers import staging as module
from lazyimg.layers.indexer import LayerIndexer
from lazyimg.layers.staging import DeviceWriter
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.stream_index import parse_stream_index
from tests.fakes.gzip_layer import make_tar

if TYPE_CHECKING:
    from pathlib import Path

    from lazyimg_formats.device_table import DeviceTable

CHANCE = random.Random(7)  # noqa: S311 - the same bytes in every run
FILES = {f"file{number}": CHANCE.randbytes(700) * (number % 80) for number in range(200)}


def sparse_tar() -> bytes:
    """Give a tar of sparse files, small and large, among others, and of what has no data."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number, (size, parts) in enumerate(
            [
                (50_000, [(0, 5000), (40_000, 10_000)]),
                (5 << 20, [(0, 100), (70_000, 9000), (3 << 20, 4096)]),
                (3 << 20, []),
                (9000, [(4096, 4904)]),
            ]
        ):
            plain = tarfile.TarInfo(f"plain{number}")
            plain.size = 5001
            archive.addfile(plain, io.BytesIO(CHANCE.randbytes(5001)))
            sparse = tarfile.TarInfo(f"sparse{number}")
            listed = [len(parts), *(value for part in parts for value in part)]
            header = "".join(f"{value}\n" for value in listed).encode()
            header += bytes(-len(header) % 512)
            data = header + b"".join(CHANCE.randbytes(length) for _, length in parts)
            sparse.size = len(data)
            sparse.pax_headers = {
                "GNU.sparse.major": "1",
                "GNU.sparse.minor": "0",
                "GNU.sparse.name": f"sparse{number}",
                "GNU.sparse.realsize": str(size),
            }
            archive.addfile(sparse, io.BytesIO(data))
        for name, data in {"etc/.wh.gone": b"not a file's", ".wh..wh.plnk/1": b"x" * 600}.items():
            marker = tarfile.TarInfo(name)
            marker.size = len(data)
            archive.addfile(marker, io.BytesIO(data))
        last = tarfile.TarInfo("last")
        last.size = 100_001
        archive.addfile(last, io.BytesIO(CHANCE.randbytes(100_001)))
    return buffer.getvalue()


def stage(path: Path, tar: bytes, step: int) -> tuple[bytes, DeviceTable, bytes]:
    """Give the device, its table, and the bytes that filling it would give."""
    blob = gzip.compress(tar, 1, mtime=0)
    file = io.BytesIO()
    with path.open("w+b") as device:
        writer = DeviceWriter(device)
        indexer = LayerIndexer(Digest.of(blob), Digest.of(tar), file, 100_000, device=writer)
        with closing(indexer):
            for at in range(0, len(blob), step):
                indexer.feed(blob[at : at + step])
            indexer.finish()
    table = parse_stream_index(file.getvalue()).table
    decoded, bad = decode_spans(table, range(table.span_count), 0, blob)
    assert bad == {}
    return path.read_bytes(), table, b"".join(gather(table, 0, table.size, decoded))


@pytest.mark.parametrize("step", [777, 1 << 30])
@pytest.mark.parametrize(
    "tar",
    [make_tar(FILES), sparse_tar(), make_tar({"empty": b""}), make_tar({"a": b"b"})],
    ids=["files", "sparse", "empty", "one"],
)
def test_device_is_what_filling_it_would_give(tmp_path: Path, tar: bytes, step: int) -> None:
    device, table, filled = stage(tmp_path / "device", tar, step)
    assert len(device) == table.size
    assert device == filled


def test_batches_and_gaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH", 10_000)
    monkeypatch.setattr(module, "_GAP", 2000)
    device, _, filled = stage(tmp_path / "device", make_tar(FILES), 5000)
    assert device == filled


def test_writes_that_take_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: write(fd, data[:999], offset))
    device, _, filled = stage(tmp_path / "device", make_tar({"a": b"x" * 50_000}), 1 << 30)
    assert device == filled


def test_space_that_stays_free(tmp_path: Path) -> None:
    """A tar may be much larger than it came: no more of it is written then."""
    with (tmp_path / "device").open("w+b") as file:
        space = os.fstatvfs(file.fileno())
        writer = DeviceWriter(file, reserve=space.f_bavail * space.f_frsize + (1 << 40))
        writer.place(0, 3 << 20, 0, 0)
        with pytest.raises(OSError, match="No space left on device"):
            writer.feed(bytes(3 << 20))
        assert file.seek(0, os.SEEK_END) == 0
