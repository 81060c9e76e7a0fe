"""Checking layers: in this process, and in a child."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import signal
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import msgspec
import pytest

from lazyimg.errors import CorruptError, LazyimgError, StorageError
from lazyimg.images import check as check_module
from lazyimg.images.check import CheckReply, CheckRequest, Finding, check, open_check
from lazyimg.layers.locate import locate_index
from lazyimg.layers.parse import parse_index
from lazyimg_formats.oci.digest import Digest
from tests.fakes.lazy_image import LazyLayer, lying_layer, make_lazy_layer
from tests.fakes.stargz_layer import StargzLayer
from tests.lazyimg.images.test_build import stand_in

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FILES = {"etc/name": b"lazyimg\n", "bin/tool": bytes(range(256)) * 2000}
OTHER = {"etc/name": b"planted\n", "bin/tool": bytes(range(256)) * 2000}


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


@pytest.mark.parametrize("zstd", [False, True])
def test_layers_of_stargz_snapshotter(tmp_path: Path, *, zstd: bool) -> None:
    """One that is what its image says, and one whose index describes another tar."""
    honest, planted = (StargzLayer(files, zstd=zstd, joined=2) for files in (FILES, OTHER))
    for layer in (honest, planted):
        location = locate_index(layer.descriptor, "layer")
        if not zstd:
            length = len(layer.blob) - layer.toc_offset
            place = {"offset": layer.toc_offset, "length": length}
            location = msgspec.structs.replace(location, **place)
        path = tmp_path / "index"
        path.write_bytes(layer.blob[location.offset :][: location.length])
        device = parse_index(location, path.read_bytes()).table.name
        blob = str(honest.descriptor.digest)
        request = CheckRequest(
            blob, len(honest.blob), str(honest.diff_id), location, str(path), device
        )
        reply = check(request, iter(pieces(honest.blob)))
        if layer is honest:
            assert reply == CheckReply()
        else:
            assert reply.problem.startswith("index: b'etc/name', before byte 8: not the bytes")


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
    with pytest.raises(StorageError, match=r"^layer: .*/index: zstd:chunked TOC: "):
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
    assert answer(request, b"", monkeypatch).storage.startswith(f"{tmp_path}/index: zstd:chunked")

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
