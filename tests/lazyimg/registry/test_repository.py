"""One repository over real HTTP: manifests, ranges, streams, pushes, and everything that fails."""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import (
    AccessDeniedError,
    CorruptError,
    NotFoundError,
    RegistryError,
)
from lazyimg.registry.client import RegistryClient
from lazyimg.registry.oci_layout import create_layout
from lazyimg.registry.ports import Access, ImageSource, ImageTarget
from lazyimg.registry.retry import RetryPolicy
from lazyimg.registry.transport import TransportLimits
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import OCI_INDEX, OCI_MANIFEST, Descriptor, Index
from lazyimg_formats.oci.reference import Reference
from tests.fakes.registry import FakeRegistry, run_registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from lazyimg.registry.repository import Repository

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


async def read_all(repository: Repository, blob: Descriptor) -> bytes:
    return b"".join([piece async for piece in repository.stream_blob(blob)])


def test_it_is_a_source_and_a_target(repository: Repository) -> None:
    assert isinstance(repository, ImageSource)
    assert isinstance(repository, ImageTarget)
    assert repository.name.endswith("/team/app")


class TestManifests:
    async def test_by_tag_and_by_digest(
        self, registry: FakeRegistry, repository: Repository
    ) -> None:
        made = registry.add_image("team/app", "1", {b"z": b"tar"})
        descriptor, data = await repository.fetch_manifest("1")
        assert descriptor == made
        assert Digest.of(data) == made.digest
        assert await repository.fetch_manifest(made.digest) == (descriptor, data)

    async def test_media_type_that_only_the_document_knows(
        self, registry: FakeRegistry, repository: Repository
    ) -> None:
        registry.add_manifest("team/app", "1", Index(manifests=()))
        registry.fail("headers", path="/manifests/", headers={"Content-Type": "text/plain"})
        descriptor, _ = await repository.fetch_manifest("1")
        assert descriptor.media_type == OCI_INDEX

    async def test_media_type_that_nobody_says(
        self, registry: FakeRegistry, repository: Repository
    ) -> None:
        registry.add_manifest("team/app", "1", Index(manifests=(), media_type=""))
        kept = registry.manifests["team/app"]
        kept["1"] = (OCI_MANIFEST, kept["1"][1])
        registry.fail("headers", path="/manifests/", headers={"Content-Type": "text/plain"})
        descriptor, _ = await repository.fetch_manifest("1")
        assert descriptor.media_type == OCI_INDEX

    async def test_missing(self, registry: FakeRegistry, repository: Repository) -> None:
        with pytest.raises(NotFoundError) as caught:
            await repository.fetch_manifest("nope")
        assert str(caught.value) == (
            f"{registry.host}/team/app:nope: the registry answers 404 (MANIFEST_UNKNOWN)"
        )

    async def test_wrong_bytes(self, registry: FakeRegistry, repository: Repository) -> None:
        made = registry.add_image("team/app", "1", {b"z": b"tar"})
        for reference in ("1", made.digest):
            registry.fail("wrong", path="/manifests/")
            with pytest.raises(CorruptError, match=f"expected digest {made.digest}, got sha256:"):
                await repository.fetch_manifest(reference)

    async def test_bytes_that_are_no_document(
        self, registry: FakeRegistry, repository: Repository
    ) -> None:
        registry.manifests["team/app"] = {"1": (OCI_MANIFEST, b"[]")}
        with pytest.raises(CorruptError, match="team/app:1: manifest: expected an object"):
            await repository.fetch_manifest("1")

    async def test_digest_that_is_none(
        self, registry: FakeRegistry, repository: Repository
    ) -> None:
        registry.add_image("team/app", "1", {b"z": b"tar"})
        registry.fail("headers", path="/manifests/", headers={"Docker-Content-Digest": "md5:x"})
        with pytest.raises(RegistryError, match="names an impossible digest: digest: unknown"):
            await repository.fetch_manifest("1")

    async def test_over_the_limit(self, registry: FakeRegistry, repository: Repository) -> None:
        registry.manifests["team/app"] = {"1": (OCI_MANIFEST, bytes((4 << 20) + 1))}
        with pytest.raises(
            RegistryError, match=r"/team/app/manifests/1: answers with over 4194304"
        ):
            await repository.fetch_manifest("1")

    async def test_half_a_body_is_tried_again(
        self, registry: FakeRegistry, repository: Repository
    ) -> None:
        made = registry.add_image("team/app", "1", {b"z": b"tar"})
        registry.fail("half", path="/manifests/")
        assert (await repository.fetch_manifest("1"))[0] == made


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


class TestStreams:
    async def test_whole(self, registry: FakeRegistry, repository: Repository) -> None:
        large = BLOB * 12  # several pieces
        blob = registry.add_blob("team/app", large)
        pieces = [piece async for piece in repository.stream_blob(blob)]
        assert b"".join(pieces) == large
        assert len(pieces) > 1
        assert registry.asked[-1].range == ""

    async def test_empty(self, registry: FakeRegistry, repository: Repository) -> None:
        blob = registry.add_blob("team/app", b"")
        assert await read_all(repository, blob) == b""
        assert registry.count("GET", "/blobs/") == 1

    @pytest.mark.parametrize("ignore_range", [False, True])
    async def test_goes_on_after_a_broken_connection(
        self, registry: FakeRegistry, repository: Repository, *, ignore_range: bool
    ) -> None:
        registry.ignore_range = ignore_range
        large = BLOB * 20
        blob = registry.add_blob("team/app", large)
        registry.fail("half")
        assert await read_all(repository, blob) == large
        resumed = registry.asked[-1].range
        assert re.fullmatch(r"bytes=[1-9]\d+-5119999", resumed)

    async def test_every_try_gets_further(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        registry.fail("half", times=6)
        assert await read_all(repository, blob) == BLOB
        starts = [int(one.range[6:].partition("-")[0]) for one in registry.asked[1:]]
        assert starts == sorted(set(starts))
        assert len(starts) == 6

    async def test_gives_up_without_progress(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        registry.fail("status", status=503, times=9)
        with pytest.raises(RegistryError, match="the registry answers 503"):
            await read_all(repository, blob)
        assert registry.count("GET", "/blobs/") == 3

    async def test_wrong_bytes(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        registry.fail("wrong")
        with pytest.raises(CorruptError, match=f"@{blob.digest}: its bytes have digest sha256:"):
            await read_all(repository, blob)

    async def test_can_be_left_early(self, repository: Repository, blob: Descriptor) -> None:
        async with aclosing(repository.stream_blob(blob)) as pieces:
            async for piece in pieces:
                assert BLOB.startswith(piece)
                break


class TestRedirects:
    @pytest.fixture(autouse=True)
    def redirect(self, registry: FakeRegistry) -> None:
        registry.redirect = True
        registry.auth = "token"

    async def test_credential_stays_and_url_is_used_again(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        for offset in range(5):
            assert await repository.read_blob(blob, offset, 10) == BLOB[offset : offset + 10]
        assert registry.count("GET", "/signed/") == 5
        assert registry.count("GET", "/v2/team/app/blobs/") == 2  # refused, then redirected

    async def test_refused_url_is_asked_for_again(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        await repository.read_blob(blob, 0, 10)
        registry.fail("status", path="/signed/", status=403)
        assert await repository.read_blob(blob, 5, 10) == BLOB[5:15]
        assert registry.count("GET", "/v2/team/app/blobs/") == 3

    async def test_url_whose_host_fails_is_dropped(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        await repository.read_blob(blob, 0, 10)
        registry.fail("reset", path="/signed/", times=2)
        assert await repository.read_blob(blob, 5, 10) == BLOB[5:15]

    async def test_expired_from_the_start(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        registry.signed_lifetime = 0
        with pytest.raises(RegistryError) as caught:
            await repository.read_blob(blob, 0, 10)
        assert f"http://{registry.storage}/signed/team/app/{blob.digest} answers 403" in str(
            caught.value
        )
        assert "ret" not in str(caught.value).replace("registry", "")
        assert caught.value.status == 403

    async def test_existence_needs_no_signed_url(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        assert await repository.has_blob(blob.digest)
        assert registry.count("HEAD", "/signed/") == 0

    async def test_whole_stream(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        registry.fail("half", path="/signed/")
        assert await read_all(repository, blob) == BLOB


class TestPush:
    async def test_manifest_by_tag_and_without(
        self, registry: FakeRegistry, repository: Repository
    ) -> None:
        data = b'{"schemaVersion":2,"manifests":[]}'
        descriptor = await repository.push_manifest(data, OCI_INDEX, "new")
        assert descriptor == Descriptor(
            media_type=OCI_INDEX, digest=Digest.of(data), size=len(data)
        )
        assert registry.manifests["team/app"]["new"] == (OCI_INDEX, data)
        for tag in (None, ""):
            await repository.push_manifest(data + b" ", OCI_INDEX, tag)
        assert set(registry.manifests["team/app"]) == {
            "new",
            str(Digest.of(data)),
            str(Digest.of(data + b" ")),
        }

    async def test_manifest_that_the_registry_changes(
        self, registry: FakeRegistry, repository: Repository
    ) -> None:
        wrong = str(Digest.of(b"changed"))
        registry.fail("headers", method="PUT", path="", headers={"Docker-Content-Digest": wrong})
        with pytest.raises(CorruptError, match=f"expected digest {wrong}, got sha256:"):
            await repository.push_manifest(b"{}", OCI_MANIFEST, "new")

    async def test_blob_is_there_afterwards(self, repository: Repository) -> None:
        digest = Digest.of(b"data")
        assert not await repository.has_blob(digest)

        async def chunks() -> AsyncIterator[bytes]:
            yield b"da"
            yield b"ta"

        assert await repository.push_blob(chunks(), lambda: digest) == 4
        assert await repository.has_blob(digest)

    async def test_mount_from_another_repository(
        self, registry: FakeRegistry, client: RegistryClient, repository: Repository
    ) -> None:
        registry.auth = "token"
        blob = registry.add_blob("other/place", BLOB)
        other = client.repository(Reference(registry.host, "other/place"))
        assert await repository.mount_blob_from(other, blob)
        assert await repository.read_blob(blob, 0, 5) == BLOB[:5]

    async def test_mount_from_what_is_out_of_reach(
        self, registry: FakeRegistry, client: RegistryClient, repository: Repository
    ) -> None:
        blob = registry.add_blob("other/place", BLOB)
        other = client.repository(Reference(registry.host, "other/place"))
        for status in (403, 404):
            registry.fail("status", method="POST", status=status)
            assert not await repository.mount_blob_from(other, blob)
        registry.fail("status", method="POST", status=400)
        with pytest.raises(RegistryError, match="answers 400"):
            await repository.mount_blob_from(other, blob)

    async def test_mount_from_another_kind_of_source(
        self, repository: Repository, blob: Descriptor, tmp_path: Path
    ) -> None:
        assert not await repository.mount_blob_from(await create_layout(tmp_path / "x"), blob)

    async def test_manifest_without_a_digest_in_the_answer(
        self, registry: FakeRegistry, repository: Repository
    ) -> None:
        headers = {"Docker-Content-Digest": ""}
        registry.fail("headers", method="PUT", path="", headers=headers)
        descriptor = await repository.push_manifest(b"{}", OCI_MANIFEST, "new")
        assert descriptor.digest == Digest.of(b"{}")

    async def test_mount_where_there_is_nothing_to_move(
        self, client: RegistryClient, repository: Repository, blob: Descriptor
    ) -> None:
        assert await repository.mount_blob_from(repository, blob)
        elsewhere = client.repository(Reference("127.0.0.1:1", "team/app"))
        assert not await repository.mount_blob_from(elsewhere, blob)


class TestAuthorization:
    async def test_basic(self, registry: FakeRegistry, client: RegistryClient) -> None:
        registry.auth, registry.users = "basic", {"me": "secret"}
        blob = registry.add_blob("team/app", BLOB)
        reference = Reference(registry.host, "team/app")
        good = client.repository(reference, Access(username="me", password="secret"))
        assert await good.read_blob(blob, 0, 5) == BLOB[:5]
        for access in (Access(), Access(username="me", password="guess")):
            bad = client.repository(reference, access)
            with pytest.raises(AccessDeniedError) as caught:
                await bad.read_blob(blob, 0, 5)
            assert "guess" not in str(caught.value)

    async def test_refused_credential(self, registry: FakeRegistry, client: RegistryClient) -> None:
        registry.auth, registry.users = "basic", {"me": "secret"}
        reference = Reference(registry.host, "team/app")
        repository = client.repository(reference, Access(username="me", password="guess"))
        with pytest.raises(AccessDeniedError) as caught:
            await repository.fetch_manifest("1")
        assert str(caught.value) == (
            f"{registry.host}/team/app:1: the registry answers 401 (UNAUTHORIZED); log in with"
            f" 'lazyimg login {registry.host}' or give --authfile, and check that the repository"
            " exists"
        )

    @pytest.mark.parametrize("status", [401, 403])
    async def test_token_that_was_revoked_is_renewed(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor, status: int
    ) -> None:
        registry.auth = "token"
        await repository.read_blob(blob, 0, 5)
        registry.expire_tokens()
        registry.refuse_with = status
        assert await repository.read_blob(blob, 5, 5) == BLOB[5:10]
        assert registry.count("GET", "/token") == 2

    async def test_push_asks_for_more_than_pull(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        registry.auth = "token"
        await repository.read_blob(blob, 0, 5)
        await repository.push_manifest(b"{}", OCI_MANIFEST, "1")
        await repository.push_manifest(b"{}", OCI_MANIFEST, "2")
        assert registry.count("GET", "/token") == 2


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
        limits = TransportLimits(connections_per_host=2)
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


class TestProofs:
    async def test_blob_that_may_be_read(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        await repository.prove_blob(blob)
        assert [one.method for one in registry.asked if "/blobs/" in one.path] == ["HEAD"]

    async def test_redirect_is_proof_enough(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        registry.redirect = True
        await repository.prove_blob(blob)
        assert not [one for one in registry.asked if one.path.startswith("/signed/")]

    @pytest.mark.parametrize("status", [400, 403, 405])
    async def test_registry_that_does_not_like_to_be_asked_by_head(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor, status: int
    ) -> None:
        registry.fail("status", method="HEAD", status=status, times=10)
        await repository.prove_blob(blob)
        assert registry.asked[-1].range == "bytes=0-0"
        assert registry.sent() == 1

    async def test_registry_that_fails(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        registry.fail("status", method="HEAD", status=503, times=10)
        with pytest.raises(RegistryError, match="answers 503"):
            await repository.prove_blob(blob)

    async def test_refusals(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        registry.blobs["team/app"].clear()
        with pytest.raises(AccessDeniedError, match="this repository does not have the layer"):
            await repository.prove_blob(blob)
        registry.auth = "basic"
        with pytest.raises(AccessDeniedError, match="wants a user name and password"):
            await repository.prove_blob(blob)

    async def test_user(self, registry: FakeRegistry, client: RegistryClient) -> None:
        reference = Reference(registry.host, "team/app")
        assert await client.repository(reference).user() == ""
        named = client.repository(reference, Access(username="me", password="secret"))
        assert await named.user() == "me"
