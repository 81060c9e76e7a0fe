"""containerd's services, as one client with one lease sees them.

Sources: containerd, api/services/*/v1/*.proto; what the statuses mean: pkg/errdefs; how content is
written: plugins/services/content/contentserver.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from lazyimg.containerd.labels import EXPIRES, missing_labels
from lazyimg.containerd.proto import containerd_pb2 as pb
from lazyimg.errors import (
    ConfigurationError,
    CorruptError,
    DaemonUnavailableError,
    LazyimgError,
    NotFoundError,
    NotRootError,
    StorageError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence

    from google.protobuf.message import Message

    from lazyimg_formats.oci.documents import Descriptor

LEASE_LIFETIME: Final = 24 * 3600.0
"""Seconds after which containerd may remove what a pull that died has left."""

MAX_MESSAGE: Final = 16 << 20
"""Bytes of a message, as containerd has it."""

PIECE: Final = 1 << 20
"""Bytes of content in one message."""

CLEAN_UP_LIMIT: Final = 10.0
"""Seconds for containerd to remove what a failed pull has made, before one gives up waiting."""

_COMMITTED: Final = 3
_SERVICES: Final = "/containerd.services."
_EXISTS: Final = grpc.StatusCode.ALREADY_EXISTS
_MISSING: Final = grpc.StatusCode.NOT_FOUND
_ERRORS: Final[dict[grpc.StatusCode, type[LazyimgError]]] = {
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.INVALID_ARGUMENT: UsageError,
    grpc.StatusCode.PERMISSION_DENIED: NotRootError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: StorageError,
    grpc.StatusCode.UNAVAILABLE: DaemonUnavailableError,
    grpc.StatusCode.UNIMPLEMENTED: ConfigurationError,
    grpc.StatusCode.DATA_LOSS: CorruptError,
}


@dataclass(frozen=True, slots=True)
class Active:
    """A snapshot that is being made.

    Attributes:
        key: names it.
        mounts: where its files go; for `Client.apply` only.
    """

    key: str
    mounts: Sequence[pb.Mount]


@asynccontextmanager
async def open_client(address: str, namespace: str, snapshotter: str) -> AsyncIterator[Client]:
    """Give a client of a running containerd.

    Args:
        address: its socket, with or without ``unix://`` in front.
        namespace: which of its namespaces.
        snapshotter: which of its snapshotters.

    Raises:
        DaemonUnavailableError: nobody answers.
        NotRootError: one may not ask.
    """
    path = address.removeprefix("unix://")
    await _knock(path)
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE),
        ("grpc.enable_http_proxy", 0),
        ("grpc.default_authority", "localhost"),  # Go refuses a path in its place
    ]
    async with grpc.aio.insecure_channel(f"unix:{path}", options=options) as channel:
        yield Client(channel, path, namespace, snapshotter)


async def _knock(path: str) -> None:
    what = f"containerd at {path}"
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except PermissionError as error:
        raise NotRootError(what, f"cannot be reached: {error.strerror}", "run as root") from error
    except OSError as error:
        raise DaemonUnavailableError(
            what,
            f"does not answer: {error.strerror or error}",
            "start it, or name its socket with --containerd",
        ) from error
    writer.close()
    await writer.wait_closed()


class Client:
    """Calls containerd; every method raises LazyimgError.

    Args:
        channel: to its socket; closed by whoever opened it.
        path: of the socket, for messages.
        namespace: see `open_client`.
        snapshotter: see `open_client`.
    """

    def __init__(
        self, channel: grpc.aio.Channel, path: str, namespace: str, snapshotter: str
    ) -> None:
        self.snapshotter = snapshotter
        self._channel = channel
        self._what = f"containerd at {path}"
        self._metadata: tuple[tuple[str, str], ...] = (("containerd-namespace", namespace),)
        self._token = secrets.token_hex(8)

    # Leases.

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[None]:
        """Keep everything that is made in the block until its end; after a failure it goes."""
        name = f"lazyimg-{self._token}"
        ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + LEASE_LIFETIME))
        request = pb.CreateLeaseRequest(id=name, labels={EXPIRES: ends})
        await self._call("leases.v1.Leases/Create", request, Empty)
        self._metadata += (("containerd-lease", name),)
        try:
            yield
        except BaseException:
            await self._give_up(name)
            raise
        else:
            await self._delete_lease(name, sync=False)
        finally:
            self._metadata = self._metadata[:1]

    async def _give_up(self, name: str) -> None:
        try:
            async with asyncio.timeout(CLEAN_UP_LIMIT):
                await self._delete_lease(name, sync=True)
        except (LazyimgError, TimeoutError):
            return  # what went wrong first is what the user is told of; the lease expires

    async def _delete_lease(self, name: str, *, sync: bool) -> None:
        request = pb.DeleteLeaseRequest(id=name, sync=sync)
        await self._call("leases.v1.Leases/Delete", request, Empty, {_MISSING})

    # Content.

    async def write_content(
        self,
        descriptor: Descriptor,
        pieces: AsyncIterable[bytes],
        labels: Mapping[str, str],
        advance: Callable[[int], None] = lambda _done: None,
    ) -> None:
        """Put a blob into the content store, unless it is there; in any case it gets the labels.

        Args:
            descriptor: digest and size, which containerd verifies.
            pieces: its bytes; asked for only where the blob is not there.
            labels: by name.
            advance: told how many bytes are there.
        """
        if not await self._write(descriptor, pieces, labels, advance):
            await self.label_content(str(descriptor.digest), labels)

    async def _write(
        self,
        descriptor: Descriptor,
        pieces: AsyncIterable[bytes],
        labels: Mapping[str, str],
        advance: Callable[[int], None],
    ) -> bool:
        """Give whether the blob was not there."""
        call: Any = self._channel.stream_stream(
            f"{_SERVICES}content.v1.Content/Write",
            request_serializer=pb.WriteContentRequest.SerializeToString,
            response_deserializer=pb.WriteContentResponse.FromString,
        )(metadata=self._metadata)
        common: dict[str, Any] = {
            "ref": f"lazyimg-{self._token}-{descriptor.digest}",
            "total": descriptor.size,
            "expected": str(descriptor.digest),
        }

        async def send(action: pb.WriteAction, **fields: Any) -> int:
            await call.write(pb.WriteContentRequest(action=action, **common, **fields))
            answer = await call.read()
            if answer is grpc.aio.EOF:
                raise asyncio.InvalidStateError
            return int(answer.offset)

        try:
            offset = await send(pb.STAT)
            if offset < descriptor.size:  # else another namespace has it
                async for piece in pieces:
                    for start in range(0, len(piece), PIECE):
                        data = piece[start : start + PIECE]
                        offset = await send(pb.WRITE, offset=offset, data=data)
                    advance(offset)
            await send(pb.COMMIT, offset=offset, labels=labels)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:  # the call has ended
            code, details = await call.code(), await call.details()
            if code is _EXISTS:
                return False
            raise self._explain(code, details or "") from error
        finally:
            call.cancel()
        return True

    async def label_content(self, digest: str, labels: Mapping[str, str]) -> None:
        """Add labels to content that is there."""
        found = await self._call(
            "content.v1.Content/Info", pb.ContentInfoRequest(digest=digest), pb.ContentInfoResponse
        )
        missing = missing_labels(found.info.labels, labels)
        if not missing:
            return
        request = pb.UpdateContentRequest(
            info=pb.ContentInfo(digest=digest, labels=missing),
            update_mask=FieldMask(paths=[f"labels.{name}" for name in missing]),
        )
        await self._call("content.v1.Content/Update", request, pb.UpdateContentResponse)

    # Snapshots.

    async def check_snapshotter(self, remedy: str) -> None:
        """Raise ConfigurationError, with the remedy, if containerd has no such snapshotter."""
        try:
            await self.has_snapshot("lazyimg-pull")
        except UsageError as error:
            raise ConfigurationError(
                self._what, f"has no snapshotter {self.snapshotter!r}", remedy
            ) from error

    async def has_snapshot(self, name: str) -> bool:
        """Tell whether a committed snapshot is there."""
        request = pb.StatSnapshotRequest(snapshotter=self.snapshotter, key=name)
        found = await self._call(
            "snapshots.v1.Snapshots/Stat", request, pb.StatSnapshotResponse, {_MISSING}
        )
        return found is not None and found.info.kind == _COMMITTED

    async def prepare(self, chain: str, parent: str, labels: Mapping[str, str]) -> Active | None:
        """Begin a layer's snapshot; None if it is there already, or need not be filled."""
        key = f"extract-{secrets.token_hex(8)} {chain}"
        request = pb.PrepareSnapshotRequest(
            snapshotter=self.snapshotter, key=key, parent=parent, labels=labels
        )
        made = await self._call(
            "snapshots.v1.Snapshots/Prepare", request, pb.PrepareSnapshotResponse, {_EXISTS}
        )
        return None if made is None else Active(key, made.mounts)

    async def apply(self, layer: Descriptor, active: Active) -> str:
        """Unpack a layer from the content store into a snapshot; gives the tar's digest."""
        applied = await self._call(
            "diff.v1.Diff/Apply",
            pb.ApplyRequest(diff=_descriptor(layer), mounts=active.mounts),
            pb.ApplyResponse,
        )
        digest: str = applied.applied.digest
        return digest

    async def commit(self, chain: str, active: Active) -> None:
        """Make a layer of a snapshot, or drop it where somebody else has made that layer."""
        request = pb.CommitSnapshotRequest(snapshotter=self.snapshotter, name=chain, key=active.key)
        done = await self._call("snapshots.v1.Snapshots/Commit", request, Empty, {_EXISTS})
        if done is None:
            remove = pb.RemoveSnapshotRequest(snapshotter=self.snapshotter, key=active.key)
            await self._call("snapshots.v1.Snapshots/Remove", remove, Empty, {_MISSING})

    # Images.

    async def put_image(self, name: str, target: Descriptor) -> None:
        """Let a name mean an image, whatever it meant before."""
        image = pb.Image(name=name, target=_descriptor(target))
        create = pb.CreateImageRequest(image=image)
        update = pb.UpdateImageRequest(image=image, update_mask=FieldMask(paths=["target"]))
        done = None
        while done is None:  # it may come or go between two calls
            done = await self._call(
                "images.v1.Images/Create", create, pb.CreateImageResponse, {_EXISTS}
            ) or await self._call(
                "images.v1.Images/Update", update, pb.UpdateImageResponse, {_MISSING}
            )

    async def _call(
        self,
        method: str,
        request: Message,
        answer: type[Message],
        expected: set[grpc.StatusCode] = frozenset(),  # type: ignore[assignment]
    ) -> Any:
        """Give the answer; None for one of the expected statuses."""
        call: Any = self._channel.unary_unary(
            _SERVICES + method,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        try:
            return await call(request, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() in expected:
                return None
            raise self._explain(error.code(), error.details() or "", method) from error

    def _explain(self, code: grpc.StatusCode, details: str, method: str = "") -> LazyimgError:
        kind = _ERRORS.get(code, LazyimgError)
        problem = " ".join((details or code.name).split())
        if kind is DaemonUnavailableError and method.startswith("snapshots."):
            return kind(
                f"snapshotter {self.snapshotter!r} of {self._what}",
                f"does not answer: {problem}",
                "start the daemon, with snapshotter.address set: lazyimg serve",
            )
        return kind(self._what, problem)


def _descriptor(descriptor: Descriptor) -> pb.Descriptor:
    return pb.Descriptor(
        media_type=descriptor.media_type,
        digest=str(descriptor.digest),
        size=descriptor.size,
    )
