"""Checking layers: in this process, and in a child."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import os
import random
import re
import signal
import sys
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import msgspec
import pytest

from lazyimg.errors import CorruptError, LazyimgError, StorageError
from lazyimg.images import check as check_module
from lazyimg.images.check import CheckReply, CheckRequest, Finding, check, find_file, open_check
from lazyimg.layers.indexer import LayerIndexer
from lazyimg.layers.locate import ESTARGZ, IndexLocation, locate_index
from lazyimg.layers.parse import parse_index
from lazyimg_formats.device_table import Codec, DeviceColumns
from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import Entry, Kind, LayerBuilder, Piece
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.stream_index import (
    HEADER_SIZE,
    SPAN_SIZE,
    iterate_spans,
    parse_header,
    serialize_header,
    serialize_spans,
)
from tests.fakes.gzip_layer import make_tar
from tests.fakes.lazy_image import LazyLayer, lying_layer, make_lazy_layer
from tests.fakes.soci_layer import SociLayer
from tests.fakes.stargz_layer import StargzLayer
from tests.fakes.stream_layers import make_stream_index
from tests.lazyimg.images.test_build import stand_in

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

FILES = {"etc/name": b"lazyimg\n", "bin/tool": bytes(range(256)) * 2000}
OTHER = {"etc/name": b"planted\n", "bin/tool": bytes(range(256)) * 2000}
CHANCE = random.Random(5)  # noqa: S311 - the same bytes in every run
TREE = {"etc/name": b"lazyimg\n", "etc/data": bytes(CHANCE.choices(range(40), k=400_000))}
TAR = make_tar(TREE)


@pytest.fixture(scope="module")
def layer() -> LazyLayer:
    return asyncio.run(make_lazy_layer(FILES))


@pytest.fixture(scope="module")
def other() -> LazyLayer:
    return asyncio.run(make_lazy_layer(OTHER))


def request_of(layer: LazyLayer, directory: Path, **changes: object) -> CheckRequest:
    location = locate_index(layer.descriptor, "layer")
    path = directory / "index"
    path.write_bytes(layer.index)
    device = parse_index(location, layer.index).table.name
    request = CheckRequest(
        str(Digest.of(layer.blob)), len(layer.blob), str(layer.diff_id), location, str(path), device
    )
    return msgspec.structs.replace(request, **changes)


def pieces(blob: bytes, size: int = 1000) -> list[bytes]:
    return [blob[at : at + size] for at in range(0, len(blob), size)]


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
def test_layer_that_is_what_its_image_says(layer: LazyLayer, tmp_path: Path, size: int) -> None:
    assert check(request_of(layer, tmp_path), iter(pieces(layer.blob, size))) == CheckReply()


def test_layer_with_another_diff_id(layer: LazyLayer, other: LazyLayer, tmp_path: Path) -> None:
    """Its index describes its tar, but it is another layer than its image says."""
    request = request_of(other, tmp_path, diff_id=str(layer.diff_id))
    assert check(request, iter(pieces(other.blob))) == CheckReply(
        f"diff ID: its tar has {other.diff_id}, its image says {layer.diff_id}"
    )


def test_index_of_another_tar(layer: LazyLayer, other: LazyLayer, tmp_path: Path) -> None:
    """The blob begins with the tar of the diff ID; what is served stands behind it."""
    lie = lying_layer(layer, other)
    assert check(request_of(lie, tmp_path), iter(pieces(lie.blob))) == CheckReply(
        "index: b'etc/name', before byte 8: not the bytes of its tar"
    )


@pytest.mark.parametrize(
    "change", [lambda blob: blob[:-1], lambda blob: blob[:99] + b"?" + blob[100:]]
)
def test_transfer_that_went_wrong(layer: LazyLayer, tmp_path: Path, change: object) -> None:
    blob = change(layer.blob)  # type: ignore[operator]
    reply = check(request_of(layer, tmp_path), iter(pieces(blob)))
    assert reply == CheckReply(
        corrupt=f"its blob came as {len(blob)} bytes with the digest {Digest.of(blob)}"
    )


@pytest.mark.parametrize(
    ("blob", "expected"),
    [
        (b"", "layer: a blob of 0 bytes holds none"),
        (b"tar", "layer: a blob of 3 bytes holds none"),
        (b"BZh91AY", "layer: compressed with bzip2; gzip, zstd and none are known"),
        (gzip.compress(bytes(1024), mtime=0)[:-3], "gzip: cut short"),
        (
            gzip.compress(bytes(1024), mtime=0),
            "index: has b'etc/name', which its tar does not have",
        ),
    ],
)
def test_blob_that_is_no_such_layer(
    layer: LazyLayer, tmp_path: Path, blob: bytes, expected: str
) -> None:
    request = request_of(layer, tmp_path, blob=str(Digest.of(blob)))
    assert check(request, iter(pieces(blob, 2))) == CheckReply(expected)


def stargz_request(layer: StargzLayer, directory: Path, **changes: object) -> CheckRequest:
    location = locate_index(layer.descriptor, "layer")
    if location.format == ESTARGZ:
        place = {"offset": layer.toc_offset, "length": len(layer.blob) - layer.toc_offset}
        location = msgspec.structs.replace(location, **place)
    path = directory / "index"
    path.write_bytes(layer.blob[location.offset :][: location.length])
    device = parse_index(location, path.read_bytes()).table.name
    blob = str(layer.descriptor.digest)
    request = CheckRequest(blob, len(layer.blob), str(layer.diff_id), location, str(path), device)
    return msgspec.structs.replace(request, **changes)


@pytest.mark.parametrize("zstd", [False, True])
def test_layers_of_stargz_snapshotter(tmp_path: Path, *, zstd: bool) -> None:
    """One that is what its image says, and one whose index describes another tar."""
    honest, planted = (StargzLayer(files, zstd=zstd, joined=2) for files in (FILES, OTHER))
    request = stargz_request(honest, tmp_path)
    assert check(request, iter(pieces(honest.blob))) == CheckReply()
    request = stargz_request(
        planted, tmp_path, blob=request.blob, size=request.size, diff_id=request.diff_id
    )
    reply = check(request, iter(pieces(honest.blob)))
    assert reply.problem.startswith("index: b'etc/name', before byte 8: not the bytes")


def test_layer_without_an_index(layer: LazyLayer) -> None:
    """Its blob and its tar are checked."""
    blob, diff_id = gzip.compress(TAR), Digest.of(TAR)
    request = CheckRequest(str(Digest.of(blob)), len(blob), str(diff_id))
    assert check(request, iter(pieces(blob))) == CheckReply()
    request = msgspec.structs.replace(request, diff_id=str(layer.diff_id))
    assert check(request, iter(pieces(blob))) == CheckReply(
        f"diff ID: its tar has {diff_id}, its image says {layer.diff_id}"
    )


def find_lie(
    directory: Path, blob: bytes, change: Callable[[bytes], bytes] = bytes, size: int = 1000
) -> str:
    """Make the index of a layer of `TAR`, as a node does; change it; give what is found."""
    file = io.BytesIO()
    with closing(LayerIndexer(Digest.of(blob), Digest.of(TAR), file, 100_000)) as indexer:
        indexer.feed(blob)
        indexer.finish()
    path, index = directory / "own", change(file.getvalue())
    path.write_bytes(index)
    location = IndexLocation("gzip", 0, len(index), len(index), str(Digest.of(index)))
    request = CheckRequest(
        str(Digest.of(blob)), len(blob), str(Digest.of(TAR)), location, str(path), spans=True
    )
    return check(request, iter(pieces(blob, size))).problem


@pytest.mark.parametrize("size", [777, 1 << 20])
def test_indexes_that_nodes_make(tmp_path: Path, size: int) -> None:
    """Of a gzip stream, whose spans share bytes and need windows, and of several members."""
    assert find_lie(tmp_path, gzip.compress(TAR), size=size) == ""
    assert find_lie(tmp_path, gzip.compress(TAR[:9000]) + gzip.compress(TAR[9000:])) == ""


def move_span(index: bytes) -> bytes:
    """Give an index whose last span but one, which has bytes of a file, begins at another bit."""
    spans = list(iterate_spans(index))
    spans[-2] = spans[-2]._replace(bit=spans[-2].bit ^ 1)
    return index[: -SPAN_SIZE * len(spans)] + serialize_spans(spans)


def test_span_that_lies_elsewhere(tmp_path: Path) -> None:
    """Its digest is that of the tar's bytes; the blob holds others where it points to."""
    found = find_lie(tmp_path, gzip.compress(TAR), move_span)
    assert re.fullmatch(
        r"index: span \d of \d, of b'etc/data': bytes .*(does not decode|expected ).*", found
    )


def test_span_past_the_end(tmp_path: Path) -> None:
    def change(index: bytes) -> bytes:
        *spans, last = iterate_spans(index)
        spans.append(last._replace(blob_length=1 << 20))
        header = serialize_header(parse_header(index)._replace(blob_size=1 << 30))
        return header + index[HEADER_SIZE : -SPAN_SIZE * len(spans)] + serialize_spans(spans)

    found = find_lie(tmp_path, gzip.compress(TAR), change)
    assert re.fullmatch(
        r"index: span \d of \d, of b'etc/data': bytes \d+-\d+ are past the blob's end", found
    )


def test_window_that_is_none(tmp_path: Path) -> None:
    found = find_lie(
        tmp_path,
        gzip.compress(TAR),
        lambda index: index[:HEADER_SIZE] + bytes(100) + index[HEADER_SIZE + 100 :],
    )
    assert re.fullmatch(r"index: span 1 of \d, of b'etc/data': its table cannot be used: .*", found)


def test_index_whose_tar_is_another(tmp_path: Path) -> None:
    other = make_tar({"etc/name": b"planted\n", "etc/data": TREE["etc/data"][::-1]})
    blob = gzip.compress(TAR)
    lie = make_stream_index(other, 100_000)
    header = parse_header(lie)._replace(blob=Digest.of(blob), diff_id=Digest.of(TAR))
    found = find_lie(tmp_path, blob, lambda _: serialize_header(header) + lie[HEADER_SIZE:])
    assert found == (
        "index: span 0, bytes 0 to 100000 of the tar, from b'etc/name' on: not the bytes of its tar"
    )
    found = find_lie(tmp_path, blob, lambda _: lie)
    assert found == (
        f"index: index: is of blob {Digest.of(other)} with the diff ID {Digest.of(other)}"
    )


def test_spans_of_a_layer_with_its_own_index(layer: LazyLayer, tmp_path: Path) -> None:
    request = request_of(layer, tmp_path, spans=True)
    assert check(request, iter(pieces(layer.blob))) == CheckReply()


@pytest.mark.parametrize("zstd", [False, True])
def test_spans_of_layers_of_stargz_snapshotter(tmp_path: Path, *, zstd: bool) -> None:
    """Several lie in one member; one that is said to lie a byte further has another digest."""
    for lie in (False, True):
        layer = StargzLayer(FILES, zstd=zstd, joined=2, chunk=200_000, shifted=lie)
        request = stargz_request(layer, tmp_path, spans=True)
        found = check(request, iter(pieces(layer.blob))).problem
        if lie:
            assert re.fullmatch(
                r"index: span \d of \d, of b'bin/tool': .*: expected 112000 bytes .*",
                found,
            )
        else:
            assert found == ""


def test_device_in_another_order_than_its_blob(tmp_path: Path) -> None:
    """Its spans are checked as they arrive; there is no index that says whose bytes they are."""
    parts = [bytes([number]) * 5000 for number in range(4)]
    blob, columns = b"".join(parts), DeviceColumns()
    for place, number in enumerate((2, 0, 3, 1)):
        digest = hashlib.sha256(parts[number]).digest()
        span = columns.add_span(5000 * number, 5000, 5000, digest, Codec.RAW)
        columns.add_extent(8192 * place, 5000, span, 0)
    path = tmp_path / "table"
    path.write_bytes(columns.serialize(4 * 8192))
    request = CheckRequest(str(Digest.of(blob)), len(blob), "", table=str(path))
    assert check(request, iter(pieces(blob, 700))) == CheckReply()
    wrong = blob[:12_000] + b"?" + blob[12_001:]
    request = msgspec.structs.replace(request, blob=str(Digest.of(wrong)))
    assert check(request, iter(pieces(wrong, 700))).problem.startswith(
        "index: span 0 of 4: bytes 10000-14999 of its blob: expected digest sha256:"
    )


def test_index_that_breaks_its_format(layer: LazyLayer, tmp_path: Path) -> None:
    """Its digest is the promised one: it is not the file that is damaged."""
    data, request = b"no table", request_of(layer, tmp_path)
    assert request.location is not None
    location = msgspec.structs.replace(
        request.location, length=len(data), digest=str(Digest.of(data))
    )
    (tmp_path / "index").write_bytes(data)
    request = msgspec.structs.replace(request, location=location)
    assert (
        check(request, iter(pieces(layer.blob))).problem == "index: zstd frame: no magic at byte 0"
    )


@pytest.mark.parametrize(("offset", "path"), [(0, b"a"), (4100, b"hole"), (1 << 21, b"")])
def test_files_of_a_device(offset: int, path: bytes) -> None:
    builder = LayerBuilder()
    span = builder.add_span(0, 9, 9, bytes(32), Codec.RAW)
    builder.add(Entry(b"a", Kind.REGULAR, size=9), [Piece(0, 9, span)])
    span = builder.add_span(9, 9, 9, bytes(32), Codec.RAW)
    builder.add(Entry(b"hole", Kind.REGULAR, size=1 << 24), [Piece(0, 9, span)])
    assert find_file(builder.finish(), offset) == path


async def ask(request: CheckRequest, blob: Sequence[bytes]) -> Finding:
    async with open_check("layer", request) as checking:
        for piece in blob:
            await checking.feed(piece)
        return await checking.finish()


async def test_child_finds_the_same(layer: LazyLayer, other: LazyLayer, tmp_path: Path) -> None:
    assert await ask(request_of(layer, tmp_path), pieces(layer.blob)) == Finding("")
    lie = request_of(other, tmp_path, diff_id=str(layer.diff_id))
    found = await ask(lie, pieces(other.blob))
    assert found == Finding(check(lie, iter(pieces(other.blob))).problem)
    with pytest.raises(CorruptError, match=r"^layer: its blob came as 1000 bytes with the digest "):
        await ask(request_of(layer, tmp_path), [layer.blob[:1000]])


async def test_child_without_its_index(layer: LazyLayer, tmp_path: Path) -> None:
    request = request_of(layer, tmp_path)
    (tmp_path / "index").write_bytes(b"nonsense")
    with pytest.raises(StorageError, match=r"^layer: .*/index: index: expected "):
        await ask(request, [])
    request = request_of(layer, tmp_path, device="0" * 64)
    with pytest.raises(StorageError, match=r"index: makes device .*, not 0000"):
        await ask(request, pieces(layer.blob))
    (tmp_path / "index").unlink()
    with pytest.raises(StorageError, match=r"/index: No such file or directory$"):
        await ask(request, pieces(layer.blob))


async def test_child_that_dies(
    layer: LazyLayer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, "echo 'no more' >&2; exit 3"))
    with pytest.raises(LazyimgError, match=r"^layer: its check ended with 3: no more$"):
        await ask(request_of(layer, tmp_path), [bytes(1 << 20)] * 4)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGXCPU, "takes over 7 s of a processor to check (build.processor_time)"),
        (signal.SIGSEGV, "takes over 64 MiB of memory to check (build.memory)"),
    ],
)
async def test_child_that_meets_its_limits(
    number: signal.Signals,
    said: str,
    layer: LazyLayer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = f"cat > /dev/null; ulimit -c 0; kill -{number} $$"
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, script))
    request = request_of(layer, tmp_path, memory=64 << 20, processor_time=7)
    assert await ask(request, pieces(layer.blob)) == Finding(said, lasting=False)


async def test_layer_that_needs_more_memory_than_it_may_take(tmp_path: Path) -> None:
    layer = await make_lazy_layer({f"directory/{n}": b"x" * n for n in range(2000)})
    found = await ask(request_of(layer, tmp_path, memory=16 << 20), pieces(layer.blob))
    assert found == Finding("takes over 16 MiB of memory to check (build.memory)", lasting=False)


def test_processor_time_grows_with_the_blob(layer: LazyLayer, tmp_path: Path) -> None:
    assert request_of(layer, tmp_path, size=100 << 20, processor_time=10).seconds == 60


def answer(request: CheckRequest, blob: bytes, monkeypatch: pytest.MonkeyPatch) -> CheckReply:
    """Run what the child runs, here."""
    output = io.BytesIO()
    given = SimpleNamespace(buffer=io.BytesIO(msgspec.json.encode(request) + b"\n" + blob))
    with monkeypatch.context() as patch:
        patch.setattr(check_module, "lower_limit", lambda _kind, _most: None)  # of this process
        patch.setattr(os, "nice", lambda _step: None)
        patch.setattr(sys, "stdin", given)
        patch.setattr(sys, "stdout", SimpleNamespace(buffer=output))
        check_module.main()
    return msgspec.json.decode(output.getvalue(), type=CheckReply)


def test_answers_of_the_child(
    layer: LazyLayer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(layer, tmp_path)
    assert answer(request, layer.blob, monkeypatch) == CheckReply()
    lost = msgspec.structs.replace(request, index=str(tmp_path / "lost"))
    storage = f"{tmp_path}/lost: No such file or directory"
    assert answer(lost, b"", monkeypatch) == CheckReply(storage=storage)
    (tmp_path / "index").write_bytes(b"")
    assert answer(request, b"", monkeypatch).storage.startswith(
        f"{tmp_path}/index: index: expected"
    )

    def check_much(_request: CheckRequest, _pieces: object) -> CheckReply:
        raise MemoryError

    monkeypatch.setattr(check_module, "check", check_much)
    assert answer(request, b"", monkeypatch) == CheckReply(out_of_memory=True)


async def test_child_ends_with_its_caller(
    layer: LazyLayer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pid"
    os.mkfifo(pipe)
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, f"echo $$ > {pipe}; exec sleep 60"))
    task = asyncio.create_task(ask(request_of(layer, tmp_path), [bytes(1 << 20)] * 4))
    pid = int(await asyncio.to_thread(pipe.read_text))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def test_lying_layers_differ_in_nothing_that_a_manifest_says(
    layer: LazyLayer, other: LazyLayer
) -> None:
    lie = lying_layer(layer, other)
    assert lie.diff_id == layer.diff_id
    assert replace(lie.descriptor, annotations={}).size == len(lie.blob)


@pytest.mark.parametrize("lie", [False, True])
def test_ztoc(tmp_path: Path, *, lie: bool) -> None:
    layer = SociLayer()
    ztoc = bytearray(layer.ztoc)
    for at in range(layer.point(1) + 17, layer.point(2)) if lie else ():  # a window
        ztoc[at] ^= 1
    path = tmp_path / "ztoc"
    path.write_bytes(ztoc)
    location = IndexLocation("soci", 0, len(ztoc), len(ztoc), str(Digest.of(bytes(ztoc))))
    device = parse_index(location, bytes(ztoc)).table.name
    request = CheckRequest(
        str(Digest.of(layer.blob)), len(layer.blob), str(layer.diff_id), location, str(path), device
    )
    found = check(request, iter(pieces(layer.blob)))
    assert found == CheckReply("index: span 1 decodes to other bytes than its tar has" * lie)
    path.write_bytes(ztoc[:-1])
    with pytest.raises(FormatError, match="index: expected sha256:"):
        check(request, iter([]))
