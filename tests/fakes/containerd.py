"""containerd's services as far as a pull needs them, in memory, over real gRPC on a unix socket.

It follows containerd in what can go wrong for a client: content is verified and written once,
labels are set by field mask, a snapshot that is there already is found by the chain that it is for,
and a collector removes whatever no image and no lease refers to.

    with running_containerd(tmp_path / "socket") as containerd:
        containerd.lazy.add(chain)
        ...
        containerd.images["docker.io/library/debian:12"]
"""

from __future__ import annotations

import gzip
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import zstandard
from google.protobuf.empty_pb2 import Empty

from lazyimg.containerd.proto import containerd_pb2 as pb
from lazyimg_formats.oci.digest import Digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

COMMITTED, ACTIVE = 3, 2
REF = "containerd.io/snapshot.ref"
CONTENT_REF = "containerd.io/gc.ref.content."
SNAPSHOT_REF = "containerd.io/gc.ref.snapshot."


@dataclass
class Content:
    data: bytes
    labels: dict[str, str]


@dataclass
class Snapshot:
    """A snapshot; `tars` is what was unpacked into it."""

    parent: str
    kind: int
    labels: dict[str, str]
    tars: list[bytes] = field(default_factory=list)


class FakeContainerd:
    """Everything it knows, and switches; all may be changed while it runs.

    Attributes:
        lazy: chains that its snapshotters show without their layers.
        lies: chains of which they say so, and do not have them.
        shared: content of another namespace, which need not be sent again.
        faults: by method ("Diff/Apply"): the status that it is answered with, once.
        on: by method: called first.
        calls: methods, in their order.
        overtaken: methods with which somebody else is faster: it is there in the middle of a call.
    """

    def __init__(self) -> None:
        self.snapshotters = {"lazyimg", "overlayfs"}
        self.lazy: set[str] = set()
        self.lies: set[str] = set()
        self.shared: dict[str, bytes] = {}
        self.faults: dict[str, tuple[grpc.StatusCode, str]] = {}
        self.overtaken: set[str] = set()
        self.on: dict[str, Callable[[], object]] = {}
        self.calls: list[str] = []
        self.received = 0
        self.namespaces: set[str] = set()
        self.leases: dict[str, dict[str, str]] = {}
        self.held: dict[str, set[tuple[str, str]]] = {}
        self.content: dict[str, Content] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.images: dict[str, pb.Image] = {}

    # Leases.

    def create_lease(self, request: pb.CreateLeaseRequest, call: Call) -> Empty:
        self.leases[request.id] = dict(request.labels)
        self.held[request.id] = set()
        return Empty()

    def delete_lease(self, request: pb.DeleteLeaseRequest, call: Call) -> Empty:
        if self.leases.pop(request.id, None) is None:
            call.fail(grpc.StatusCode.NOT_FOUND)
        del self.held[request.id]
        if request.sync:
            self.collect()
        return Empty()

    def collect(self) -> None:
        """Remove what nothing refers to."""
        wanted = {key for held in self.held.values() for key in held}
        wanted |= {("content", image.target.digest) for image in self.images.values()}
        seen: set[tuple[str, str]] = set()
        while wanted:
            kind, name = key = wanted.pop()
            seen.add(key)
            labels: Mapping[str, str] = {}
            if kind == "content" and name in self.content:
                labels = self.content[name].labels
            elif kind == "snapshot" and name in self.snapshots and self.snapshots[name].parent:
                wanted.add(("snapshot", self.snapshots[name].parent))
            for label, value in labels.items():
                if label.startswith(CONTENT_REF):
                    wanted.add(("content", value))
                elif label.startswith(SNAPSHOT_REF):
                    wanted.add(("snapshot", value))
            wanted -= seen
        self.content = {k: v for k, v in self.content.items() if ("content", k) in seen}
        self.snapshots = {k: v for k, v in self.snapshots.items() if ("snapshot", k) in seen}

    # Content.

    def content_info(self, request: pb.ContentInfoRequest, call: Call) -> pb.ContentInfoResponse:
        if request.digest not in self.content:
            call.fail(grpc.StatusCode.NOT_FOUND)
        return pb.ContentInfoResponse(info=self._content(request.digest))

    def update_content(
        self, request: pb.UpdateContentRequest, call: Call
    ) -> pb.UpdateContentResponse:
        labels = self.content[request.info.digest].labels
        for path in request.update_mask.paths:
            name = path.removeprefix("labels.")
            labels[name] = request.info.labels[name]
        return pb.UpdateContentResponse(info=self._content(request.info.digest))

    def _content(self, digest: str) -> pb.ContentInfo:
        kept = self.content[digest]
        return pb.ContentInfo(digest=digest, size=len(kept.data), labels=kept.labels)

    def write_content(
        self, requests: Iterator[pb.WriteContentRequest], call: Call
    ) -> Iterator[pb.WriteContentResponse]:
        first = next(requests)
        assert first.action == pb.STAT
        digest = first.expected
        if digest in self.content:
            call.hold("content", digest)
            call.fail(grpc.StatusCode.ALREADY_EXISTS, f"content {digest}")
        data = bytearray(self.shared.get(digest, b""))
        yield pb.WriteContentResponse(action=pb.STAT, offset=len(data), total=first.total)
        for request in requests:
            if "Content/Write" in self.overtaken:
                self.overtaken.remove("Content/Write")
                self.content[digest] = Content(b"", {})
                call.fail(grpc.StatusCode.ALREADY_EXISTS, f"content {digest}")
            call.take_fault("Content/Write")
            if request.offset != len(data):
                call.fail(grpc.StatusCode.OUT_OF_RANGE, "wrong offset")
            data += request.data
            self.received += len(request.data)
            if request.action == pb.COMMIT:
                self._commit_content(request, bytes(data), call)
            yield pb.WriteContentResponse(action=request.action, offset=len(data))

    def _commit_content(self, request: pb.WriteContentRequest, data: bytes, call: Call) -> None:
        if len(data) != request.total or str(Digest.of(data)) != request.expected:
            call.fail(grpc.StatusCode.FAILED_PRECONDITION, "unexpected commit digest")
        self.content[request.expected] = Content(data, dict(request.labels))
        call.hold("content", request.expected)

    # Snapshots.

    def prepare(self, request: pb.PrepareSnapshotRequest, call: Call) -> pb.PrepareSnapshotResponse:
        chain = request.labels[REF]
        if request.parent and request.parent not in self.snapshots:
            call.fail(grpc.StatusCode.NOT_FOUND, "no parent")
        if chain in self.lazy and chain not in self.snapshots:
            self.snapshots[chain] = Snapshot(request.parent, COMMITTED, dict(request.labels))
        if chain in self.snapshots or chain in self.lies:
            call.hold("snapshot", chain)
            call.fail(grpc.StatusCode.ALREADY_EXISTS, f"target snapshot {chain}")
        self.snapshots[request.key] = Snapshot(request.parent, ACTIVE, dict(request.labels))
        call.hold("snapshot", request.key)
        return pb.PrepareSnapshotResponse(
            mounts=[pb.Mount(type="bind", source=request.key, options=["rw", "rbind"])]
        )

    def stat(self, request: pb.StatSnapshotRequest, call: Call) -> pb.StatSnapshotResponse:
        if request.snapshotter not in self.snapshotters:
            call.fail(
                grpc.StatusCode.INVALID_ARGUMENT, f"snapshotter not loaded: {request.snapshotter}"
            )
        found = self.snapshots.get(request.key)
        if found is None:
            call.fail(grpc.StatusCode.NOT_FOUND)
        return pb.StatSnapshotResponse(
            info=pb.SnapshotInfo(
                name=request.key, parent=found.parent, kind=found.kind, labels=found.labels
            )
        )

    def commit(self, request: pb.CommitSnapshotRequest, call: Call) -> Empty:
        if "Snapshots/Commit" in self.overtaken:
            self.snapshots[request.name] = Snapshot(
                self.snapshots[request.key].parent, COMMITTED, {}
            )
        if request.name in self.snapshots:
            call.fail(grpc.StatusCode.ALREADY_EXISTS)
        made = self.snapshots.pop(request.key)
        self.snapshots[request.name] = Snapshot(
            made.parent, COMMITTED, dict(request.labels), made.tars
        )
        call.hold("snapshot", request.name)
        return Empty()

    def remove(self, request: pb.RemoveSnapshotRequest, call: Call) -> Empty:
        del self.snapshots[request.key]
        return Empty()

    def apply(self, request: pb.ApplyRequest, call: Call) -> pb.ApplyResponse:
        (mount,) = request.mounts
        tar = decompress(self.content[request.diff.digest].data, request.diff.media_type)
        self.snapshots[mount.source].tars.append(tar)
        return pb.ApplyResponse(applied=pb.Descriptor(digest=str(Digest.of(tar)), size=len(tar)))

    # Images.

    def create_image(self, request: pb.CreateImageRequest, call: Call) -> pb.CreateImageResponse:
        if request.image.name in self.images:
            call.fail(grpc.StatusCode.ALREADY_EXISTS)
        self.images[request.image.name] = request.image
        return pb.CreateImageResponse(image=request.image)

    def update_image(self, request: pb.UpdateImageRequest, call: Call) -> pb.UpdateImageResponse:
        assert request.update_mask.paths == ["target"]
        if request.image.name not in self.images:
            call.fail(grpc.StatusCode.NOT_FOUND)
        self.images[request.image.name].target.CopyFrom(request.image.target)
        return pb.UpdateImageResponse(image=self.images[request.image.name])

    def handler(self) -> Any:
        """Give the handler of all services."""
        return _Handler(self)


class Call:
    """One call: who makes it, and its end."""

    def __init__(self, containerd: FakeContainerd, context: grpc.ServicerContext) -> None:
        self._containerd = containerd
        self._context = context
        metadata = dict(context.invocation_metadata())
        containerd.namespaces.add(str(metadata["containerd-namespace"]))
        self._lease = str(metadata.get("containerd-lease", ""))

    def fail(self, code: grpc.StatusCode, details: str = "") -> NoReturn:
        self._context.abort(code, details)
        raise AssertionError  # abort raises

    def take_fault(self, method: str) -> None:
        fault = self._containerd.faults.pop(method, None)
        if fault is not None:
            self.fail(*fault)

    def hold(self, kind: str, name: str) -> None:
        """Let the call's lease keep something."""
        if self._lease:
            self._containerd.held[self._lease].add((kind, name))


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, containerd: FakeContainerd) -> None:
        self._containerd = containerd
        it = containerd
        self._unary: dict[str, tuple[Any, Any]] = {
            "leases.v1.Leases/Create": (it.create_lease, pb.CreateLeaseRequest),
            "leases.v1.Leases/Delete": (it.delete_lease, pb.DeleteLeaseRequest),
            "content.v1.Content/Info": (it.content_info, pb.ContentInfoRequest),
            "content.v1.Content/Update": (it.update_content, pb.UpdateContentRequest),
            "snapshots.v1.Snapshots/Prepare": (it.prepare, pb.PrepareSnapshotRequest),
            "snapshots.v1.Snapshots/Stat": (it.stat, pb.StatSnapshotRequest),
            "snapshots.v1.Snapshots/Commit": (it.commit, pb.CommitSnapshotRequest),
            "snapshots.v1.Snapshots/Remove": (it.remove, pb.RemoveSnapshotRequest),
            "diff.v1.Diff/Apply": (it.apply, pb.ApplyRequest),
            "images.v1.Images/Create": (it.create_image, pb.CreateImageRequest),
            "images.v1.Images/Update": (it.update_image, pb.UpdateImageRequest),
        }

    def service(self, details: Any) -> Any:
        """Give the handler of one method; see grpc."""
        method = details.method.removeprefix("/containerd.services.")
        name = method.partition(".v1.")[2]
        if name == "Content/Write":
            return grpc.stream_stream_rpc_method_handler(
                lambda requests, context: self._begin(name, context, requests),
                pb.WriteContentRequest.FromString,
                pb.WriteContentResponse.SerializeToString,
            )
        if method not in self._unary:
            return None
        answer, request = self._unary[method]

        def call(message: Any, context: grpc.ServicerContext) -> Any:
            self._containerd.calls.append(name)
            begun = Call(self._containerd, context)
            self._containerd.on.get(name, bool)()
            begun.take_fault(name)
            return answer(message, begun)

        return grpc.unary_unary_rpc_method_handler(
            call, request.FromString, lambda message: message.SerializeToString()
        )

    def _begin(self, name: str, context: grpc.ServicerContext, requests: Any) -> Any:
        self._containerd.calls.append(name)
        return self._containerd.write_content(requests, Call(self._containerd, context))


def decompress(data: bytes, media_type: str) -> bytes:
    """Give a layer's tar."""
    if "gzip" in media_type or data.startswith(b"\x1f\x8b"):
        return gzip.decompress(data)
    if "zstd" in media_type:
        with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
            return reader.read()
    return data


@contextmanager
def running_containerd(socket: Path) -> Iterator[FakeContainerd]:
    """Run it until the block ends."""
    containerd = FakeContainerd()
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((containerd.handler(),))
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    try:
        yield containerd
    finally:
        server.stop(None).wait()
