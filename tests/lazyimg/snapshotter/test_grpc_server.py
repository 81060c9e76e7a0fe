"""The service on its socket: statuses, messages, who may connect.

What a snapshotter owes containerd in general is tested by tests/containerd.
"""

from __future__ import annotations

import asyncio
import stat
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis import given, settings
from hypothesis import strategies as st

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
from lazyimg.host.lasting_sockets import LastingSockets
from lazyimg.host.service_manager import ServiceManager
from lazyimg.snapshotter import grpc_server
from lazyimg.snapshotter.grpc_server import MAX_DETAILS, SERVICE, listen, status_of
from lazyimg.snapshotter.lifecycle import REF, AlreadyExistsError, WrongStateError
from lazyimg.snapshotter.proto import snapshots_pb2 as pb
from lazyimg.snapshotter.service import Snapshotter
from tests.fakes.lazy_images import FakeLazyImages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

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


@asynccontextmanager
async def serving(path: Path, snapshotter: Snapshotter) -> AsyncIterator[None]:
    """Answer on a socket while the block runs."""
    async with AsyncExitStack() as stack:
        await listen(path, snapshotter, LastingSockets(ServiceManager({}), {}), stack)
        yield


@pytest.fixture
async def channel(snapshotter: Snapshotter, tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    path = tmp_path / "socket"
    async with (
        serving(path, snapshotter),
        grpc.aio.insecure_channel(f"unix:{path}") as opened,
    ):
        yield opened
    assert not path.exists()


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

    async def mount(self, layer: RemoteLayer, user: int, *, comparable: bool) -> Path:
        self.begun.set()
        try:
            await self.go.wait()
            if self.error is not None:
                raise self.error
            return await self._mount(layer, user, comparable=comparable)
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
        async with serving(tmp_path / "socket", snapshotter):
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
        async with serving(tmp_path / "socket", snapshotter):
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


METHODS = {
    "Prepare": pb.PrepareSnapshotRequest,
    "View": pb.ViewSnapshotRequest,
    "Mounts": pb.MountsRequest,
    "Commit": pb.CommitSnapshotRequest,
    "Remove": pb.RemoveSnapshotRequest,
    "Stat": pb.StatSnapshotRequest,
    "Update": pb.UpdateSnapshotRequest,
    "Usage": pb.UsageRequest,
}


async def send(channel: grpc.aio.Channel, name: str, data: bytes) -> grpc.StatusCode:
    """Send any bytes; give the status, which must say what is wrong with them."""
    kind: Any = channel.unary_stream if name == "List" else channel.unary_unary
    answer = kind(f"/{SERVICE}/{name}")(data, timeout=60)
    if name == "List":
        with suppress(grpc.aio.AioRpcError):
            async for _ in answer:
                pass
    code: grpc.StatusCode = await answer.code()
    assert code is grpc.StatusCode.OK or await answer.details()
    return code


@pytest.mark.parametrize("name", [*METHODS, "Cleanup", "List"])
@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05ab", b"\x0a\x02\xc3\x28", b"\x1b\x1b"])
async def test_what_is_no_message(channel: grpc.aio.Channel, name: str, data: bytes) -> None:
    if name == "Cleanup" and data == b"\x0a\x05ab":
        return
    assert await send(channel, name, data) is grpc.StatusCode.INVALID_ARGUMENT


REFUSALS = {
    grpc.StatusCode.OK,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
}
TEXTS = st.text(max_size=6) | st.sampled_from(
    ["", "a", "b", "labels", "labels.a", "kind", "name==a", "labels.a,kind!=view", "x" * 40_000]
)
LABELS = st.dictionaries(TEXTS | st.just(REF), TEXTS, max_size=3)
REQUESTS = st.one_of(
    st.builds(pb.PrepareSnapshotRequest, key=TEXTS, parent=TEXTS, labels=LABELS),
    st.builds(pb.ViewSnapshotRequest, key=TEXTS, parent=TEXTS, labels=LABELS),
    st.builds(pb.MountsRequest, key=TEXTS),
    st.builds(pb.CommitSnapshotRequest, name=TEXTS, key=TEXTS, parent=TEXTS, labels=LABELS),
    st.builds(pb.RemoveSnapshotRequest, key=TEXTS),
    st.builds(pb.StatSnapshotRequest, key=TEXTS),
    st.builds(
        pb.UpdateSnapshotRequest,
        info=st.builds(pb.Info, name=TEXTS, kind=st.integers(0, 99), parent=TEXTS, labels=LABELS),
        update_mask=st.none() | st.builds(FieldMask, paths=st.lists(TEXTS, max_size=3)),
    ),
    st.builds(pb.UsageRequest, key=TEXTS),
    st.builds(pb.ListSnapshotsRequest, filters=st.lists(TEXTS, max_size=3)),
)
NAMES = {kind: name for name, kind in METHODS.items()} | {pb.ListSnapshotsRequest: "List"}


@settings(max_examples=15)
@given(requests=st.lists(REQUESTS, min_size=5, max_size=25))
def test_any_requests(requests: list[Message]) -> None:
    """Whatever is asked for in whatever order, the answer says whose fault a refusal is."""

    async def ask(directory: Path) -> None:
        snapshotter = Snapshotter(directory / "root", FakeLazyImages("a"))
        await snapshotter.start()
        async with (
            serving(directory / "socket", snapshotter),
            grpc.aio.insecure_channel(f"unix:{directory}/socket") as channel,
        ):
            for request in requests:
                name = NAMES[type(request)]
                code = await send(channel, name, request.SerializeToString())
                assert code in REFUSALS, (name, request)
        await snapshotter.close()

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(ask(Path(directory)))


async def test_refusal_of_long_names_can_be_read(channel: grpc.aio.Channel) -> None:
    request = pb.PrepareSnapshotRequest(key="k", parent="\N{SPOUTING WHALE}" * 8000)
    code, details = await refusal(channel, "Prepare", request)
    assert code is grpc.StatusCode.NOT_FOUND
    assert details is not None
    assert len(details) == MAX_DETAILS


async def test_update_of_nothing(channel: grpc.aio.Channel) -> None:
    code, details = await refusal(channel, "Update", pb.UpdateSnapshotRequest())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details == "snapshot: a snapshot needs a key"
