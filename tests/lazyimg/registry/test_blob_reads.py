"""Ranged reads over real HTTP: exact bytes, or an error that says what came instead."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import NotFoundError, RegistryError
from lazyimg.registry import retry
from lazyimg.registry.client import RegistryClient
from lazyimg.registry.transport import TransportLimits
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import Descriptor
from lazyimg_formats.oci.reference import Reference
from tests.lazyimg.registry.conftest import BLOB, FAST

if TYPE_CHECKING:
    from lazyimg.registry.repository import Repository
    from tests.fakes.registry import FakeRegistry


class TestRanges:
    @pytest.mark.parametrize(
        ("offset", "length"), [(0, 1), (255_999, 1), (1000, 4096), (0, 256_000), (5, 0)]
    )
    @pytest.mark.parametrize("ignore_range", [False, True])
    async def test_exact_bytes(
        self,
        registry: FakeRegistry,
        repository: Repository,
        blob: Descriptor,
        offset: int,
        length: int,
        *,
        ignore_range: bool,
    ) -> None:
        registry.ignore_range = ignore_range
        data = await repository.read_blob(blob, offset, length)
        assert type(data) is bytes
        assert data == BLOB[offset : offset + length]

    async def test_only_the_range_is_sent(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        await repository.read_blob(blob, 1000, 500)
        assert registry.sent() == 500
        assert registry.asked[-1].range == "bytes=1000-1499"

    @pytest.mark.parametrize(("offset", "length"), [(-1, 2), (0, 256_001), (10, -1)])
    async def test_outside_the_blob(
        self, repository: Repository, blob: Descriptor, offset: int, length: int
    ) -> None:
        with pytest.raises(ValueError, match="is not inside a blob of 256000 bytes"):
            await repository.read_blob(blob, offset, length)

    @pytest.mark.parametrize("kind", ["status", "reset", "half", "long"])
    async def test_a_passing_failure_is_tried_again(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor, kind: str
    ) -> None:
        registry.fail(kind, times=2)
        assert await repository.read_blob(blob, 10, 1000) == BLOB[10:1010]
        assert registry.count("GET", "/blobs/") == 3

    @pytest.mark.parametrize(
        "retry_after", [None, "0", "Wed, 21 Oct 2015 07:28:00 GMT", "soon", "-1"]
    )
    @pytest.mark.parametrize("status", [429, 503])
    async def test_registry_that_is_busy(
        self,
        registry: FakeRegistry,
        repository: Repository,
        blob: Descriptor,
        status: int,
        retry_after: str | None,
    ) -> None:
        headers = {} if retry_after is None else {"Retry-After": retry_after}
        registry.fail("status", status=status, headers=headers, times=2)
        assert await repository.read_blob(blob, 10, 1000) == BLOB[10:1010]
        assert registry.count("GET", "/blobs/") == 3

    async def test_registry_that_is_busy_for_too_long_is_given_up(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        registry.fail("status", status=429, headers={"Retry-After": "61"}, times=2)
        with pytest.raises(RegistryError, match="the registry answers 429; log in for a higher"):
            await repository.read_blob(blob, 10, 1000)
        assert registry.count("GET", "/blobs/") == 1

    async def test_as_long_as_it_asks_for_is_waited(
        self,
        registry: FakeRegistry,
        repository: Repository,
        blob: Descriptor,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        waited: list[float] = []

        async def wait(seconds: float) -> None:
            waited.append(seconds)

        monkeypatch.setattr(retry.retry, "__kwdefaults__", {"sleep": wait, "chance": lambda: 0.5})
        in_a_while = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
        for value, least in (("17", 17), (in_a_while, 28)):
            waited.clear()
            registry.fail("status", status=429, headers={"Retry-After": value})
            await repository.read_blob(blob, 10, 1000)
            assert least <= max(waited) <= least + 2

    async def test_another_range_is_refused(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        registry.fail("headers", headers={"Content-Range": "bytes 0-9/256000"}, times=3)
        with pytest.raises(
            RegistryError, match=r"expected bytes 10-19, the answer's Content-Range is 'bytes 0-9/"
        ):
            await repository.read_blob(blob, 10, 10)

    async def test_a_blob_shorter_than_promised(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        larger = Descriptor(media_type="", digest=blob.digest, size=10**9)
        with pytest.raises(RegistryError, match="answers 416: it is shorter than the image says"):
            await repository.read_blob(larger, 10**8, 10)
        with pytest.raises(RegistryError, match="expected 1000000000 bytes in all, the registry"):
            await repository.read_blob(larger, 0, 10)
        assert registry.count("GET", "/blobs/") == 2

    async def test_missing(self, repository: Repository) -> None:
        missing = Descriptor(media_type="", digest=Digest.of(b"other"), size=10)
        with pytest.raises(NotFoundError, match=f"/team/app@{missing.digest}: .* 404"):
            await repository.read_blob(missing, 0, 5)


class TestManyAtOnce:
    async def test_one_token_for_all_when_theirs_has_expired(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        registry.auth = "token"
        await repository.read_blob(blob, 0, 10)
        for refuse_with in (401, 403):
            registry.refuse_with = refuse_with
            registry.expire_tokens()
            registry.asked.clear()
            parts = await asyncio.gather(
                *(repository.read_blob(blob, at, 10) for at in range(0, 400, 10))
            )
            assert b"".join(parts) == BLOB[:400]
            assert len([one for one in registry.asked if one.path == "/token"]) == 1

    async def test_cancelled_reads_leave_nothing_behind(
        self, registry: FakeRegistry, blob: Descriptor
    ) -> None:
        limits = TransportLimits(reads_per_host=2)
        async with RegistryClient(limits=limits, policy=FAST, environ={}) as client:
            repository = client.repository(Reference(registry.host, "team/app"))
            await repository.read_blob(blob, 0, 10)
            registry.fail("hang", times=2)
            reads = [asyncio.create_task(repository.read_blob(blob, at, 10)) for at in range(6)]
            while registry.faults[-1].times:  # noqa: ASYNC110 - until both hang
                await asyncio.sleep(0)
            for read in reads:
                read.cancel()
            await asyncio.wait(reads)
            assert all(read.cancelled() for read in reads)
            assert await repository.read_blob(blob, 5, 10) == BLOB[5:15]
            counted = client.traffic()[registry.host]
            assert (counted.active, counted.failures) == (0, 0)
            assert client._turns[registry.host]._requests == 0
