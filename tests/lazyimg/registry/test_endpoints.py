"""Mirrors before the registry: order, fail-over, who is left alone, and who sees what."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import trustme

from lazyimg.errors import (
    AccessDeniedError,
    ConfigurationError,
    LazyimgError,
    NotFoundError,
    RegistryError,
)
from lazyimg.registry import blob_reads, endpoints, spool
from lazyimg.registry.client import RegistryClient
from lazyimg.registry.health import Health
from lazyimg.registry.ports import Access
from lazyimg.registry.retry import RetryPolicy
from lazyimg.registry.transport import TransportLimits
from lazyimg.registry.turns import URGENCY
from lazyimg_formats.oci.reference import Reference
from tests.fakes.registry import FakeRegistry, name_mirrors, run_registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from lazyimg.registry.repository import Repository
    from lazyimg_formats.oci.documents import Descriptor

BLOB = bytes(range(256)) * 1000
FAST = RetryPolicy(attempts=3, first_delay=0.001, max_delay=0.01)
REFUSED = "127.0.0.1:1"


@dataclass
class Setup:
    """A registry, its mirror (which has the same blob), and who reads them."""

    directory: Path
    origin: FakeRegistry
    mirror: FakeRegistry
    client: RegistryClient
    blob: Descriptor

    def hurry(self) -> None:
        """Let mirrors have little time, for repositories from now on."""
        self.client._mirror_timeout = 0.2

    def repository(self, *mirrors: str, more: str = "", access: Access | None = None) -> Repository:
        name_mirrors(self.directory, self.origin.host, *(mirrors or [self.mirror.host]), more=more)
        chosen = access or Access(hosts_dir=self.directory)
        return self.client.repository(Reference(self.origin.host, "a/b"), chosen)

    async def read(self, repository: Repository, offset: int = 1000) -> None:
        assert await repository.read_blob(self.blob, offset, 500) == BLOB[offset : offset + 500]


@asynccontextmanager
async def run_setup(directory: Path) -> AsyncIterator[Setup]:
    async with (
        run_registry() as origin,
        run_registry() as mirror,
        RegistryClient(
            policy=FAST, environ={}, mirror_timeout=20.0, spool=(directory / "spool", 1 << 20)
        ) as client,
    ):
        for registry in (origin, mirror):
            blob = registry.add_blob("a/b", BLOB)
            registry.add_image("a/b", "1", {b"z": b"tar"})
        yield Setup(directory, origin, mirror, client, blob)


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    async with run_setup(tmp_path) as made:
        yield made


class TestOrder:
    async def test_mirror_is_asked_and_told_for_whom(self, setup: Setup) -> None:
        repository = setup.repository()
        await setup.read(repository)
        await repository.fetch_manifest("1")
        assert not setup.origin.asked
        assert {one.namespace for one in setup.mirror.asked} == {setup.origin.host}

    async def test_tags_are_asked_of_those_who_may_resolve_them(self, setup: Setup) -> None:
        repository = setup.repository(
            f'[host."http://{setup.mirror.host}"]\ncapabilities = ["pull"]\n'
        )
        descriptor, _ = await repository.fetch_manifest("1")
        assert not setup.mirror.asked
        setup.origin.asked.clear()
        await repository.fetch_manifest(descriptor.digest)
        assert setup.mirror.asked
        assert not setup.origin.asked

    async def test_pushes_go_to_the_registry(self, setup: Setup) -> None:
        repository = setup.repository()
        assert await repository.has_blob(setup.blob.digest)
        await repository.push_manifest(b"{}", "application/vnd.oci.image.manifest.v1+json", "2")
        assert not setup.mirror.asked
        assert {one.namespace for one in setup.origin.asked} == {""}

    async def test_pushes_go_to_a_mirror_that_says_it_takes_them(self, setup: Setup) -> None:
        repository = setup.repository(
            f'[host."http://{setup.mirror.host}"]\ncapabilities = ["push"]\n'
        )
        assert await repository.has_blob(setup.blob.digest)
        assert not setup.origin.asked
        await setup.read(repository)  # which is no reason to read from it
        assert len(setup.mirror.asked) == 1

    async def test_mirror_in_place_of_the_registry(self, setup: Setup) -> None:
        more = f'server = "http://{setup.mirror.host}"'
        repository = setup.repository(f'[host."http://{REFUSED}"]\n', more=more)
        await setup.read(repository)
        setup.mirror.fail("status", status=404)
        with pytest.raises(NotFoundError):
            await setup.read(repository)
        assert not setup.origin.asked

    async def test_path_that_is_the_api_s(self, setup: Setup) -> None:
        place = f"http://{setup.mirror.host}/v2"
        await setup.read(setup.repository(f'[host."{place}"]\noverride_path = true\n'))
        setup.client._repositories.clear()
        setup.client._recent.clear()
        other = f'[host."{place}/cache"]\noverride_path = true\n'
        await setup.read(setup.repository(other))
        digest = setup.blob.digest
        assert [one.path for one in setup.mirror.asked] == [
            f"/v2/a/b/blobs/{digest}",
            f"/v2/cache/a/b/blobs/{digest}",  # which this mirror does not have
        ]

    async def test_certificate_that_is_not_verified(self, setup: Setup) -> None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
        async with run_registry(tls) as private:
            private.add_blob("a/b", BLOB)
            for line, asked in (("", 0), ("skip_verify = false", 0), ("skip_verify = true", 1)):
                table = f'[host."https://{private.host}"]\n{line}\n'
                async with RegistryClient(policy=FAST, environ={}) as client:
                    setup.client = client
                    await setup.read(setup.repository(table))
                assert len(private.asked) == asked

    async def test_headers_of_a_host_are_sent_to_it(self, setup: Setup) -> None:
        await setup.read(
            setup.repository(
                f'[host."http://{setup.mirror.host}"]\n'
                f'[host."http://{setup.mirror.host}".header]\nx-who = ["me", "you"]\n'
            )
        )
        headers = setup.mirror.asked[-1].headers
        assert headers.getall("X-Who") == ["me", "you"]  # type: ignore[attr-defined]


class TestFailures:
    @pytest.mark.parametrize("status", [400, 403, 404, 429, 500, 503])
    async def test_registry_is_asked_when_a_mirror_refuses(self, setup: Setup, status: int) -> None:
        setup.mirror.fail("status", status=status, times=100)
        repository = setup.repository()
        await setup.read(repository)
        assert len(setup.mirror.asked) == 1
        await setup.read(repository, 3)
        assert len(setup.mirror.asked) == 1  # it is left alone for a while

    @pytest.mark.parametrize("kind", ["reset", "hang", "half"])
    async def test_registry_is_asked_when_a_mirror_breaks_off(
        self, setup: Setup, kind: str
    ) -> None:
        setup.mirror.fail(kind, times=100)
        setup.hurry()
        repository = setup.repository()
        await setup.read(repository)
        asked = len(setup.mirror.asked)
        assert asked
        await setup.read(repository, 3)
        assert len(setup.mirror.asked) == asked

    @pytest.mark.parametrize("ignore_range", [False, True])
    async def test_registry_is_asked_when_a_mirror_dribbles(
        self, setup: Setup, monkeypatch: pytest.MonkeyPatch, *, ignore_range: bool
    ) -> None:
        monkeypatch.setattr(blob_reads, "MIN_RATE", 1 << 20)
        setup.mirror.ignore_range = ignore_range
        setup.mirror.fail("dribble", times=100)
        setup.hurry()
        repository = setup.repository()
        await setup.read(repository)
        assert setup.client.cools(setup.mirror.host) > 0
        await setup.read(repository, 3)
        assert len(setup.mirror.asked) == 1

    async def test_mirror_that_sends_a_whole_blob_in_good_time_has_not_failed(
        self, setup: Setup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is asked for may be far behind what has come: then the registry has it sooner."""
        monkeypatch.setattr(blob_reads, "MIN_RATE", 4)
        monkeypatch.setattr(spool, "PIECE", 1)
        setup.mirror.ignore_range = True
        setup.mirror.fail("dribble")
        setup.client._mirror_timeout = 1.0
        repository = setup.repository()
        assert await repository.read_blob(setup.blob, 1000, 1) == BLOB[1000:1001]
        assert setup.origin.asked[-1].range == "bytes=1000-1000"
        assert setup.client.cools(setup.mirror.host) == 0

    async def test_mirror_that_is_not_there(self, setup: Setup) -> None:
        repository = setup.repository(REFUSED, setup.mirror.host)
        await setup.read(repository)
        assert not setup.origin.asked
        assert setup.client.cools(REFUSED) > 0
        assert setup.client.cools(setup.mirror.host) == 0
        counted = setup.client.traffic()
        assert counted[REFUSED].failures == 1
        assert counted[setup.mirror.host].requests == 1
        assert counted[setup.mirror.host].received == 500

    async def test_what_a_mirror_lacks_does_not_count_against_the_rest(self, setup: Setup) -> None:
        other = setup.origin.add_blob("a/b", b"other")
        repository = setup.repository()
        assert await repository.read_blob(other, 1, 2) == b"th"
        await setup.read(repository)
        assert len(setup.mirror.asked) == 2
        assert len([one for one in setup.origin.asked if one.path != "/v2/"]) == 1

    async def test_last_chance_for_a_mirror_when_the_registry_fails(self, setup: Setup) -> None:
        setup.mirror.fail("status", status=503)
        repository = setup.repository()
        await setup.read(repository)
        setup.origin.fail("status", status=503, times=100)
        await setup.read(repository)
        assert setup.client.cools(setup.mirror.host) == 0

    async def test_no_last_chance_when_the_registry_says_no(self, setup: Setup) -> None:
        setup.mirror.fail("status", status=503, times=2)
        repository = setup.repository()
        await setup.read(repository)
        setup.origin.fail("status", status=404)
        with pytest.raises(NotFoundError):
            await setup.read(repository)
        assert len(setup.mirror.asked) == 1

    async def test_all_fail(self, setup: Setup) -> None:
        setup.mirror.fail("status", status=503, times=100)
        setup.origin.fail("status", status=502, times=100)
        with pytest.raises(RegistryError, match="answers 502"):
            await setup.read(setup.repository())
        assert len(setup.mirror.asked) == FAST.attempts

    async def test_wrong_document_is_asked_of_the_registry(self, setup: Setup) -> None:
        setup.mirror.fail("wrong", path="/manifests/", times=100)
        setup.mirror.fail("wrong", path="/blobs/", times=100)
        repository = setup.repository()
        assert await repository.fetch_manifest("1")
        small = setup.mirror.add_blob("a/b", b"small")
        setup.origin.add_blob("a/b", b"small")
        assert [piece async for piece in repository.stream_blob(small)] == [b"small"]

    async def test_stream_goes_on_at_the_next_host(self, setup: Setup) -> None:
        setup.mirror.fail("half", times=100)
        repository = setup.repository()
        pieces = [piece async for piece in repository.stream_blob(setup.blob)]
        assert b"".join(pieces) == BLOB
        assert 0 < setup.origin.sent() < len(BLOB)

    async def test_stream_that_no_host_has(self, setup: Setup) -> None:
        for registry in (setup.mirror, setup.origin):
            registry.fail("status", status=503, times=100)
        with pytest.raises(RegistryError, match="answers 503"):
            _ = [piece async for piece in setup.repository().stream_blob(setup.blob)]
        assert len(setup.mirror.asked) == FAST.attempts

    async def test_wrong_bytes_are_not_asked_for_there_again(self, setup: Setup) -> None:
        repository = setup.repository()
        await setup.read(repository)
        assert repository.distrust(setup.blob, 1000, 500)
        assert not repository.distrust(setup.blob, 1000, 500)
        await setup.read(repository)
        assert len(setup.mirror.asked) == 1
        assert not repository.distrust(setup.blob, 1000, 500)  # these came from the registry


class TestMix:
    @pytest.mark.parametrize("seed", range(3))
    async def test_no_wrong_byte_whatever_fails(self, setup: Setup, seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311 - the same mix each time
        repository = setup.repository()
        setup.client._health = repository._endpoints.health = Health(time.monotonic)
        for registry in (setup.mirror, setup.origin):
            for _ in range(40):
                kind = chance.choice(["status", "reset", "half", "long", "headers"])
                status = chance.choice([401, 403, 404, 416, 429, 500, 503])
                headers = {"Retry-After": "0"} if kind == "status" else {"Content-Range": "x"}
                registry.fail(kind, status=status, headers=headers)
        ended = 0

        async def read(number: int) -> None:
            nonlocal ended
            if number % 3 == 0:
                setup.mirror.ignore_range = not setup.mirror.ignore_range
            if number % 7 == 0:
                setup.client._health._hosts.clear()
                setup.client._health._subjects.clear()
            at = chance.randrange(len(BLOB) - 500)
            try:
                async with asyncio.timeout(10):
                    await setup.read(repository, at)
            except LazyimgError:
                pass
            ended += 1

        for start in range(0, 200, 8):
            await asyncio.gather(*(read(start + number) for number in range(8)))
        assert ended == 200
        for registry in (setup.mirror, setup.origin):
            registry.faults.clear()
            assert setup.client.traffic()[registry.host].active <= 1  # one transfer may go on
        for number in range(10):
            await setup.read(repository, 1000 * number)


class TestTurns:
    async def test_who_waited_at_a_host_that_fails_meanwhile_goes_on(self, setup: Setup) -> None:
        setup.client._transport.limits = TransportLimits(reads_per_host=1)
        setup.mirror.fail("hang", times=100)
        setup.hurry()
        repository = setup.repository()
        await asyncio.gather(*(setup.read(repository, at) for at in range(0, 5000, 500)))
        assert len(setup.mirror.asked) == 1

    async def test_repository_whose_blobs_hang_leaves_turns_to_others(self, setup: Setup) -> None:
        bad = setup.origin.add_blob("bad", BLOB[::-1])
        setup.origin.fail("hang", path="/v2/bad/", times=1000)
        hanging = setup.client.repository(Reference(setup.origin.host, "bad"))
        reads = [asyncio.create_task(hanging.read_blob(bad, at, 10)) for at in range(40)]
        limit = setup.client._transport.limits.reads_per_host
        while setup.origin.count("GET", "/v2/bad/") < limit * 3 // 4:  # noqa: ASYNC110 - all hang
            await asyncio.sleep(0.001)
        await setup.read(setup.repository(access=Access()))
        for read in reads:
            read.cancel()
        await asyncio.wait(reads)
        assert setup.origin.count("GET", "/v2/bad/") == limit * 3 // 4

    async def test_readers_go_first(self, setup: Setup) -> None:
        setup.client._transport.limits = TransportLimits(bytes_per_host=1)
        repository = setup.repository()
        order: list[int] = []

        async def read(priority: int) -> None:
            URGENCY.set(Ticket(priority))
            await setup.read(repository, priority)
            order.append(priority)

        await setup.read(repository)  # the hosts are known now
        await asyncio.gather(*(read(priority) for priority in (3, 2, 1, 0)))
        assert order == [3, 0, 1, 2]


@dataclass
class Ticket:
    priority: int


class TestWholeBlobs:
    """Hosts that ignore ranges."""

    async def test_many_reads_are_one_transfer(self, setup: Setup) -> None:
        setup.mirror.ignore_range = True
        repository = setup.repository()
        await asyncio.gather(*(setup.read(repository, at) for at in range(0, 200_000, 10_000)))
        await setup.read(repository, 77)
        assert not setup.origin.asked
        counted = setup.client.traffic()[setup.mirror.host]
        assert counted.active == 0
        asked = len(setup.mirror.asked)
        await setup.read(repository, 250_000)
        assert len(setup.mirror.asked) == asked
        assert counted.received == len(BLOB)

    async def test_cold_blobs_are_asked_for_once_at_a_host_known_for_it(self, setup: Setup) -> None:
        setup.mirror.ignore_range = True
        repository = setup.repository()
        await setup.read(repository)
        other = setup.mirror.add_blob("a/b", BLOB[::-1])
        setup.mirror.asked.clear()
        parts = await asyncio.gather(
            *(repository.read_blob(other, at, 100) for at in range(0, 100_000, 10_000))
        )
        assert b"".join(parts) == b"".join(
            BLOB[::-1][at : at + 100] for at in range(0, 100_000, 10_000)
        )
        assert len(setup.mirror.asked) == 1

    async def test_other_blobs_of_the_host_are_read_side_by_side(self, setup: Setup) -> None:
        repository = setup.repository(access=Access())
        setup.origin.ignore_range = True
        await setup.read(repository)  # one object whose ranges are ignored
        setup.origin.ignore_range = False
        other = setup.origin.add_blob("a/b", BLOB[::-1])
        await repository.read_blob(other, 0, 10)
        setup.origin.asked.clear()
        setup.origin.fail("barrier", times=3)  # none is answered before all three have come
        parts = [repository.read_blob(other, at, 10) for at in (10, 20, 30)]
        assert b"".join(await asyncio.gather(*parts)) == BLOB[::-1][10:40]
        assert setup.origin.sent() == 30

    async def test_cold_parts_wait_for_the_first_one_only(self, setup: Setup) -> None:
        repository = setup.repository(access=Access())
        setup.origin.ignore_range = True
        await setup.read(repository)
        setup.origin.ignore_range = False
        other = setup.origin.add_blob("a/b", BLOB[::-1])
        await setup.read(repository, 10)
        first = setup.origin.fail("barrier", path=str(other.digest))
        setup.origin.fail("barrier", path=str(other.digest), times=3)
        await asyncio.gather(*(repository.read_blob(other, at, 10) for at in range(4)))
        assert first.go_on.is_set()
        assert setup.origin.sent(str(other.digest)) == 40

    async def test_without_a_spool_nothing_waits(self, setup: Setup) -> None:
        setup.client._spool._capacity = 0
        repository = setup.repository(access=Access())
        setup.origin.ignore_range = True
        await setup.read(repository)
        setup.origin.fail("barrier", times=3)
        await asyncio.gather(*(setup.read(repository, at) for at in (200_000, 10, 1000)))

    async def test_registry_that_understands_ranges_again_is_asked_for_what_is_far_ahead(
        self, setup: Setup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(blob_reads, "AHEAD", 0)
        repository = setup.repository(access=Access())
        pause = setup.origin.fail("pause")
        setup.origin.ignore_range = True
        first = asyncio.create_task(setup.read(repository, 200_000))
        while not setup.client._spool._blobs:  # noqa: ASYNC110 - nobody else is told
            await asyncio.sleep(0)
        setup.origin.ignore_range = False
        later = asyncio.create_task(setup.read(repository, 210_000))
        await asyncio.sleep(0)
        assert setup.origin.count("GET", "/blobs/") == 1
        setup.client._spool._due = dict.fromkeys(setup.client._spool._due, 0.0)
        await setup.read(repository, 220_000)
        assert setup.origin.asked[-1].sent == 500
        assert not later.done()
        pause.go_on.set()
        await asyncio.gather(first, later)
        assert setup.origin.count("GET", "/blobs/") == 2

    async def test_ranges_again_once_the_mirror_is_warm(
        self, setup: Setup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(spool, "IDLE", 0.001)
        setup.mirror.ignore_range = True
        repository = setup.repository()
        await setup.read(repository)
        while setup.client._spool._used:  # noqa: ASYNC110 - nobody else is told
            await asyncio.sleep(0.001)
        setup.mirror.ignore_range = False
        await setup.read(repository)
        assert setup.mirror.asked[-1].sent == 500

    async def test_far_ahead_another_host_is_asked(
        self, setup: Setup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(blob_reads, "AHEAD", 0)
        setup.mirror.ignore_range = True
        await setup.read(setup.repository(), 200_000)
        assert setup.origin.asked[-1].range == "bytes=200000-200499"
        assert setup.client.cools(setup.mirror.host) == 0

    async def test_breaking_off_goes_to_the_next_host(self, setup: Setup) -> None:
        setup.mirror.ignore_range = True
        setup.mirror.fail("half", times=100)
        repository = setup.repository()
        await asyncio.gather(*(setup.read(repository, at) for at in (200_000, 210_000)))
        assert setup.origin.asked
        assert setup.client.cools(setup.mirror.host) > 0

    async def test_no_room_in_the_spool(self, setup: Setup) -> None:
        setup.client._spool._capacity = 0
        setup.mirror.ignore_range = True
        repository = setup.repository()
        await asyncio.gather(*(setup.read(repository, at) for at in (200_000, 10)))
        assert len(setup.mirror.asked) == 2

    async def test_wrong_bytes_leave_the_spool(self, setup: Setup) -> None:
        setup.mirror.ignore_range = True
        repository = setup.repository()
        await setup.read(repository)
        assert repository.distrust(setup.blob, 1000, 500)
        await setup.read(repository)
        assert setup.origin.asked[-1].range

    async def test_reader_that_is_cancelled_leaves_the_transfer_to_the_others(
        self, setup: Setup
    ) -> None:
        setup.mirror.ignore_range = True
        repository = setup.repository()
        tasks = [asyncio.create_task(setup.read(repository, at)) for at in (10, 20, 30)]
        while not setup.client._spool._blobs:  # noqa: ASYNC110 - nobody else is told
            await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.gather(*tasks[1:])


class TestCredentials:
    async def test_what_is_for_the_registry_is_not_shown_to_a_mirror(self, setup: Setup) -> None:
        for registry in (setup.mirror, setup.origin):
            registry.auth = "basic"
            registry.users = {"me": "secret"}
        access = Access(hosts_dir=setup.directory, username="me", password="secret")
        await setup.read(setup.repository(access=access))
        assert [one.authorized for one in setup.mirror.asked] == [False]
        assert setup.origin.asked[-1].authorized

    async def test_mirror_s_own_credentials(self, setup: Setup, tmp_path: Path) -> None:
        setup.mirror.auth = "basic"
        setup.mirror.users = {"me": "secret"}
        authfile = tmp_path / "auth.json"
        authfile.write_text(f'{{"auths": {{"{setup.mirror.host}": {{"auth": "bWU6c2VjcmV0"}}}}}}')
        access = Access(hosts_dir=setup.directory, authfile=authfile)
        await setup.read(setup.repository(access=access))
        assert not setup.origin.asked

    async def test_mirror_for_everybody_proves_access_and_says_so(self, setup: Setup) -> None:
        setup.origin.auth = "basic"
        repository = setup.repository()
        assert await repository.prove_blob(setup.blob) == setup.mirror.host
        assert await repository.hosts() == {setup.mirror.host, setup.origin.host}
        assert not setup.origin.asked

    async def test_mirror_that_refuses_leaves_the_proof_to_the_registry(self, setup: Setup) -> None:
        setup.mirror.auth = setup.origin.auth = "basic"
        setup.origin.users = {"me": "secret"}
        with pytest.raises(AccessDeniedError):
            await setup.repository().prove_blob(setup.blob)
        access = Access(hosts_dir=setup.directory, username="me", password="secret")
        allowed = setup.repository(access=access)
        assert await allowed.prove_blob(setup.blob) == setup.origin.host

    async def test_refusals_name_the_registry(self, setup: Setup) -> None:
        setup.mirror.fail("reset", times=100)
        setup.origin.auth = "basic"
        with pytest.raises(AccessDeniedError, match="wants a user name and password"):
            await setup.read(setup.repository())


class TestFiles:
    async def test_are_read_again(self, setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(endpoints, "REFRESH", 0.0)
        repository = setup.repository(REFUSED)
        await setup.read(repository)
        assert not setup.mirror.asked
        repository = setup.repository(setup.mirror.host)
        await setup.read(repository)
        assert setup.mirror.asked

    async def test_hosts_stay_when_their_file_is_broken(
        self, setup: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(endpoints, "REFRESH", 0.0)
        await setup.read(setup.repository())
        await setup.read(setup.repository(more="server = 1"))
        assert len(setup.mirror.asked) == 2
        assert "its hosts stay as they were: " in caplog.text

    async def test_broken_from_the_start(self, setup: Setup) -> None:
        with pytest.raises(ConfigurationError, match="'server': expected a text"):
            await setup.read(setup.repository(more="server = 1"))
