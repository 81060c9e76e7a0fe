"""What may be done with a snapshot, and what it changes. Pure; the records do as it says.

| kind      | Prepare, View on it | Mounts | Commit    | Remove                | Update |
|-----------|---------------------|--------|-----------|-----------------------|--------|
| active    | no                  | yes    | committed | yes                   | labels |
| view      | no                  | yes    | no        | yes                   | labels |
| committed | yes                 | no     | no        | unless it has children| labels |

Each refusal is an error whose class says which gRPC status it becomes.
Source: containerd, core/snapshots/snapshotter.go (the contract), core/snapshots/storage/bolt.go.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from lazyimg.errors import InUseError, LazyimgError, NotFoundError, UsageError
from lazyimg_formats.containerd.labels import parse_image_labels
from lazyimg_formats.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

REF: Final = "containerd.io/snapshot.ref"
"""Label: the chain ID of the layer that a Prepare is for."""

UID_MAP: Final = "containerd.io/snapshot/uidmapping"
"""Label: the ids of the container's user namespace, as CONTAINER:HOST:COUNT[,...]."""

GID_MAP: Final = "containerd.io/snapshot/gidmapping"

MAX_ID: Final = (1 << 32) - 2

COMPARED: Final = "-parent-view-"
"""In a view's key: containerd's client compares what it shows with what was written on top of it
(containerd, pkg/rootfs/diff.go)."""

MAX_KEY: Final = 33 << 10
"""Bytes of a key: containerd takes up to 32 KiB, and puts a namespace and a number before it."""

MAX_LABEL: Final = 4096
"""Bytes of a label and its value together, as containerd has it."""

MAX_LABELS: Final = 2 << 20
"""Bytes of all labels of a snapshot together: a message of 4 MiB, which every client takes, must
have room for them. containerd's manifests have up to 8 MiB, for all layers."""


class Kind(IntEnum):
    """What a snapshot is; the numbers are the protocol's."""

    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


class AlreadyExistsError(LazyimgError):
    """There is a snapshot of this key; or, for a lazy layer, there is nothing left to do."""

    exit_code = InUseError.exit_code
    kind = "already-exists"


class WrongStateError(LazyimgError):
    """The snapshot is of a kind, or in a place, that does not allow it."""

    exit_code = InUseError.exit_code
    kind = "wrong-state"


class QuarantinedError(WrongStateError):
    """What the snapshot would stand on is not what its image says."""

    kind = "quarantined"


@dataclass(frozen=True, slots=True)
class IdMaps:
    """A user namespace's ids: (in the container, on this machine, how many), in no order."""

    uids: tuple[tuple[int, int, int], ...]
    gids: tuple[tuple[int, int, int], ...]

    @property
    def root(self) -> tuple[int, int]:
        """What uid and gid 0 are on this machine."""
        uid, gid = (
            next(host for inside, host, _ in ids if inside == 0) for ids in (self.uids, self.gids)
        )
        return uid, gid


@dataclass(frozen=True, slots=True)
class RemoteLayer:
    """Where the content of a remote snapshot comes from: the lowest layers of an image.

    Attributes:
        chain: the chain ID of these layers.
        reference: of the image, with its manifest's digest.
        platform: os/arch[/variant].
        depth: how many of its layers these are.
    """

    chain: str
    reference: str
    platform: str
    depth: int


@dataclass(frozen=True, slots=True)
class Quarantined:
    """What a remote snapshot shows, and why nothing new may stand on it."""

    layer: RemoteLayer
    problem: str


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Why a layer that could have been loaded lazily is unpacked as usual.

    Attributes:
        name: of the image that it was pulled for, as labels say it; "" if they do not.
        digest: of the image's manifest; "" if that is not known.
        reason: one word, to count by.
        problem: what is wrong, in a few words.
    """

    name: str
    digest: str
    reason: str
    problem: str


@dataclass(frozen=True, slots=True)
class HeldImage:
    """The layers on this node that were made for one image, without those that were there before.

    Attributes:
        name: as `Unpacked`; "" for all images that no label named.
        digest: likewise.
        lazy: how many of the layers are loaded lazily.
        unpacked: how many are unpacked.
        containers: active snapshots that stand on one of them.
        why: what led to the first one that is unpacked; None: none is, or nobody asked for it.
    """

    name: str
    digest: str
    lazy: int
    unpacked: int
    containers: int
    why: Unpacked | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One snapshot.

    Attributes:
        number: names its directory; never used again.
        key: containerd's name for it.
        parent: the key of the one below it; "" for none.
        kind: see `Kind`.
        labels: as they were given.
        created: nanoseconds since the epoch; of the commit, for a committed one.
        updated: likewise, of the last change of its labels.
        size: bytes on the disk, when it was committed; else 0.
        inodes: likewise.
        remote: of a remote snapshot: what it shows; None: it has a directory.
        problem: of a remote snapshot: why nothing new may stand on it; "": it may.
    """

    number: int
    key: str
    parent: str
    kind: Kind
    labels: Mapping[str, str]
    created: int
    updated: int
    size: int = 0
    inodes: int = 0
    remote: RemoteLayer | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class NewSnapshot:
    """What a caller wants to have: see `Snapshot`; `now` is in nanoseconds since the epoch."""

    kind: Kind
    key: str
    parent: str
    labels: Mapping[str, str]
    now: int


def name_image(labels: Mapping[str, str]) -> tuple[str, str]:
    """Give the name and the manifest's digest of the image that labels name; "" where they do not.

    Raises nothing: labels may say anything.
    """
    try:
        named = parse_image_labels(labels)
    except FormatError:
        named = None
    if named is None:
        return "", ""
    return named.reference, str(named.manifest or "")


def check_key(key: str, what: str = "a snapshot") -> None:
    """Raise UsageError unless this can name a snapshot."""
    if not key:
        raise UsageError("snapshot", f"{what} needs a key")
    length = len(key.encode("utf-8", "surrogatepass"))
    if length > MAX_KEY:
        raise UsageError(
            f"snapshot {key[:64]}...", f"its key has {length} bytes, at most {MAX_KEY}"
        )


def check_labels(key: str, labels: Mapping[str, str]) -> None:
    """Raise UsageError unless these can be a snapshot's labels."""
    whole = 0
    for name, value in labels.items():
        if not name:
            raise UsageError(f"snapshot {key}", "a label needs a name")
        length = len(name.encode()) + len(value.encode())
        if length > MAX_LABEL:
            raise UsageError(
                f"snapshot {key}",
                f"label {name[:64]!r} and its value have {length} bytes, at most {MAX_LABEL}",
            )
        whole += length
    if whole > MAX_LABELS:
        raise UsageError(
            f"snapshot {key}", f"its labels have {whole} bytes, at most {MAX_LABELS} are kept"
        )


def parse_id_maps(key: str, labels: Mapping[str, str]) -> IdMaps | None:
    """Give the ids that a snapshot is to have in a container; None: the machine's own.

    Raises:
        UsageError: the labels make no sense.
    """
    uids, gids = (_parse_ids(key, name, labels.get(name, "")) for name in (UID_MAP, GID_MAP))
    if not uids and not gids:
        return None
    if not (uids and gids):
        raise UsageError(f"snapshot {key}", f"of {UID_MAP} and {GID_MAP} one alone says nothing")
    return IdMaps(uids, gids)


def _parse_ids(key: str, name: str, text: str) -> tuple[tuple[int, int, int], ...]:
    ids = []
    for part in text.split(",") if text else ():
        match = re.fullmatch("([0-9]{1,10}):([0-9]{1,10}):([0-9]{1,10})", part)
        inside, host, count = map(int, match.groups()) if match else (0, 0, 0)
        if count == 0 or max(inside, host) + count - 1 > MAX_ID:
            raise UsageError(
                f"snapshot {key}", f"label {name}: {part[:64]!r} is not CONTAINER:HOST:COUNT"
            )
        ids.append((inside, host, count))
    if ids and all(inside for inside, _, _ in ids):
        raise UsageError(f"snapshot {key}", f"label {name}: the container's id 0 is missing")
    return tuple(ids)


def check_new(wanted: NewSnapshot, existing: Snapshot | None, below: Snapshot | None) -> None:
    """Raise unless a snapshot can be made that was not there in any form.

    Args:
        wanted: the new one.
        existing: the snapshot that has its key, if any.
        below: the snapshot that its parent's key names, if any.

    Raises:
        NotFoundError: there is no such parent.
        UsageError: the parent is not committed.
        AlreadyExistsError: the key is taken.
    """
    if wanted.parent and below is None:
        raise missing(wanted.parent, "the parent")
    if below is not None and below.kind is not Kind.COMMITTED:
        raise UsageError(
            f"snapshot {wanted.key}",
            f"its parent {wanted.parent} is {_name(below.kind)}, not committed",
        )
    if existing is not None:
        raise taken(wanted.key)


def check_shown(wanted: NewSnapshot, below: Sequence[Snapshot]) -> Snapshot | None:
    """Raise QuarantinedError if a new snapshot would show what must not be used.

    Args:
        wanted: the new one.
        below: all below it, the lowest last.

    Returns:
        The snapshot of the lazily loaded layers that it shows: the uppermost one; None: no such.
    """
    shown = next((one for one in below if one.remote is not None), None)
    if shown is None or shown.remote is None or not shown.problem:
        return shown
    raise QuarantinedError(
        f"snapshot {wanted.key}",
        f"cannot stand on {shown.key}: {shown.remote.reference} is not what it says:"
        f" {shown.problem}",
        "remove the snapshots of these layers, and pull again",
    )


def check_mounts(snapshot: Snapshot) -> None:
    """Raise WrongStateError unless there is something to mount."""
    if snapshot.kind is Kind.COMMITTED:
        raise WrongStateError(
            f"snapshot {snapshot.key}", "is committed; only active snapshots and views are mounted"
        )


def check_commit(wanted: NewSnapshot, active: Snapshot, below: Snapshot | None) -> None:
    """Raise unless a snapshot can be committed.

    Args:
        wanted: what it becomes, under a key that is free; its parent is "" for the one that it has.
        active: what is committed.
        below: the snapshot that the wanted parent's key names, if any.

    Raises:
        WrongStateError: it is not active, or the new parent is not committed.
        UsageError: it has another parent.
        NotFoundError: there is no such parent.
    """
    if active.kind is not Kind.ACTIVE:
        raise WrongStateError(
            f"snapshot {active.key}", f"is {_name(active.kind)}; only active ones are committed"
        )
    if wanted.parent in {"", active.parent}:
        return
    if active.parent:
        raise UsageError(
            f"snapshot {active.key}",
            f"its parent is {active.parent}, it cannot become {wanted.parent}",
        )
    if below is None:
        raise missing(wanted.parent, "the parent")
    if below.kind is not Kind.COMMITTED:
        raise WrongStateError(
            f"snapshot {wanted.parent}", "is not committed, so it can be no parent"
        )


def check_remove(snapshot: Snapshot, *, has_children: bool) -> None:
    """Raise WrongStateError while others stand on it."""
    if has_children:
        raise WrongStateError(
            f"snapshot {snapshot.key}", "others stand on it", "remove those first"
        )


def update_labels(
    snapshot: Snapshot, labels: Mapping[str, str], mask: Sequence[str], now: int
) -> Snapshot:
    """Give a snapshot with other labels.

    Args:
        snapshot: as it is.
        labels: what the caller sent.
        mask: "labels" for all of them, "labels.NAME" for one; nothing: all.
        now: nanoseconds since the epoch.

    Raises:
        UsageError: something else than labels, or labels that cannot be.
    """
    changed = dict(snapshot.labels) if mask else dict(labels)
    for path in mask:
        field, _, name = path.partition(".")
        if field != "labels" or path == "labels.":
            raise UsageError(f"snapshot {snapshot.key}", f"{path!r} cannot be changed, only labels")
        if not name:
            changed = dict(labels)
        elif labels.get(name):
            changed[name] = labels[name]
        else:
            changed.pop(name, None)
    changed = {name: value for name, value in changed.items() if value}
    check_labels(snapshot.key, changed)
    return replace(snapshot, labels=changed, updated=now)


def missing(key: str, what: str = "it") -> NotFoundError:
    """Give the error for a key that names no snapshot."""
    return NotFoundError(f"snapshot {key}", f"{what} does not exist")


def taken(key: str) -> AlreadyExistsError:
    """Give the error for a key that is in use."""
    return AlreadyExistsError(f"snapshot {key}", "it exists already")


def _name(kind: Kind) -> str:
    return {Kind.VIEW: "a view", Kind.ACTIVE: "active", Kind.COMMITTED: "committed"}[kind]
