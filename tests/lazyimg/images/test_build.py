"""Building a bootstrap and device tables: in this process, and in a child."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import msgspec
import pytest

from lazyimg.errors import CorruptError, LazyimgError, NotLazyError, StorageError
from lazyimg.images import build as build_module
from lazyimg.images.build import (
    BuildReply,
    BuildRequest,
    LayerSource,
    build,
    build_image,
)
from lazyimg.images.nydus import NydusSource
from lazyimg.layers.locate import locate_index
from lazyimg_formats.device_table import DeviceTable
from lazyimg_formats.erofs.reader import Image
from lazyimg_formats.errors import FormatError
from tests.fakes.lazy_image import make_lazy_layer
from tests.fakes.nydus import pack_layer, sample

if TYPE_CHECKING:
    from tests.fakes.lazy_image import LazyLayer

BASE = {"etc/name": b"lazyimg\n", "etc/old": b"old", "bin/tool": bytes(range(256)) * 100}
TOP = {"etc/.wh.old": b"", "etc/name": b"other\n"}


@dataclass
class Workshop:
    """A directory for what is built, and the layers in it."""

    root: Path
    layers: list[LayerSource] = field(default_factory=list)

    def add(self, layer: LazyLayer, table: str = "") -> LayerSource:
        location = locate_index(layer.descriptor, "layer")
        number = len(self.layers)
        index = self.root / f"index-{number}"
        index.write_bytes(layer.index)
        source = LayerSource(
            str(layer.descriptor.digest),
            location,
            str(index),
            str(self.root / (table or f"table-{number}")),
        )
        self.layers.append(source)
        return source

    @property
    def request(self) -> BuildRequest:
        return BuildRequest(self.layers, str(self.root / "bootstraps"))

    def table(self, number: int) -> DeviceTable:
        return DeviceTable(Path(self.layers[number].table).read_bytes())


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    (tmp_path / "bootstraps").mkdir()
    return Workshop(tmp_path)


async def test_image_of_two_layers(workshop: Workshop) -> None:
    workshop.add(await make_lazy_layer(BASE))
    workshop.add(await make_lazy_layer(TOP))
    reply = build(workshop.request)
    data = (workshop.root / "bootstraps" / reply.fsid).read_bytes()
    assert reply.fsid == hashlib.sha256(data).hexdigest()
    assert reply.size == len(data)
    assert [layer.device for layer in reply.layers] == [
        workshop.table(number).name for number in (0, 1)
    ]
    assert [layer.size for layer in reply.layers] == [
        workshop.table(number).size for number in (0, 1)
    ]
    image = Image(data)
    assert [slot.tag.decode() for slot in image.slots] == [one.device for one in reply.layers]
    found = {path: inode.size for path, inode in image.walk() if path.count(b"/") == 1}
    assert found == {b"etc/name": 6, b"bin/tool": 25_600}
    name = image.lookup(b"etc/name")
    assert name is not None
    assert [extent.device for extent in image.extents(name)] == [2]


async def test_same_layers_give_the_same_bytes(workshop: Workshop, tmp_path: Path) -> None:
    layer = await make_lazy_layer(BASE)
    workshop.add(layer)
    first = build(workshop.request)
    (tmp_path / "other" / "bootstraps").mkdir(parents=True)
    other = Workshop(tmp_path / "other")
    other.add(layer)
    assert build(other.request) == first


async def test_layer_that_is_there_twice_is_one_device(workshop: Workshop) -> None:
    for _ in range(2):
        workshop.add(await make_lazy_layer(BASE))
    reply = build(workshop.request)
    assert reply.layers[0] == reply.layers[1]
    image = Image((workshop.root / "bootstraps" / reply.fsid).read_bytes())
    assert len(image.slots) == 1


async def test_layer_without_data_has_no_slot(workshop: Workshop) -> None:
    workshop.add(await make_lazy_layer(BASE))
    workshop.add(await make_lazy_layer({"etc/.wh.old": b"", "etc/empty": b""}))
    workshop.add(await make_lazy_layer({"etc/more": b"more"}))
    reply = build(workshop.request)
    assert reply.layers[1].size == 0
    image = Image((workshop.root / "bootstraps" / reply.fsid).read_bytes())
    assert [slot.tag.decode() for slot in image.slots] == [
        reply.layers[0].device,
        reply.layers[2].device,
    ]
    more = image.lookup(b"etc/more")
    assert more is not None
    assert [extent.device for extent in image.extents(more)] == [2]


def test_no_layers(workshop: Workshop) -> None:
    with pytest.raises(FormatError, match="image: it has no layers"):
        build(workshop.request)
    assert list((workshop.root / "bootstraps").iterdir()) == []


async def test_index_that_breaks_its_format_names_its_layer(workshop: Workshop) -> None:
    source = workshop.add(await make_lazy_layer(BASE))
    Path(source.index).write_bytes(b"nonsense")
    with pytest.raises(FormatError) as caught:
        build(workshop.request)
    assert str(caught.value).startswith(f"layer {source.name}: zstd:chunked TOC: expected ")
    assert list((workshop.root / "bootstraps").iterdir()) == []


async def test_child_builds_the_same(workshop: Workshop) -> None:
    workshop.add(await make_lazy_layer(BASE))
    built = await build_image("reg/app", workshop.request)
    path = workshop.root / "bootstraps" / built.fsid
    assert hashlib.sha256(path.read_bytes()).hexdigest() == built.fsid
    path.unlink()
    assert build(workshop.request) == built


async def test_child_that_finds_a_corrupt_index(workshop: Workshop) -> None:
    source = workshop.add(await make_lazy_layer(BASE))
    Path(source.index).write_bytes(b"nonsense")
    with pytest.raises(CorruptError) as caught:
        await build_image("reg/app", workshop.request)
    assert str(caught.value).startswith(f"reg/app: layer {source.name}: zstd:chunked TOC: ")
    assert str(caught.value).endswith("; convert it again, or report it to its owner")


def answer(request: BuildRequest, monkeypatch: pytest.MonkeyPatch) -> BuildReply:
    """Run what the child runs, here."""
    output = io.BytesIO()
    given = SimpleNamespace(buffer=io.BytesIO(msgspec.json.encode(request)))
    with monkeypatch.context() as patch:
        patch.setattr(build_module, "lower_limit", lambda _kind, _most: None)  # of this process
        patch.setattr(sys, "stdin", given)
        patch.setattr(sys, "stdout", SimpleNamespace(buffer=output))
        build_module.main()
    return msgspec.json.decode(output.getvalue(), type=BuildReply)


async def test_answers_of_the_child(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer(workshop.request, monkeypatch) == BuildReply(corrupt="image: it has no layers")
    source = workshop.add(await make_lazy_layer(BASE))
    assert answer(workshop.request, monkeypatch) == build(workshop.request)
    Path(source.index).unlink()
    assert answer(workshop.request, monkeypatch) == BuildReply(
        storage=f"{source.index}: No such file or directory"
    )


async def test_child_without_a_directory_to_write_to(workshop: Workshop) -> None:
    workshop.add(await make_lazy_layer(BASE))
    (workshop.root / "bootstraps").rmdir()
    with pytest.raises(StorageError) as caught:
        await build_image("reg/app", workshop.request)
    assert str(caught.value).startswith("reg/app: ")
    assert str(caught.value).endswith(": No such file or directory")


def stand_in(tmp_path: Path, script: str) -> str:
    """Give an interpreter that runs this instead."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


async def test_child_that_dies(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "cat > /dev/null; echo Traceback >&2; echo 'MemoryError: no more' >&2; exit 3"
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, script))
    with pytest.raises(LazyimgError) as caught:
        await build_image("reg/app", workshop.request)
    assert str(caught.value) == "reg/app: its build ended with 3: MemoryError: no more"


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (
            signal.SIGXCPU,
            (
                "takes over 7 s of a processor to build; if it is to be trusted,"
                " set build.processor_time to more"
            ),
        ),
        (
            signal.SIGSEGV,
            (
                "takes over 64 MiB of memory to build; if it is to be trusted,"
                " set build.memory to more"
            ),
        ),
    ],
)
async def test_child_that_meets_its_limits(
    number: signal.Signals,
    said: str,
    workshop: Workshop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = f"cat > /dev/null; ulimit -c 0; kill -{number} $$"
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, script))
    request = BuildRequest([], str(tmp_path), memory=64 << 20, processor_time=7)
    with pytest.raises(CorruptError) as caught:
        await build_image("reg/app", request)
    assert str(caught.value) == f"reg/app: {said}"


async def test_image_that_needs_more_memory_than_it_may_take(workshop: Workshop) -> None:
    workshop.add(await make_lazy_layer({f"directory/{n}": b"x" * n for n in range(2000)}))
    tight, wide = (
        BuildRequest(workshop.layers, str(workshop.root / "bootstraps"), memory=memory << 20)
        for memory in (16, 256)
    )
    with pytest.raises(CorruptError) as caught:
        await build_image("reg/app", tight)
    assert str(caught.value) == (
        "reg/app: takes over 16 MiB of memory to build; if it is to be trusted,"
        " set build.memory to more"
    )
    assert (await build_image("reg/app", wide)).fsid


async def test_answer_without_memory(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    def build_much(_request: BuildRequest) -> BuildReply:
        raise MemoryError

    monkeypatch.setattr(build_module, "build", build_much)
    assert answer(workshop.request, monkeypatch) == BuildReply(out_of_memory=True)


async def test_child_ends_with_its_caller(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pid"
    os.mkfifo(pipe)
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, f"echo $$ > {pipe}; exec sleep 60"))
    task = asyncio.create_task(build_image("reg/app", workshop.request))
    pid = int(await asyncio.to_thread(pipe.read_text))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


async def test_comparable_image_differs_by_its_times_only(workshop: Workshop) -> None:
    workshop.add(await make_lazy_layer(BASE))
    plain = build(workshop.request)
    marked = build(BuildRequest(workshop.layers, workshop.request.bootstraps, comparable=True))
    assert (marked.layers, marked.size) == (plain.layers, plain.size)
    assert marked.fsid != plain.fsid
    one, other = (
        dict(Image((workshop.root / "bootstraps" / fsid).read_bytes()).walk())
        for fsid in (plain.fsid, marked.fsid)
    )
    assert one.keys() == other.keys()
    for path, inode in one.items():
        assert other[path].mtime == inode.mtime
        assert (inode.mtime_ns, other[path].mtime_ns) == (0, int(path.count(b"/") == 1))


async def test_nydus_image_in_a_child(tmp_path: Path) -> None:
    for name in ("bootstraps", "tables"):
        (tmp_path / name).mkdir()
    layer = tmp_path / "layer"
    layer.write_bytes(pack_layer({"image/image.boot": sample("merged.boot")}))
    source = NydusSource(str(layer), "name", str(tmp_path / "tables"))
    request = BuildRequest([], str(tmp_path / "bootstraps"), nydus=source)
    reply = await build_image("app", request)
    image = Image((tmp_path / "bootstraps" / reply.fsid).read_bytes())
    assert image.lookup(b"etc/hostname") is not None
    assert [slot.tag.decode() for slot in image.slots] == [blob.device for blob in reply.blobs]
    assert reply == build(request)

    layer.write_bytes(pack_layer({"image/image.boot": sample("v5.boot")}))
    with pytest.raises(NotLazyError, match="app: RAFS: version 5 is not supported"):
        await build_image("app", request)
    layer.write_bytes(pack_layer({"image/image.boot": sample("zran.boot")}))
    reply = build(request)
    assert (reply.fsid, len(reply.missing)) == ("", 1)
