"""Whether a registry takes a user name and password."""

from __future__ import annotations

import pytest

from lazyimg.errors import AccessDeniedError, BadReferenceError, RegistryError
from lazyimg.registry.login import check_credential, parse_registry
from lazyimg.registry.ports import Access
from tests.fakes.registry import run_registry

GOOD = Access(username="user", password="pass")
WRONG = Access(username="user", password="other")


@pytest.mark.parametrize(
    ("text", "registry"),
    [
        ("registry.test", "registry.test"),
        ("https://registry.test/", "registry.test"),
        ("http://localhost:5000", "localhost:5000"),
        ("docker.io", "docker.io"),
        ("https://index.docker.io", "docker.io"),
        ("[::1]:5000", "[::1]:5000"),
    ],
)
def test_parse_registry(text: str, registry: str) -> None:
    assert parse_registry(text) == registry


@pytest.mark.parametrize("text", ["", "registry.test/app", "a b", "https://"])
def test_text_that_is_no_registry(text: str) -> None:
    with pytest.raises(BadReferenceError, match=r"write it as HOST or HOST:PORT$"):
        parse_registry(text)


@pytest.mark.parametrize("auth", ["basic", "token"])
async def test_credential_is_taken_or_refused(auth: str) -> None:
    async with run_registry() as registry:
        registry.auth = auth  # type: ignore[assignment]  # one of the two
        registry.users = {"user": "pass"}
        await check_credential(registry.host, GOOD)
        with pytest.raises(AccessDeniedError) as caught:
            await check_credential(registry.host, WRONG)
        assert str(caught.value) == (
            f"{registry.host}: the registry refuses these credentials; check user name and password"
        )


async def test_registry_that_wants_none() -> None:
    async with run_registry() as registry:
        await check_credential(registry.host, GOOD)


async def test_something_else_answers() -> None:
    async with run_registry() as registry:
        registry.fail("status", path="/v2/", status=404, times=5)
        with pytest.raises(RegistryError, match=r"is no registry: it has no /v2/$"):
            await check_credential(registry.host, GOOD)
