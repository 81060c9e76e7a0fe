"""What goes over the daemon's unix socket: JSON, one structure for each request and reply.

| request | body | reply |
|---|---|---|
| POST /v1/mount | MountRequest | MountReply |
| POST /v1/unmount | UnmountRequest | UnmountReply |
| POST /v1/fsid | ImageRequest | FsidReply |
| POST /v1/prefetch | PrefetchRequest | lines of JSON: PrefetchEvent, ... |
| POST /v1/validate | ImageRequest | lines of JSON: ValidateEvent, ... |
| POST /v1/inspect | InspectRequest | InspectReply |
| POST /v1/index | ImageRequest | IndexReply |
| POST /v1/index/find | ImageRequest | IndexReply |
| POST /v1/index/remove | ImageRequest | IndexReply |
| POST /v1/index/push | PushIndexRequest | PushIndexReply |
| POST /v1/index/unpush | ImageRequest | UnpushIndexReply |
| GET /v1/index | - | IndexReply |
| GET /v1/cache | - | CacheReply |
| POST /v1/cache/check | CacheCheckRequest | CacheCheckReply |
| GET /v1/status | - | StatusReply |

A failure is a status of 400 or above with an ErrorReply; inside a stream of lines, a last line
with `error` set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from lazyimg.errors import LazyimgError
    from lazyimg.images.validation import Validated


class Access(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to reach and talk to registries for one request; the daemon's own settings otherwise.

    Attributes:
        authfile: absolute path of a credentials file in the format of Docker's config.json.
        username: with `password`, taken before any file; kept in memory only.
        password: see `username`.
        plain_http: allow HTTP without TLS to a registry that is not on the loopback interface.
        insecure: do not verify certificates.
        ca_file: absolute path of further root certificates (PEM).
        hosts_dir: absolute path of a directory of hosts.toml files, as containerd has them.
    """

    authfile: str = ""
    username: str = ""
    password: str = ""
    plain_http: bool = False
    insecure: bool = False
    ca_file: str = ""
    hosts_dir: str = ""

    def __repr__(self) -> str:
        """Leave the password out: this may reach a log."""
        return f"Access(authfile={self.authfile!r}, username={self.username!r})"


class ErrorReply(msgspec.Struct, frozen=True, kw_only=True):
    """A LazyimgError; the fields are its own."""

    kind: str
    what: str
    problem: str
    remedy: str
    exit_code: int

    @classmethod
    def of(cls, error: LazyimgError) -> ErrorReply:
        """Give a failure as it goes over the socket."""
        return cls(
            kind=error.kind,
            what=error.what,
            problem=error.problem,
            remedy=error.remedy,
            exit_code=error.exit_code,
        )


class ImageRequest(msgspec.Struct, frozen=True, kw_only=True):
    """An image: `reference` as the user wrote it, `platform` as os/arch[/variant] or ""."""

    reference: str
    platform: str = ""
    access: Access = Access()


class MountRequest(ImageRequest, frozen=True, kw_only=True):
    """Mount an image on `directory` (absolute, exists); `read_write` puts an overlay on it."""

    directory: str
    read_write: bool = False


class MountReply(msgspec.Struct, frozen=True, kw_only=True):
    """What was mounted: `digest` is the manifest's, `fsid` the bootstrap's sha256.

    `streamed` are the bytes of blobs that were downloaded whole for it now, of layers without an
    index.
    """

    reference: str
    digest: str
    fsid: str
    directory: str
    streamed: int = 0


class UnmountRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Unmount what `mount` put on `directory`; `lazy` detaches it even while it is in use."""

    directory: str
    lazy: bool = False


class UnmountReply(msgspec.Struct, frozen=True, kw_only=True):
    """What was unmounted."""

    reference: str
    directory: str


class FsidReply(msgspec.Struct, frozen=True, kw_only=True):
    """An image that is ready: `command` is the exact mount(8) line, with DIR in it."""

    reference: str
    digest: str
    fsid: str
    domain_id: str
    command: str


class PrefetchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Make images local: whole, or the regular files whose path matches one of `paths` (globs)."""

    references: list[str]
    paths: list[str] = []
    platform: str = ""
    access: Access = Access()


class PrefetchEvent(msgspec.Struct, frozen=True, kw_only=True):
    """How far an image is, in bytes of its devices; the last event of an image has `done`.

    Attributes:
        reference: the image.
        present: bytes that are local now, of those asked for.
        total: bytes asked for.
        fetched: compressed bytes that came from the registry in this request.
        done: nothing more comes for this image.
        error: why it failed.
    """

    reference: str
    present: int = 0
    total: int = 0
    fetched: int = 0
    done: bool = False
    error: ErrorReply | None = None


class LayerVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What was found of a layer that was read whole.

    Attributes:
        digest: of its blob.
        format: in one word.
        size: bytes of the blob.
        index: digest of the index that was checked; "": it has none.
        problem: how it is not what its image says; "": it is.
    """

    digest: str
    format: str
    size: int
    index: str = ""
    problem: str = ""


class ValidateReply(msgspec.Struct, frozen=True, kw_only=True):
    """An image that was read whole; its layers, lowest first."""

    reference: str
    digest: str
    platform: str
    layers: list[LayerVerdict]

    @classmethod
    def of(cls, validated: Validated) -> ValidateReply:
        """Give what was found as it goes over the socket."""
        return cls(
            reference=validated.reference,
            digest=validated.digest,
            platform=validated.platform,
            layers=[
                LayerVerdict(
                    digest=layer.digest,
                    format=layer.format,
                    size=layer.size,
                    index=layer.index,
                    problem=layer.problem,
                )
                for layer in validated.layers
            ],
        )


class ValidateEvent(msgspec.Struct, frozen=True, kw_only=True):
    """How much of an image was read and checked; the last event has `reply` or `error`.

    Attributes:
        read: bytes of its layers' blobs.
        total: bytes of all of them.
        reply: what was found.
        error: why it could not be read or checked.
    """

    read: int = 0
    total: int = 0
    reply: ValidateReply | None = None
    error: ErrorReply | None = None


class InspectRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Describe an image: by `reference`, or by the absolute `directory` it is mounted on."""

    reference: str = ""
    directory: str = ""
    platform: str = ""
    access: Access = Access()


class LayerReport(msgspec.Struct, frozen=True, kw_only=True):
    """One layer: sizes in bytes. `device`, `device_size` and `present` are 0 or "" if not lazy.

    Attributes:
        index: where its index is: in the "layer", in the "repository", on the "node"; "": none is
            known, or it is not known where.
    """

    digest: str
    media_type: str
    format: str
    size: int
    device: str = ""
    device_size: int = 0
    present: int = 0
    index: str = ""


class InspectReply(msgspec.Struct, frozen=True, kw_only=True):
    """An image and how much of it is local."""

    reference: str
    digest: str
    platform: str
    fsid: str
    bootstrap_size: int
    layers: list[LayerReport]


class MountReport(msgspec.Struct, frozen=True, kw_only=True):
    """One mount: its image, and how much of the image's devices is local (bytes).

    Attributes:
        problem: why it is not mounted now, and tried again; "" if it is.
        dead: whether somebody is still in the mount of it that died with an earlier daemon.
    """

    reference: str
    digest: str
    fsid: str
    directory: str
    read_write: bool
    size: int
    present: int
    problem: str = ""
    dead: bool = False


class RegistryReport(msgspec.Struct, frozen=True, kw_only=True):
    """One registry host or mirror, since the daemon's start.

    Attributes:
        host: host and port.
        requests: requests to it.
        failures: those of them that ended with an error.
        received: bytes of blobs that came from it.
        rests: seconds for which it is not asked, because it failed; 0: it is.
    """

    host: str
    requests: int
    failures: int
    received: int
    rests: float


class HeldReport(msgspec.Struct, frozen=True, kw_only=True):
    """The layers that containerd's snapshotter has for one image, without those it had before.

    Attributes:
        name: of the image, as containerd calls it; "" for all those that no label named.
        digest: of its manifest; "" if that is not known.
        lazy: layers that are loaded lazily.
        unpacked: layers that were downloaded and unpacked.
        containers: containers (active snapshots) on them.
        reason: one word for why the first one that is unpacked is; "" if nobody wanted it lazy.
        problem: the same in words.
    """

    name: str
    digest: str
    lazy: int
    unpacked: int
    containers: int
    reason: str = ""
    problem: str = ""


class QuarantineReport(msgspec.Struct, frozen=True, kw_only=True):
    """Lazily loaded layers on which nothing new may stand.

    Attributes:
        reference: of their image, with its manifest's digest.
        chain: the chain ID of these layers.
        problem: how they are not what the image says.
    """

    reference: str
    chain: str
    problem: str


class CompletionReport(msgspec.Struct, frozen=True, kw_only=True):
    """What makes containers' images local, and checks them, since the daemon's start.

    Attributes:
        current: the image that is worked on; "" for none.
        waiting: images in the queue, with this one.
        layers: that were found to be what their images say.
        lies: that were not.
        fetched: bytes of blobs.
        tight: it waits for room in the cache.
        failures: why images rest, by their references.
    """

    current: str
    waiting: int
    layers: int
    lies: int
    fetched: int
    tight: bool
    failures: dict[str, str]


class SnapshotterReport(msgspec.Struct, frozen=True, kw_only=True):
    """containerd's snapshotter.

    Attributes:
        images: those that it has layers of.
        lazy: layers that were loaded lazily, since the daemon's start.
        unpacked: layers that were to be, and are unpacked, since then, by `HeldReport.reason`.
        quarantined: layers that must not be used.
        completion: null if images are not completed.
    """

    images: list[HeldReport]
    lazy: int
    unpacked: dict[str, int]
    quarantined: list[QuarantineReport] = []
    completion: CompletionReport | None = None


class CachedReport(msgspec.Struct, frozen=True, kw_only=True):
    """A device in lazyimg's own cache: bytes, those that are local, whether it is mounted."""

    device: str
    size: int
    present: int
    used: bool


class CacheReply(msgspec.Struct, frozen=True, kw_only=True):
    """What is in the cache."""

    devices: list[CachedReport]


class IndexReport(msgspec.Struct, frozen=True, kw_only=True):
    """A layer, and the index that this node has made of it; sizes in bytes.

    Attributes:
        layer: the blob's digest.
        size: of the blob.
        format: in one word; "" where it was not asked for.
        index: the index's digest; "" where the layer has an index itself.
        index_size: of the index.
        made: just now.
        committed: the digest of the index that the image's manifest commits to; "" for none.
        pushed: digests of the artifacts in the image's repository that have an index of it.
    """

    layer: str
    size: int
    format: str = ""
    index: str = ""
    index_size: int = 0
    made: bool = False
    committed: str = ""
    pushed: list[str] = []


class IndexReply(msgspec.Struct, frozen=True, kw_only=True):
    """The layers that were asked for, lowest first; `reference` is "" for all that there are."""

    layers: list[IndexReport]
    reference: str = ""


class PushIndexRequest(ImageRequest, frozen=True, kw_only=True):
    """Push the indexes of an image's layers; `tag` is for an image that commits to them."""

    tag: str = ""


class PushIndexReply(msgspec.Struct, frozen=True, kw_only=True):
    """What is in the repository now.

    Attributes:
        reference: of the image.
        tagged: of the image that commits to its indexes; "" where none was asked for.
        digest: of the manifest that the artifact refers to.
        artifact: its digest; "": each layer has an index itself, and nothing was pushed.
        layers: whose indexes are in it.
    """

    reference: str
    tagged: str
    digest: str
    artifact: str
    layers: list[str]


class UnpushIndexReply(msgspec.Struct, frozen=True, kw_only=True):
    """The artifacts that nothing lists any more, and why some may be there still."""

    artifacts: list[str]
    problems: list[str] = []


class CacheCheckRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Compare what is local of a device with what its image says; `repair` has it put right."""

    device: str
    repair: bool = False


class CacheCheckReply(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, in bytes.

    Attributes:
        device: which was looked at.
        checked: right.
        unchecked: local, but nothing can be said of them.
        wrong: in blocks that are not what the image says, or cannot be read.
        repaired: of these: fetched again, or absent now, so that the next read fetches them.
        problem: why not all was checked or repaired; may be empty.
    """

    device: str
    checked: int
    unchecked: int
    wrong: int
    repaired: int
    problem: str = ""


class StreamReport(msgspec.Struct, frozen=True, kw_only=True):
    """A layer without an index that is being read whole.

    Attributes:
        layer: its blob's digest.
        image: which image's layer.
        size: bytes of the blob.
        done: bytes of it that have come.
    """

    layer: str
    image: str
    size: int
    done: int


class StatusReply(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon: `fetched` are compressed bytes since its start, `reads` answered requests.

    `failure` says why a read failed last; "" if none has. Without a snapshotter, `snapshotter` is
    null.

    `pid` is the process that answers; `supervisor` the one that starts it again, or 0 if there is
    none (any more), and `restarts` how often it has.
    """

    version: str
    pid: int
    supervisor: int = 0
    restarts: int = 0
    transport: str
    root: str
    uptime: float
    mounts: list[MountReport]
    reads: int
    reads_failed: int
    failure: str = ""
    fetched: int
    fetches: int
    registries: list[RegistryReport] = []
    streams: list[StreamReport] = []
    snapshotter: SnapshotterReport | None = None
