"""One client of containerd's services: what it makes of their answers."""

from __future__ import annotations

import asyncio
import socket
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import grpc
import pytest

from lazyimg.containerd.client import LEASE_LIFETIME, PIECE, Active, Client, open_client
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
from lazyimg_formats.oci.documents import OCI_LAYER, Descriptor, describe
from tests.fakes.containerd import REF

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.fakes.containerd import FakeContainerd

DATA = b"some content"


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def write(client: Client, data: bytes = DATA, **labels: str) -> Descriptor:
    """Write a blob; give its descriptor."""
    descriptor = describe(data, OCI_LAYER)
    await client.write_content(descriptor, pieces(data), labels)
    return descriptor


# The way to it.


async def test_nobody_listens(tmp_path: Path) -> None:
    for address in (f"{tmp_path}/missing", f"unix://{tmp_path}/missing"):
        with pytest.raises(DaemonUnavailableError) as caught:
            async with open_client(address, "tests", "lazyimg"):
                pass
        assert str(caught.value) == (
            f"containerd at {tmp_path}/missing: does not answer: No such file or directory; "
            "start it, or name its socket with --containerd"
        )


async def test_socket_that_somebody_left(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "socket"))
    with pytest.raises(DaemonUnavailableError, match="Connection refused"):
        async with open_client(str(tmp_path / "socket"), "tests", "lazyimg"):
            pass


async def test_path_that_no_socket_can_have(tmp_path: Path) -> None:
    with pytest.raises(DaemonUnavailableError, match="AF_UNIX path too long"):
        async with open_client(f"{tmp_path}/{'x' * 200}", "tests", "lazyimg"):
            pass


async def test_socket_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(asyncio, "open_unix_connection", refuse)
    with pytest.raises(NotRootError) as caught:
        async with open_client("/run/c.sock", "tests", "lazyimg"):
            pass
    assert str(caught.value) == (
        "containerd at /run/c.sock: cannot be reached: Permission denied; run as root"
    )


async def test_namespace_is_said(client: Client, containerd: FakeContainerd) -> None:
    assert not await client.has_snapshot("any")
    assert containerd.namespaces == {"tests"}


# Leases.


async def test_lease_lasts_for_the_block(client: Client, containerd: FakeContainerd) -> None:
    async with client.lease():
        ((name, labels),) = containerd.leases.items()
        assert name.startswith("lazyimg-")
        expires = datetime.fromisoformat(labels["containerd.io/gc.expire"])
        left = (expires - datetime.now(UTC)).total_seconds()
        assert LEASE_LIFETIME - 600 < left <= LEASE_LIFETIME
        descriptor = await write(client)
        assert containerd.held[name] == {("content", str(descriptor.digest))}
    assert containerd.leases == {}
    assert containerd.content  # the collector has time


async def test_failure_leaves_nothing(client: Client, containerd: FakeContainerd) -> None:
    async def fail() -> None:
        async with client.lease():
            await write(client)
            await client.prepare("chain", "", {REF: "chain"})
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await fail()
    assert (containerd.leases, containerd.content, containerd.snapshots) == ({}, {}, {})


async def test_failure_of_the_clean_up_is_not_told(
    client: Client, containerd: FakeContainerd
) -> None:
    containerd.faults["Leases/Delete"] = (grpc.StatusCode.INTERNAL, "no")
    with pytest.raises(ValueError, match="mine"):
        async with client.lease():
            raise ValueError("mine")
    assert len(containerd.leases) == 1


async def test_lease_that_somebody_has_deleted(client: Client, containerd: FakeContainerd) -> None:
    async with client.lease():
        containerd.leases.clear()


# Content.


async def test_content_in_pieces(client: Client, containerd: FakeContainerd) -> None:
    data = bytes(range(256)) * (PIECE // 128)  # twice a piece
    descriptor = describe(data + DATA + b"end", OCI_LAYER)
    told: list[int] = []
    await client.write_content(descriptor, pieces(data, DATA, b"", b"end"), {"a": "1"}, told.append)
    kept = containerd.content[str(descriptor.digest)]
    assert kept.data == data + DATA + b"end"
    assert kept.labels == {"a": "1"}
    assert told == [2 * PIECE, 2 * PIECE + len(DATA), 2 * PIECE + len(DATA), descriptor.size]


async def test_empty_content(client: Client, containerd: FakeContainerd) -> None:
    descriptor = await write(client, b"")
    assert containerd.content[str(descriptor.digest)].data == b""


async def test_content_that_is_there_gets_the_labels(
    client: Client, containerd: FakeContainerd
) -> None:
    descriptor = await write(client, a="1", b="2")
    asked: list[int] = []
    await client.write_content(
        descriptor, pieces(), {"b": "3", "containerd.io/gc.ref.content.l.0": "x"}, asked.append
    )
    assert asked == []
    assert containerd.content[str(descriptor.digest)].labels == {
        "a": "1", "b": "3", "containerd.io/gc.ref.content.l.0": "x",
    }  # fmt: skip
    updates = containerd.calls.count("Content/Update")
    await write(client, a="1")
    assert containerd.calls.count("Content/Update") == updates


async def test_content_of_another_namespace_is_not_sent(
    client: Client, containerd: FakeContainerd
) -> None:
    descriptor = describe(DATA, OCI_LAYER)
    containerd.shared[str(descriptor.digest)] = DATA
    await write(client, a="1")
    assert containerd.received == 0
    assert containerd.content[str(descriptor.digest)].labels == {"a": "1"}


async def test_content_that_somebody_else_writes_first(
    client: Client, containerd: FakeContainerd
) -> None:
    containerd.overtaken.add("Content/Write")
    descriptor = await write(client, a="1")
    assert containerd.content[str(descriptor.digest)].labels == {"a": "1"}


async def test_content_with_another_digest(client: Client, containerd: FakeContainerd) -> None:
    descriptor = describe(DATA, OCI_LAYER)
    with pytest.raises(LazyimgError, match="unexpected commit digest"):
        await client.write_content(descriptor, pieces(b"some CONTENT"), {})
    assert containerd.content == {}


async def test_source_that_fails(client: Client, containerd: FakeContainerd) -> None:
    async def fail() -> AsyncIterator[bytes]:
        yield DATA[:3]
        raise CorruptError("blob", "is wrong")

    with pytest.raises(CorruptError, match="blob: is wrong"):
        await client.write_content(describe(DATA, OCI_LAYER), fail(), {})
    assert containerd.content == {}


async def test_transfer_that_containerd_ends(client: Client, containerd: FakeContainerd) -> None:
    containerd.faults["Content/Write"] = (grpc.StatusCode.RESOURCE_EXHAUSTED, "no space left")

    with pytest.raises(StorageError, match="no space left"):
        await client.write_content(describe(DATA, OCI_LAYER), pieces(DATA[:3], DATA[3:]), {})


# Snapshots.


async def test_snapshotter_that_is_not_there(containerd: FakeContainerd, tmp_path: Path) -> None:
    async with open_client(str(tmp_path / "socket"), "tests", "other") as client:
        with pytest.raises(ConfigurationError) as caught:
            await client.check_snapshotter("add it")
    assert str(caught.value) == (
        f"containerd at {tmp_path}/socket: has no snapshotter 'other'; add it"
    )


async def test_snapshotter_that_is_there(client: Client) -> None:
    await client.check_snapshotter("")


async def test_snapshotter_that_does_not_answer(
    client: Client, containerd: FakeContainerd, tmp_path: Path
) -> None:
    containerd.faults["Snapshots/Prepare"] = (grpc.StatusCode.UNAVAILABLE, "dial:\n no socket")
    with pytest.raises(DaemonUnavailableError) as caught:
        await client.prepare("chain", "", {REF: "chain"})
    assert str(caught.value) == (
        f"snapshotter 'lazyimg' of containerd at {tmp_path}/socket: does not answer: "
        "dial: no socket; start the daemon, with snapshotter.address set: lazyimg serve"
    )


async def test_active_snapshots_are_no_layers(client: Client) -> None:
    active = await client.prepare("chain", "", {REF: "chain"})
    assert active is not None
    assert active.key.startswith("extract-")
    assert active.key.endswith(" chain")
    assert not await client.has_snapshot(active.key)
    await client.commit("chain", active)
    assert await client.has_snapshot("chain")
    assert not await client.has_snapshot(active.key)
    assert await client.prepare("chain", "", {REF: "chain"}) is None


async def test_commit_that_somebody_else_has_made(
    client: Client, containerd: FakeContainerd
) -> None:
    active = await client.prepare("chain", "", {REF: "chain"})
    assert active is not None
    containerd.overtaken.add("Snapshots/Commit")
    await client.commit("chain", active)
    assert list(containerd.snapshots) == ["chain"]


# Images.


async def test_image_is_created_then_changed(client: Client, containerd: FakeContainerd) -> None:
    one, two = describe(b"1", OCI_LAYER), describe(b"2", OCI_LAYER)
    await client.put_image("name", one)
    containerd.images["name"].labels["mine"] = "kept"
    await client.put_image("name", two)
    image = containerd.images["name"]
    assert (image.target.digest, image.target.size) == (str(two.digest), 1)
    assert image.target.media_type == OCI_LAYER
    assert image.labels == {"mine": "kept"}


async def test_image_that_goes_between_two_calls(
    client: Client, containerd: FakeContainerd
) -> None:
    containerd.faults["Images/Create"] = (grpc.StatusCode.ALREADY_EXISTS, "")
    await client.put_image("name", describe(b"1", OCI_LAYER))
    assert containerd.calls == ["Images/Create", "Images/Update", "Images/Create"]


# Errors.


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.NOT_FOUND, NotFoundError),
        (grpc.StatusCode.INVALID_ARGUMENT, UsageError),
        (grpc.StatusCode.PERMISSION_DENIED, NotRootError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, StorageError),
        (grpc.StatusCode.UNAVAILABLE, DaemonUnavailableError),
        (grpc.StatusCode.UNIMPLEMENTED, ConfigurationError),
        (grpc.StatusCode.DATA_LOSS, CorruptError),
        (grpc.StatusCode.INTERNAL, LazyimgError),
    ],
)
async def test_statuses(
    client: Client,
    containerd: FakeContainerd,
    tmp_path: Path,
    code: grpc.StatusCode,
    kind: type[LazyimgError],
) -> None:
    containerd.faults["Diff/Apply"] = (code, "it is\n\tso")
    with pytest.raises(LazyimgError) as caught:
        await client.apply(describe(DATA, OCI_LAYER), Active("key", []))
    assert type(caught.value) is kind
    assert str(caught.value) == f"containerd at {tmp_path}/socket: it is so"


async def test_status_without_text(client: Client, containerd: FakeContainerd) -> None:
    containerd.faults["Diff/Apply"] = (grpc.StatusCode.ABORTED, "")
    with pytest.raises(LazyimgError, match=r": ABORTED$"):
        await client.apply(describe(DATA, OCI_LAYER), Active("key", []))
