"""The service on its socket: statuses, messages, who may connect.

What a snapshotter owes containerd in general is tested by tests/containerd.
"""

from __future__ import annotations

import asyncio
import stat
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty

from lazyimg.errors import (
    AccessDeniedError,
    InUseError,
    KernelError,
    LazyimgError,
    NotFoundError,
    RegistryError,
    StorageError,
    UsageError,
)
from lazyimg.snapshotter import grpc_server
from lazyimg.snapshotter.grpc_server import SERVICE, listen, start_server, status_of
from lazyimg.snapshotter.lifecycle import REF, AlreadyExistsError, WrongStateError
from lazyimg.snapshotter.proto import snapshots_pb2 as pb
from lazyimg.snapshotter.service import Snapshotter
from tests.fakes.lazy_images import FakeLazyImages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from google.protobuf.message import Message

    from lazyimg.snapshotter.lifecycle import RemoteLayer


@pytest.fixture
def images() -> FakeLazyImages:
    return FakeLazyImages("one")


@pytest.fixture
async def snapshotter(tmp_path: Path, images: FakeLazyImages) -> AsyncIterator[Snapshotter]:
    opened = Snapshotter(tmp_path / "root", images)
    await opened.start()
    yield opened
    await opened.close()


@pytest.fixture
async def channel(snapshotter: Snapshotter, tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    server = await start_server(tmp_path / "socket", snapshotter)
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/socket") as opened:
        yield opened
    await server.stop(None)


async def call(channel: grpc.aio.Channel, name: str, request: Message, answer: Any) -> Any:
    method = channel.unary_unary(
        f"/{SERVICE}/{name}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=answer.FromString,
    )
    return await method(request)


async def refusal(
    channel: grpc.aio.Channel, name: str, request: Message
) -> tuple[grpc.StatusCode, str | None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, name, request, Empty)
    return caught.value.code(), caught.value.details()


async def test_socket_is_for_root_only(channel: grpc.aio.Channel, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "socket").stat().st_mode) == 0o600


async def test_other_files_have_their_mode(snapshotter: Snapshotter, tmp_path: Path) -> None:
    """What other tasks make while the server starts is not for its mask."""
    made = tmp_path / "made"
    asyncio.get_running_loop().call_soon(made.mkdir, 0o700)
    server = await start_server(tmp_path / "socket", snapshotter)
    await server.stop(None)
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


async def test_life_of_a_snapshot(channel: grpc.aio.Channel, tmp_path: Path) -> None:
    request = pb.PrepareSnapshotRequest(snapshotter="any", key="k", labels={"a": "b"})
    prepared = await call(channel, "Prepare", request, pb.PrepareSnapshotResponse)
    source = f"{tmp_path}/root/snapshots/1/fs"
    expected = pb.Mount(type="bind", source=source, options=["rw", "rbind"])
    assert list(prepared.mounts) == [expected]
    mounts = await call(channel, "Mounts", pb.MountsRequest(key="k"), pb.MountsResponse)
    assert mounts.mounts == prepared.mounts
    info = (
        await call(channel, "Stat", pb.StatSnapshotRequest(key="k"), pb.StatSnapshotResponse)
    ).info
    assert (info.name, info.parent, info.kind, dict(info.labels)) == (
        "k",
        "",
        pb.ACTIVE,
        {"a": "b"},
    )
    assert info.created_at.ToNanoseconds() > 0
    commit = pb.CommitSnapshotRequest(name="layer", key="k", labels={"c": "d"})
    assert await call(channel, "Commit", commit, Empty) == Empty()
    update = pb.UpdateSnapshotRequest(info=pb.Info(name="layer", labels={"e": "f"}))
    updated = await call(channel, "Update", update, pb.UpdateSnapshotResponse)
    assert dict(updated.info.labels) == {"e": "f"}
    viewed = await call(
        channel, "View", pb.ViewSnapshotRequest(key="v", parent="layer"), pb.ViewSnapshotResponse
    )
    assert list(viewed.mounts) == [pb.Mount(type="bind", source=source, options=["ro", "rbind"])]
    usage = await call(channel, "Usage", pb.UsageRequest(key="layer"), pb.UsageResponse)
    assert usage.inodes == 1
    for key in ("v", "layer"):
        await call(channel, "Remove", pb.RemoveSnapshotRequest(key=key), Empty)
    await call(channel, "Cleanup", pb.CleanupRequest(), Empty)
    assert list((tmp_path / "root/snapshots").iterdir()) == []


async def test_list_of_large_labels(channel: grpc.aio.Channel, snapshotter: Snapshotter) -> None:
    """A client that set no limit takes messages of up to 4 MiB."""
    large = {f"label{number}": "x" * 4000 for number in range(500)}
    for number in range(4):
        await snapshotter.prepare(f"k{number}", "", large)
    stream = channel.unary_stream(
        f"/{SERVICE}/List",
        request_serializer=pb.ListSnapshotsRequest.SerializeToString,
        response_deserializer=pb.ListSnapshotsResponse.FromString,
    )
    answers = [answer async for answer in stream(pb.ListSnapshotsRequest())]
    assert [info.name for answer in answers for info in answer.info] == ["k0", "k1", "k2", "k3"]
    assert answers[0].info[0].labels == large


async def test_list_is_streamed(channel: grpc.aio.Channel, snapshotter: Snapshotter) -> None:
    for number in range(300):
        await snapshotter.view(f"{number:03}", "", {})
    stream = channel.unary_stream(
        f"/{SERVICE}/List",
        request_serializer=pb.ListSnapshotsRequest.SerializeToString,
        response_deserializer=pb.ListSnapshotsResponse.FromString,
    )
    answers = [answer async for answer in stream(pb.ListSnapshotsRequest())]
    assert len(answers) > 1
    assert [info.name for answer in answers for info in answer.info] == [
        f"{number:03}" for number in range(300)
    ]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [answer async for answer in stream(pb.ListSnapshotsRequest(filters=["="]))]
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "filter: expected the name of a field, at character 0 of '='"


async def test_lazy_layer_exists_already(channel: grpc.aio.Channel) -> None:
    request = pb.PrepareSnapshotRequest(key="k", labels={REF: "one"})
    assert await refusal(channel, "Prepare", request) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "snapshot one: it exists already",
    )


async def test_failure_of_its_own(
    channel: grpc.aio.Channel, snapshotter: Snapshotter, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    async def fail(_key: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(snapshotter, "remove", fail)
    assert await refusal(channel, "Remove", pb.RemoveSnapshotRequest(key="k")) == (
        grpc.StatusCode.INTERNAL,
        "lazyimg: an error of its own; its log has the details",
    )
    assert "Remove failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


class SlowMount:
    """Mounts of a `FakeLazyImages` that wait.

    Attributes:
        begun: set when one has begun.
        go: they wait for it.
        done: set when one has ended, or has failed.
        error: raised instead.
    """

    def __init__(self, images: FakeLazyImages, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.done = asyncio.Event()
        self.error: Exception | None = None
        self._mount = images.mount
        monkeypatch.setattr(images, "mount", self.mount)

    async def mount(self, layer: RemoteLayer, user: int) -> Path:
        self.begun.set()
        try:
            await self.go.wait()
            if self.error is not None:
                raise self.error
            return await self._mount(layer, user)
        finally:
            self.done.set()


async def have_lazy_layer(snapshotter: Snapshotter) -> str:
    """Have a lazy layer; give its key."""
    with pytest.raises(AlreadyExistsError):
        await snapshotter.prepare("extract", "", {REF: "one"})
    ((layer,),) = [page async for page in snapshotter.select([])]
    return layer.key


async def abandon_prepare(channel: grpc.aio.Channel, layer: str, slow: SlowMount) -> None:
    request = pb.PrepareSnapshotRequest(key="k", parent=layer)
    preparing = asyncio.create_task(call(channel, "Prepare", request, pb.PrepareSnapshotResponse))
    await slow.begun.wait()
    preparing.cancel()
    await asyncio.wait([preparing])


async def served_after_all_before(channel: grpc.aio.Channel) -> None:
    """Have a call answered: what was told to the server before has reached it."""
    await refusal(channel, "Stat", pb.StatSnapshotRequest(key="none"))


async def test_prepare_is_finished_without_its_caller(
    channel: grpc.aio.Channel, snapshotter: Snapshotter, images: FakeLazyImages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    layer = await have_lazy_layer(snapshotter)
    slow = SlowMount(images, monkeypatch)
    await abandon_prepare(channel, layer, slow)
    await served_after_all_before(channel)
    assert not slow.done.is_set()
    slow.go.set()
    await slow.done.wait()
    assert list(images.mounted) == [(await snapshotter.stat("k")).number]


async def test_failure_without_caller_is_logged(
    channel: grpc.aio.Channel, snapshotter: Snapshotter, images: FakeLazyImages,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    layer = await have_lazy_layer(snapshotter)
    slow = SlowMount(images, monkeypatch)
    slow.error = ZeroDivisionError()
    await abandon_prepare(channel, layer, slow)
    await served_after_all_before(channel)
    slow.go.set()
    async with asyncio.timeout(10):
        while "Prepare failed" not in caplog.text:  # when what it had made is removed
            await served_after_all_before(channel)


@pytest.mark.parametrize("patient", [True, False])
async def test_stop_waits_for_what_goes_on_without_its_caller(
    snapshotter: Snapshotter, images: FakeLazyImages, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, *, patient: bool,
) -> None:  # fmt: skip
    layer = await have_lazy_layer(snapshotter)
    slow = SlowMount(images, monkeypatch)
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/socket") as channel:
        async with AsyncExitStack() as stack:
            await listen(tmp_path / "socket", snapshotter, stack)
            await abandon_prepare(channel, layer, slow)
            await served_after_all_before(channel)
            if patient:
                asyncio.get_running_loop().call_soon(slow.go.set)
            else:
                monkeypatch.setattr(grpc_server, "STOP_GRACE", 0.01)
        assert slow.done.is_set()
    assert (images.mounted != {}) is patient


async def test_stop_waits_for_what_is_unmounted(
    snapshotter: Snapshotter, images: FakeLazyImages, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    layer = await have_lazy_layer(snapshotter)
    release, go = images.release, asyncio.Event()

    async def release_slowly(user: int) -> None:
        await go.wait()
        await release(user)

    monkeypatch.setattr(images, "release", release_slowly)
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/socket") as channel:
        async with AsyncExitStack() as stack:
            await listen(tmp_path / "socket", snapshotter, stack)
            request = pb.PrepareSnapshotRequest(key="k", parent=layer)
            await call(channel, "Prepare", request, pb.PrepareSnapshotResponse)
            await call(channel, "Remove", pb.RemoveSnapshotRequest(key="k"), Empty)
            assert images.mounted != {}
            asyncio.get_running_loop().call_soon(go.set)
        assert images.mounted == {}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (AlreadyExistsError("a", "b"), grpc.StatusCode.ALREADY_EXISTS),
        (WrongStateError("a", "b"), grpc.StatusCode.FAILED_PRECONDITION),
        (InUseError("a", "b"), grpc.StatusCode.FAILED_PRECONDITION),
        (NotFoundError("a", "b"), grpc.StatusCode.NOT_FOUND),
        (UsageError("a", "b"), grpc.StatusCode.INVALID_ARGUMENT),
        (AccessDeniedError("a", "b"), grpc.StatusCode.PERMISSION_DENIED),
        (RegistryError("a", "b"), grpc.StatusCode.UNAVAILABLE),
        (StorageError("a", "b"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (KernelError("a", "b"), grpc.StatusCode.UNKNOWN),
    ],
)
def test_statuses(error: LazyimgError, status: grpc.StatusCode) -> None:
    assert status_of(error) is status


async def test_no_socket(snapshotter: Snapshotter, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot listen"):
        await start_server(tmp_path / "no/such/directory/socket", snapshotter)
