"""A client of a snapshots service: lazyimg's or containerd's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from lazyimg.snapshotter.grpc_server import SERVICE
from lazyimg.snapshotter.proto import snapshots_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from google.protobuf.message import Message

NAMESPACE = "tests"
LEASE = "kept"
"""What a containerd must have, so that it keeps what nobody refers to."""

METADATA = (("containerd-namespace", NAMESPACE), ("containerd-lease", LEASE))
LIMIT = 60.0
"""Seconds that a call may take."""

NO_LABELS: Mapping[str, str] = {}


class SnapshotClient:
    """Calls a service on a unix socket.

    Args:
        socket: its path.
        snapshotter: containerd's name for the snapshotter; its own service takes any.
    """

    def __init__(self, socket: Path, snapshotter: str = "") -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}")
        self._name = snapshotter

    def close(self) -> None:
        self._channel.close()

    def prepare(
        self, key: str, parent: str = "", labels: Mapping[str, str] = NO_LABELS
    ) -> list[pb.Mount]:
        request = pb.PrepareSnapshotRequest(
            snapshotter=self._name, key=key, parent=parent, labels=labels
        )
        return list(self._call("Prepare", request, pb.PrepareSnapshotResponse).mounts)

    def view(
        self, key: str, parent: str = "", labels: Mapping[str, str] = NO_LABELS
    ) -> list[pb.Mount]:
        request = pb.ViewSnapshotRequest(
            snapshotter=self._name, key=key, parent=parent, labels=labels
        )
        return list(self._call("View", request, pb.ViewSnapshotResponse).mounts)

    def mounts(self, key: str) -> list[pb.Mount]:
        request = pb.MountsRequest(snapshotter=self._name, key=key)
        return list(self._call("Mounts", request, pb.MountsResponse).mounts)

    def commit(
        self, name: str, key: str, labels: Mapping[str, str] = NO_LABELS, parent: str = ""
    ) -> None:
        request = pb.CommitSnapshotRequest(
            snapshotter=self._name, name=name, key=key, labels=labels, parent=parent
        )
        self._call("Commit", request, Empty)

    def remove(self, key: str) -> None:
        self._call("Remove", pb.RemoveSnapshotRequest(snapshotter=self._name, key=key), Empty)

    def stat(self, key: str) -> pb.Info:
        request = pb.StatSnapshotRequest(snapshotter=self._name, key=key)
        info: pb.Info = self._call("Stat", request, pb.StatSnapshotResponse).info
        return info

    def update(
        self,
        key: str,
        labels: Mapping[str, str],
        mask: Sequence[str] | None = None,
        parent: str = "",
    ) -> pb.Info:
        return self.update_info(pb.Info(name=key, labels=labels, parent=parent), mask)

    def update_info(self, info: pb.Info, mask: Sequence[str] | None = None) -> pb.Info:
        request = pb.UpdateSnapshotRequest(
            snapshotter=self._name,
            info=info,
            update_mask=None if mask is None else FieldMask(paths=mask),
        )
        updated: pb.Info = self._call("Update", request, pb.UpdateSnapshotResponse).info
        return updated

    def list(self, *filters: str) -> list[pb.Info]:
        return [info for page in self.pages(*filters) for info in page]

    def pages(self, *filters: str) -> Iterator[Sequence[pb.Info]]:
        """Give what is listed as it comes: what is not taken holds up the service."""
        call = self._channel.unary_stream(
            f"/{SERVICE}/List",
            request_serializer=pb.ListSnapshotsRequest.SerializeToString,
            response_deserializer=pb.ListSnapshotsResponse.FromString,
        )
        request = pb.ListSnapshotsRequest(snapshotter=self._name, filters=filters)
        for answer in call(request, metadata=METADATA, timeout=LIMIT):
            yield answer.info

    def usage(self, key: str) -> tuple[int, int]:
        request = pb.UsageRequest(snapshotter=self._name, key=key)
        answer = self._call("Usage", request, pb.UsageResponse)
        return answer.size, answer.inodes

    def cleanup(self) -> None:
        self._call("Cleanup", pb.CleanupRequest(snapshotter=self._name), Empty)

    def _call(self, name: str, request: Message, answer: type[Message]) -> Any:
        call: Any = self._channel.unary_unary(
            f"/{SERVICE}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return call(request, metadata=METADATA, timeout=LIMIT)
