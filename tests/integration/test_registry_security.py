"""The registry that Debian packages: its tokens, certificates of its own and of its clients."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import trustme

from lazyimg.errors import AccessDeniedError, RegistryError
from lazyimg.registry.client import RegistryClient
from lazyimg.registry.ports import Access
from lazyimg.registry.retry import RetryPolicy
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import (
    OCI_LAYER,
    OCI_MANIFEST,
    Manifest,
    describe,
    serialize_document,
)
from lazyimg_formats.oci.reference import parse_reference
from tests.real.docker_registry import Registry, Tls, running_registry
from tests.real.token_service import TokenService, User, running_token_service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from lazyimg.registry.repository import Repository

LAYER = bytes(range(256)) * 4000
BLOB = describe(LAYER, OCI_LAYER)
MANIFEST = serialize_document(Manifest(config=describe(b"{}", OCI_LAYER), layers=(BLOB,)))
WRITER = Access(username="writer", password="w")
READER = Access(username="reader", password="r")
STRANGER = Access(username="stranger", password="s")


@pytest.fixture
async def client() -> AsyncIterator[RegistryClient]:
    policy = RetryPolicy(attempts=2, first_delay=0.01)
    async with RegistryClient(environ={}, policy=policy) as made:
        yield made


async def push(repository: Repository) -> None:
    async def pieces(data: bytes) -> AsyncIterator[bytes]:
        yield data

    for blob in (LAYER, b"{}"):
        await repository.push_blob(pieces(blob), lambda blob=blob: Digest.of(blob))  # type: ignore[misc]
    await repository.push_manifest(MANIFEST, OCI_MANIFEST, "v1")


async def read_many(repository: Repository, start: int = 0) -> None:
    places = range(start, len(LAYER) - 100, len(LAYER) // 20)
    parts = await asyncio.gather(*(repository.read_blob(BLOB, at, 100) for at in places))
    assert parts == [LAYER[at : at + 100] for at in places]


class TestTokens:
    @pytest.fixture
    def service(self, tmp_path: Path) -> Iterator[TokenService]:
        with running_token_service(tmp_path) as service:
            service.users = {
                "writer": User("w", {"team/app": {"pull", "push"}, "team/other": {"pull", "push"}}),
                "reader": User("r", {"team/app": {"pull"}}),
                "stranger": User("s", {}),
            }
            yield service

    @pytest.fixture
    def registry(self, tmp_path: Path, service: TokenService) -> Iterator[Registry]:
        with running_registry(tmp_path, tokens=service) as registry:
            yield registry

    async def test_each_asks_for_what_he_does(
        self, client: RegistryClient, registry: Registry, service: TokenService
    ) -> None:
        reference = parse_reference(f"{registry.address}/team/app")
        await push(client.repository(reference, WRITER))
        assert set(service.asked) == {("writer", "repository:team/app:pull,push")}
        service.asked.clear()
        reader = client.repository(reference, READER)
        assert (await reader.fetch_manifest("v1"))[1] == MANIFEST
        await reader.prove_blob(BLOB)
        await read_many(reader)
        assert service.asked == [("reader", "repository:team/app:pull")]
        with pytest.raises(AccessDeniedError):
            await reader.push_manifest(MANIFEST, OCI_MANIFEST, "v2")

    async def test_who_may_not(
        self, client: RegistryClient, registry: Registry, service: TokenService
    ) -> None:
        reference = parse_reference(f"{registry.address}/team/app")
        await push(client.repository(reference, WRITER))
        for access in (STRANGER, Access(), Access(username="reader", password="guess")):
            repository = client.repository(reference, access)
            for reading in (repository.prove_blob(BLOB), repository.read_blob(BLOB, 0, 10)):
                with pytest.raises(AccessDeniedError) as caught:
                    await reading
                assert "guess" not in str(caught.value)

    async def test_tokens_that_have_expired_are_renewed_once_for_all(
        self, client: RegistryClient, registry: Registry, service: TokenService
    ) -> None:
        reference = parse_reference(f"{registry.address}/team/app")
        await push(client.repository(reference, WRITER))
        reader = client.repository(reference, READER)
        service.expired = True
        with pytest.raises(AccessDeniedError):
            await reader.read_blob(BLOB, 0, 10)
        service.expired = False
        service.asked.clear()
        await read_many(reader)
        await read_many(reader, 7)
        assert service.asked == [("reader", "repository:team/app:pull")]

    async def test_mount_across_repositories_asks_for_both(
        self, client: RegistryClient, registry: Registry, service: TokenService
    ) -> None:
        source = client.repository(parse_reference(f"{registry.address}/team/app"), WRITER)
        await push(source)
        target = client.repository(parse_reference(f"{registry.address}/team/other"), WRITER)
        service.asked.clear()
        assert await target.mount_blob_from(source, BLOB)
        assert service.asked == [
            ("writer", "repository:team/other:pull,push repository:team/app:pull")
        ]


class TestCertificates:
    @pytest.fixture
    def authority(self) -> trustme.CA:
        return trustme.CA()

    def files(self, directory: Path, authority: trustme.CA, *, clients: bool) -> Tls:
        ca = directory / "ca.pem"
        authority.cert_pem.write_to_path(str(ca))
        certificate, key = directory / "server.pem", directory / "server.key"
        leaf = authority.issue_cert("127.0.0.1")
        leaf.cert_chain_pems[0].write_to_path(str(certificate))
        leaf.private_key_pem.write_to_path(str(key))
        return Tls(certificate, key, ca if clients else None)

    def write_hosts(self, directory: Path, registry: Registry, lines: str) -> Access:
        place = directory / "hosts" / registry.address
        place.mkdir(parents=True, exist_ok=True)
        server = f"https://{registry.address}"
        (place / "hosts.toml").write_text(f'server = "{server}"\n{lines}\n')
        return Access(hosts_dir=directory / "hosts")

    async def test_authority_of_hosts_toml(
        self, client: RegistryClient, tmp_path: Path, authority: trustme.CA
    ) -> None:
        with running_registry(
            tmp_path, tls=self.files(tmp_path, authority, clients=False)
        ) as registry:
            reference = parse_reference(f"{registry.address}/team/app")
            with pytest.raises(RegistryError, match="its certificate cannot be verified"):
                await client.repository(reference).fetch_manifest("v1")
            for name, lines in (("ca", f'ca = "{tmp_path}/ca.pem"'), ("not", "skip_verify = true")):
                access = self.write_hosts(tmp_path / name, registry, lines)
                repository = client.repository(reference, access)
                await push(repository)
                await read_many(repository)
            access = Access(ca_file=tmp_path / "ca.pem")
            await read_many(client.repository(reference, access))

    async def test_certificate_that_is_shown_to_the_registry(
        self, client: RegistryClient, tmp_path: Path, authority: trustme.CA
    ) -> None:
        with running_registry(
            tmp_path, tls=self.files(tmp_path, authority, clients=True)
        ) as registry:
            reference = parse_reference(f"{registry.address}/team/app")
            unknown = self.write_hosts(tmp_path / "none", registry, f'ca = "{tmp_path}/ca.pem"')
            with pytest.raises(RegistryError):
                await client.repository(reference, unknown).fetch_manifest("v1")
            mine = authority.issue_cert("client@test")
            mine.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "me.pem"))
            lines = f'ca = "{tmp_path}/ca.pem"\nclient = "{tmp_path}/me.pem"'
            known = client.repository(
                reference, self.write_hosts(tmp_path / "known", registry, lines)
            )
            await push(known)
            await read_many(known)
