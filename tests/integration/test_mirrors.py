"""Mirrors and proxies in front of the registry that Debian packages."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trustme

from lazyimg.config import RegistrySettings
from lazyimg.errors import RegistryError
from lazyimg.registry.client import RegistryClient
from lazyimg.registry.ports import Access
from lazyimg.registry.retry import RetryPolicy
from lazyimg.registry.settings import apply_settings, make_client
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Manifest,
    describe,
    serialize_document,
)
from lazyimg_formats.oci.reference import RegistryLocation, parse_location, parse_reference
from tests.fakes.registry import name_mirrors, run_registry
from tests.real.docker_registry import Registry, running_registry
from tests.real.forward_proxy import running_forward_proxy
from tests.real.kernel_image import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from lazyimg.registry.repository import Repository
    from tests.real.counting_proxy import Exchange

LAYER = bytes(range(256)) * 40_000
CONFIG = b'{"os":"linux","architecture":"amd64"}'
BLOB = describe(LAYER, OCI_LAYER)
MANIFEST = serialize_document(Manifest(config=describe(CONFIG, OCI_CONFIG), layers=(BLOB,)))
READS = range(0, len(LAYER) - 5000, 500_000)


@pytest.fixture
def mirror(tmp_path: Path, registry: Registry) -> Iterator[Registry]:
    (tmp_path / "mirror").mkdir()
    with running_registry(tmp_path / "mirror", mirror_of=registry.address) as running:
        yield running


async def push(registry: Registry) -> None:
    async with RegistryClient(environ={}, chunk_size=1_000_000) as client:
        target = client.repository(parse_reference(f"{registry.address}/team/app"))
        for blob in (LAYER, CONFIG):
            await target.push_blob(pieces(blob), lambda blob=blob: Digest.of(blob))  # type: ignore[misc]
        await target.push_manifest(MANIFEST, OCI_MANIFEST, "v1")
    registry.counts.clear()


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


@asynccontextmanager
async def reading(directory: Path, registry: Registry, *mirrors: str) -> AsyncIterator[Repository]:
    hosts = directory / "hosts"
    name_mirrors(hosts, registry.address, *mirrors)
    async with RegistryClient(
        environ={},
        policy=RetryPolicy(attempts=3, first_delay=0.01),
        mirror_timeout=5.0,
        spool=(directory / "spool", 1 << 30),
    ) as client:
        yield client.repository(
            parse_reference(f"{registry.address}/team/app"), Access(hosts_dir=hosts)
        )


async def read_many(repository: Repository) -> None:
    parts = await asyncio.gather(*(repository.read_blob(BLOB, at, 5000) for at in READS))
    assert parts == [LAYER[at : at + 5000] for at in READS]


async def test_pull_through_cache(tmp_path: Path, registry: Registry, mirror: Registry) -> None:
    await push(registry)
    async with reading(tmp_path, registry, mirror.address) as repository:
        _, manifest = await repository.fetch_manifest("v1")
        assert manifest == MANIFEST
        await repository.prove_blob(BLOB)
        await read_many(repository)
        await eventually(lambda: has_stored(mirror))
    asked = registry.counts.blob_reads(str(BLOB.digest))
    assert all(exchange.range is None for exchange in asked)  # it has asked for the whole
    cold = len(mirror.counts.blob_reads(str(BLOB.digest)))
    async with reading(tmp_path, registry, mirror.address) as repository:
        await read_many(repository)
    assert len(registry.counts.blob_reads(str(BLOB.digest))) == len(asked)
    assert all(exchange.path.endswith(f"?ns={registry.address}") for exchange in seen(mirror))
    warm = mirror.counts.blob_reads(str(BLOB.digest))[cold:]
    assert [(exchange.status, exchange.sent) for exchange in warm] == [(206, 5000)] * len(READS)


def has_stored(mirror: Registry) -> bool:
    """Tell whether the mirror has the blob, and every other fetch of it has come to its end."""
    uploads = mirror.storage / "docker/registry/v2/repositories/team/app/_uploads"
    return mirror.blob_path(str(BLOB.digest)).exists() and not any(uploads.glob("*/data"))


def seen(registry: Registry) -> list[Exchange]:
    return registry.counts.exchanges


async def test_cold_pull_through_cache(
    tmp_path: Path, registry: Registry, mirror: Registry
) -> None:
    """It may ignore the range of the first request for a blob; then that answer is the fill."""
    await push(registry)
    async with reading(tmp_path, registry, mirror.address) as repository:
        await read_many(repository)
        await read_many(repository)
    whole = [one for one in mirror.counts.blob_reads(str(BLOB.digest)) if one.status == 200]
    assert len(whole) <= len(READS)
    assert registry.counts.sent(str(BLOB.digest)) >= len(LAYER)


async def test_mirror_dies_and_the_registry_goes_on(tmp_path: Path, registry: Registry) -> None:
    await push(registry)
    (tmp_path / "mirror").mkdir()
    with running_registry(tmp_path / "mirror", mirror_of=registry.address) as mirror:
        async with reading(tmp_path, registry, mirror.address) as repository:
            await repository.read_blob(describe(CONFIG, OCI_CONFIG), 1, 4)
            assert mirror.counts.exchanges
    async with reading(tmp_path, registry, mirror.address) as repository:
        await read_many(repository)
    assert registry.counts.sent(str(BLOB.digest)) == 5000 * len(READS)


async def test_mirror_ends_between_two_reads(tmp_path: Path, registry: Registry) -> None:
    await push(registry)
    (tmp_path / "mirror").mkdir()
    with ExitStack() as stack:
        mirror = stack.enter_context(
            running_registry(tmp_path / "mirror", mirror_of=registry.address)
        )
        async with reading(tmp_path, registry, mirror.address) as repository:
            await read_many(repository)
            await eventually(lambda: has_stored(mirror))
            registry.counts.clear()
            await repository.read_blob(BLOB, 100, 1000)
            assert registry.counts.sent(str(BLOB.digest)) == 0
            stack.close()
            places = [at + 7000 for at in READS]
            parts = await asyncio.gather(*(repository.read_blob(BLOB, at, 99) for at in places))
            assert parts == [LAYER[at : at + 99] for at in places]
            await repository.prove_blob(BLOB)
            assert (await repository.fetch_manifest("v1"))[1] == MANIFEST
    assert registry.counts.sent(str(BLOB.digest)) in {0, 99 * len(places)}


async def read_through(settings: RegistrySettings, host: str) -> None:
    location = parse_location(f"{host}/team/app:v1")
    assert isinstance(location, RegistryLocation)
    async with make_client(settings, {}) as client:
        access = apply_settings(Access(), location, settings)
        repository = client.repository(location.reference, access)
        assert (await repository.fetch_manifest("v1"))[1] == MANIFEST
        await read_many(repository)


@pytest.mark.parametrize("credential", ["", "me:secret"])
async def test_plain_registry_behind_a_proxy(registry: Registry, credential: str) -> None:
    await push(registry)
    with running_forward_proxy({"registry.test": registry.address}, credential) as proxy:
        settings = RegistrySettings(
            proxy=proxy.url, plain_http=["registry.test:5000"], retries=0, hosts_dir=""
        )
        await read_through(settings, "registry.test:5000")
    assert {line.partition(" ")[0] for line in proxy.asked} == {"GET"}
    assert all(line.startswith("GET http://registry.test:5000/v2/") for line in proxy.asked)


async def test_registry_with_tls_behind_a_proxy(tmp_path: Path) -> None:
    authority, tls = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("registry.test").configure_cert(tls)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    async with run_registry(tls) as registry:
        registry.manifests["team/app"] = {"v1": (OCI_MANIFEST, MANIFEST)}
        registry.add_blob("team/app", LAYER)
        with running_forward_proxy({"registry.test": registry.host}, "me:secret") as proxy:
            settings = RegistrySettings(
                proxy=proxy.url, ca_file=str(ca_file), retries=0, hosts_dir=""
            )
            await read_through(settings, "registry.test")
        assert {line.partition(" ")[0] for line in proxy.asked} == {"CONNECT"}
        with pytest.raises(RegistryError, match=r"the proxy 127\.0\.0\.1 cannot be reached"):
            await read_through(settings, "registry.test")


async def test_proxy_that_refuses() -> None:
    with running_forward_proxy({}, "me:secret") as proxy:
        settings = RegistrySettings(proxy=f"http://{proxy.address}", retries=0, hosts_dir="")
        with pytest.raises(RegistryError, match="the proxy answers 407"):
            await read_through(settings, "registry.test")
        settings = RegistrySettings(proxy=proxy.url, retries=0, hosts_dir="")
        with pytest.raises(RegistryError, match="the proxy answers 502"):
            await read_through(settings, "registry.test")


async def test_proxy_of_one_host_even_on_loopback(tmp_path: Path, registry: Registry) -> None:
    await push(registry)
    with running_forward_proxy({"127.0.0.1": registry.address}) as proxy:
        table = f'[host."http://{registry.origin}"]\nproxy = "{proxy.url}"\n'
        async with reading(tmp_path, registry, table) as repository:
            await read_many(repository)
    assert proxy.asked
