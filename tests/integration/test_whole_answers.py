"""Servers that send whole blobs where a part was asked for: nginx in front of a registry, or alone.

Their first answer is the fill: every read waits there for its bytes, and nothing is sent twice.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import pytest

from lazyimg.registry.client import RegistryClient
from lazyimg.registry.ports import Access
from lazyimg.registry.retry import RetryPolicy
from lazyimg.registry.spool import AHEAD
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Manifest,
    describe,
    serialize_document,
)
from lazyimg_formats.oci.reference import parse_reference
from tests.fakes.registry import name_mirrors
from tests.real.counting_proxy import Proxy, running_proxy
from tests.real.kernel_image import eventually
from tests.real.nginx import FILES, REVERSE_PROXY, Nginx, running_nginx

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from lazyimg.registry.repository import Repository
    from tests.real.docker_registry import Registry

LAYER: Final = random.Random(1).randbytes(AHEAD + (8 << 20))  # noqa: S311 - the same in every run
CONFIG: Final = b'{"os":"linux","architecture":"amd64"}'
BLOB: Final = describe(LAYER, OCI_LAYER)
MANIFEST: Final = serialize_document(Manifest(config=describe(CONFIG, OCI_CONFIG), layers=(BLOB,)))
PATH: Final = f"/v2/team/app/blobs/{BLOB.digest}"
LENGTH: Final = 70_000
NEAR: Final = range(0, AHEAD - LENGTH, 1 << 20)
EVERYWHERE: Final = range(0, len(LAYER) - LENGTH, 1 << 20)
IN_SOCKETS: Final = 12 << 20  # bytes that may be on their way when an answer is refused


async def push(registry: Registry) -> None:
    async with RegistryClient(environ={}, chunk_size=1_000_000) as client:
        target = client.repository(parse_reference(f"{registry.origin}/team/app"))
        for blob in (LAYER, CONFIG):
            await target.push_blob(pieces(blob), lambda blob=blob: Digest.of(blob))  # type: ignore[misc]
        await target.push_manifest(MANIFEST, OCI_MANIFEST, "v1")


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Nginx]:
    """Serve the image as plain files."""
    root = tmp_path / "files/v2/team/app"
    for part in ("blobs", "manifests"):
        (root / part).mkdir(parents=True)
    for blob in (LAYER, CONFIG):
        (root / "blobs" / str(Digest.of(blob))).write_bytes(blob)
    (root / "manifests" / "v1").write_bytes(MANIFEST)
    server = FILES.format(root=tmp_path / "files", manifest_type=OCI_MANIFEST)
    with running_nginx(tmp_path, server) as nginx:
        yield nginx


@pytest.fixture
def mirror(tmp_path: Path, registry: Registry) -> Iterator[Nginx]:
    with running_nginx(tmp_path, REVERSE_PROXY.format(origin=registry.origin)) as nginx:
        yield nginx


@pytest.fixture
def watched(mirror: Nginx) -> Iterator[Proxy]:
    """Count what the mirror is asked, and hold back what it sends."""
    with running_proxy(mirror.address) as proxy:
        yield proxy


@asynccontextmanager
async def reading(directory: Path, registry: str, mirror: str = "") -> AsyncIterator[Repository]:
    hosts = directory / "hosts"
    if mirror:
        name_mirrors(hosts, registry, mirror)
    async with RegistryClient(
        environ={},
        policy=RetryPolicy(attempts=2, first_delay=0.01),
        mirror_timeout=20.0,
        spool=(directory / "spool", 1 << 30),
    ) as client:
        reference = parse_reference(f"{registry}/team/app")
        yield client.repository(reference, Access(hosts_dir=hosts))


async def read(repository: Repository, at: int) -> None:
    assert await repository.read_blob(BLOB, at, LENGTH) == LAYER[at : at + LENGTH]


async def learn(repository: Repository) -> None:
    """Let another blob show what the server does: from then on, of a blob only one read asks."""
    assert await repository.read_blob(describe(CONFIG, OCI_CONFIG), 1, 4) == CONFIG[1:5]


async def test_mirror_that_strips_ranges(
    tmp_path: Path, registry: Registry, watched: Proxy
) -> None:
    await push(registry)
    async with reading(tmp_path, registry.address, watched.address) as repository:
        assert (await repository.fetch_manifest("v1"))[1] == MANIFEST
        await repository.prove_blob(BLOB)
        await learn(repository)
        watched.counts.held = True
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(read(repository, NEAR[-1]))
            await eventually(lambda: bool(watched.counts.blob_reads(str(BLOB.digest))))
            for at in NEAR:
                tasks.create_task(read(repository, at))
            await asyncio.sleep(0)
            assert not first.done()
            watched.counts.held = False
        await read(repository, EVERYWHERE[-1])
        await eventually(lambda: watched.counts.sent(str(BLOB.digest)) == len(LAYER))
        for at in EVERYWHERE:
            await read(repository, at)
    (answer,) = watched.counts.blob_reads(str(BLOB.digest))
    assert (answer.status, answer.sent) == (200, len(LAYER))
    assert answer.range == f"bytes={NEAR[-1]}-{NEAR[-1] + LENGTH - 1}"
    assert registry.counts.sent() == 0  # nobody went past the mirror


async def test_far_reads_go_past_a_mirror_that_is_not_there_yet(
    tmp_path: Path, registry: Registry, watched: Proxy
) -> None:
    await push(registry)
    async with reading(tmp_path, registry.address, watched.address) as repository:
        await learn(repository)
        watched.counts.held = True
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read(repository, 0))
            await eventually(lambda: bool(watched.counts.blob_reads(str(BLOB.digest))))
            await read(repository, EVERYWHERE[-1])
            watched.counts.held = False
    (past,) = registry.counts.blob_reads(str(BLOB.digest))
    assert (past.status, past.sent) == (206, LENGTH)
    assert len(watched.counts.blob_reads(str(BLOB.digest))) == 1


async def test_mirror_ends_in_the_middle(
    tmp_path: Path, registry: Registry, mirror: Nginx, watched: Proxy
) -> None:
    await push(registry)
    async with reading(tmp_path, registry.address, watched.address) as repository:
        await learn(repository)
        watched.counts.held = True
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read(repository, NEAR[-1]))
            await eventually(lambda: bool(watched.counts.blob_reads(str(BLOB.digest))))
            for at in NEAR:
                tasks.create_task(read(repository, at))
            mirror.stop()
            watched.counts.held = False
    (answer,) = watched.counts.blob_reads(str(BLOB.digest))
    assert answer.sent < len(LAYER)
    assert {one.status for one in registry.counts.blob_reads(str(BLOB.digest))} == {206}


async def test_plain_files(tmp_path: Path, files: Nginx) -> None:
    """Reads that begin together are all answered whole: one answer is kept, the others refused."""
    async with reading(tmp_path, files.address) as repository:
        assert (await repository.fetch_manifest("v1"))[1] == MANIFEST
        async with asyncio.TaskGroup() as tasks:
            for at in EVERYWHERE:
                tasks.create_task(read(repository, at))
        await read(repository, len(LAYER) - LENGTH)
        files.stop()
        for at in EVERYWHERE:
            await read(repository, at)
    assert {answer.status for answer in files.answers(PATH)} == {200}
    *refused, kept = sorted(sent(files))
    assert kept == len(LAYER)
    assert all(size < IN_SOCKETS for size in refused)


def sent(nginx: Nginx) -> list[int]:
    return [answer.sent for answer in nginx.answers(PATH)]


async def test_plain_files_once_it_is_known(tmp_path: Path, files: Nginx) -> None:
    """One read asks, and the others wait."""
    async with reading(tmp_path, files.address) as repository:
        await learn(repository)
        async with asyncio.TaskGroup() as tasks:
            for at in EVERYWHERE:
                tasks.create_task(read(repository, at))
        await eventually(lambda: sent(files) == [len(LAYER)])


async def test_whole_blob_as_a_stream(tmp_path: Path, files: Nginx) -> None:
    async with reading(tmp_path, files.address) as repository:
        assert b"".join([piece async for piece in repository.stream_blob(BLOB)]) == LAYER
    await eventually(lambda: sent(files) == [len(LAYER)])
