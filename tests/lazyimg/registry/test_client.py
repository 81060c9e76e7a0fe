"""One client, many repositories: what they share and what they must not."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import AccessDeniedError
from lazyimg.registry.auth import Credential
from lazyimg.registry.client import MAX_UNUSED, RegistryClient
from lazyimg.registry.ports import Access
from lazyimg_formats.oci.reference import parse_reference
from tests.fakes.registry import name_mirrors, run_registry

if TYPE_CHECKING:
    from pathlib import Path


async def test_repositories_are_shared_by_name_and_access() -> None:
    async with RegistryClient() as client:
        one = client.repository(parse_reference("quay.io/a/b:1"))
        assert client.repository(parse_reference("quay.io/a/b:2")) is one
        assert client.repository(parse_reference("quay.io/a/c")) is not one
        other = client.repository(parse_reference("quay.io/a/b"), Access(username="me"))
        assert other is not one


async def test_repositories_that_nobody_uses_are_forgotten(tmp_path: Path) -> None:
    async with run_registry() as registry, RegistryClient(environ={}) as client:
        registry.auth = "token"
        blob = registry.add_blob("a/b", b"data")
        used = client.repository(parse_reference(f"{registry.host}/a/b"))
        assert await used.read_blob(blob, 0, 4) == b"data"
        for number in range(3 * MAX_UNUSED):
            access = Access(username=f"user {number}", ca_file=tmp_path)
            client.repository(parse_reference(f"{registry.host}/a/b"), access)
        assert len(client._repositories) == MAX_UNUSED + 1
        again = client.repository(parse_reference(f"{registry.host}/a/b"))
        assert again is used
        assert await again.read_blob(blob, 1, 2) == b"at"
        assert registry.count("GET", "/token") == 1


async def test_repository_asked_for_again_keeps_its_token_though_nobody_holds_it() -> None:
    async with run_registry() as registry, RegistryClient(environ={}) as client:
        registry.auth = "token"
        blob = registry.add_blob("a/b", b"data")
        reference = parse_reference(f"{registry.host}/a/b")
        for _ in range(3):
            assert await client.repository(reference).read_blob(blob, 0, 4) == b"data"
        assert registry.count("GET", "/token") == 1


async def test_tokens_of_one_access_never_serve_another(tmp_path: Path) -> None:
    authfile = tmp_path / "auth.json"
    async with run_registry() as registry, RegistryClient(environ={}) as client:
        registry.auth, registry.users = "token", {"me": "secret"}
        blob = registry.add_blob("a/b", b"data")
        auth = base64.b64encode(b"me:secret").decode()
        authfile.write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
        reference = parse_reference(f"{registry.host}/a/b")
        good = client.repository(reference, Access(authfile=authfile))
        assert await good.read_blob(blob, 0, 4) == b"data"
        with pytest.raises(AccessDeniedError):
            await client.repository(reference).read_blob(blob, 0, 4)
        assert await good.read_blob(blob, 1, 2) == b"at"


async def test_credentials_of_the_environment(tmp_path: Path) -> None:
    async with run_registry() as registry:
        registry.auth, registry.users = "basic", {"me": "secret"}
        blob = registry.add_blob("a/b", b"data")
        auth = base64.b64encode(b"me:secret").decode()
        config = {"auths": {f"{registry.host}/a": {"auth": auth}}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        async with RegistryClient(environ={"DOCKER_CONFIG": str(tmp_path)}) as client:
            repository = client.repository(parse_reference(f"{registry.host}/a/b"))
            assert await repository.read_blob(blob, 0, 4) == b"data"


NODE = Access(node=True)


async def test_what_was_given_is_for_the_node_only(tmp_path: Path) -> None:
    given: dict[str, Credential] = {}
    async with (
        run_registry() as registry,
        RegistryClient(environ={"DOCKER_CONFIG": str(tmp_path)}, given=given.get) as client,
    ):
        registry.auth, registry.users = "basic", {"me": "secret", "file": "f"}
        blob = registry.add_blob("a/b", b"data")
        reference = parse_reference(f"{registry.host}/a/b:1")
        given[reference.name] = Credential("me", "secret")
        assert await client.repository(reference, NODE).read_blob(blob, 0, 4) == b"data"
        wrong = Access(username="me", password="wrong", node=True)
        for access in (Access(), wrong):
            with pytest.raises(AccessDeniedError):
                await client.repository(reference, access).read_blob(blob, 0, 4)
        auth = base64.b64encode(b"file:f").decode()
        config = {"auths": {registry.host: {"auth": auth}}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        given[reference.name] = Credential("me", "wrong")
        with pytest.raises(AccessDeniedError):  # it counts before any file
            await client.repository(reference, NODE).read_blob(blob, 0, 4)
        given.clear()
        assert await client.repository(reference, NODE).read_blob(blob, 0, 4) == b"data"


async def test_what_is_given_later_is_used_and_earlier_tokens_serve_nobody_else() -> None:
    given: dict[str, Credential] = {}
    async with run_registry() as registry, RegistryClient(environ={}, given=given.get) as client:
        registry.auth, registry.users = "token", {"me": "secret"}
        blob = registry.add_blob("a/b", b"data")
        reference = parse_reference(f"{registry.host}/a/b:1")
        given[reference.name] = Credential("me", "secret")
        first = client.repository(reference, NODE)
        assert await first.read_blob(blob, 0, 4) == b"data"
        given[reference.name] = Credential("me", "wrong")
        second = client.repository(reference, NODE)
        assert second is not first
        with pytest.raises(AccessDeniedError):
            await second.read_blob(blob, 0, 4)
        registry.expire_tokens()
        with pytest.raises(
            AccessDeniedError, match="; have it pulled again through lazyimg's image service, which"
        ):
            await first.read_blob(blob, 0, 4)
        given[reference.name] = Credential("me", "secret")
        assert await first.read_blob(blob, 0, 4) == b"data"


async def test_what_was_given_is_not_shown_to_mirrors(tmp_path: Path) -> None:
    async with run_registry() as registry, run_registry() as mirror:
        for one in (registry, mirror):
            one.auth, one.users = "basic", {"me": "secret"}
            blob = one.add_blob("a/b", b"data")
        name_mirrors(tmp_path, registry.host, mirror.host)
        reference = parse_reference(f"{registry.host}/a/b:1")
        given = {reference.name: Credential("me", "secret")}
        async with RegistryClient(environ={}, given=given.get) as client:
            repository = client.repository(reference, Access(node=True, hosts_dir=tmp_path))
            assert await repository.read_blob(blob, 0, 4) == b"data"
        assert mirror.asked
        assert not any(asked.authorized for asked in mirror.asked)


async def test_node_is_one_user() -> None:
    given: dict[str, Credential] = {}
    async with RegistryClient(environ={}, given=given.get) as client:
        reference = parse_reference("localhost:1/a/b")
        assert await client.repository(reference, NODE).user() == "<node>"
        given[reference.name] = Credential("me", "secret")
        assert await client.repository(reference, NODE).user() == "<node>"


def test_password_is_not_shown() -> None:
    shown = repr(Access(username="me", password="hidden"))
    assert shown == "Access(authfile=None, username='me')"
