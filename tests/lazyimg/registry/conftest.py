"""A registry, a client and a repository for the tests of this folder that do not make their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lazyimg.registry.client import RegistryClient
from lazyimg.registry.retry import RetryPolicy
from lazyimg_formats.oci.reference import Reference
from tests.fakes.registry import FakeRegistry, run_registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lazyimg.registry.repository import Repository
    from lazyimg_formats.oci.documents import Descriptor

BLOB = bytes(range(256)) * 1000
CHUNK = 100_000
FAST = RetryPolicy(attempts=3, first_delay=0.001, max_delay=0.01)


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with run_registry() as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[RegistryClient]:
    async with RegistryClient(policy=FAST, environ={}, chunk_size=CHUNK) as made:
        yield made


@pytest.fixture
def repository(registry: FakeRegistry, client: RegistryClient) -> Repository:
    return client.repository(Reference(registry.host, "team/app"))


@pytest.fixture
def blob(registry: FakeRegistry) -> Descriptor:
    return registry.add_blob("team/app", BLOB)
