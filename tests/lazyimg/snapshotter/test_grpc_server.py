"""The service on its socket: statuses, messages, who may connect.

What a snapshotter owes containerd in general is tested by tests/containerd.
"""

from __future__ import annotations

import stat
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
from lazyimg.snapshotter.grpc_server import SERVICE, start_server, status_of
from lazyimg.snapshotter.lifecycle import REF, AlreadyExistsError, WrongStateError
from lazyimg.snapshotter.proto import snapshots_pb2 as pb
from lazyimg.snapshotter.service import Snapshotter
from tests.fakes.lazy_images import FakeLazyImages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from google.protobuf.message import Message


@pytest.fixture
async def snapshotter(tmp_path: Path) -> AsyncIterator[Snapshotter]:
    opened = Snapshotter(tmp_path / "root", FakeLazyImages("one"))
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
