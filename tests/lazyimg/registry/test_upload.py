"""Uploads over real HTTP: in one piece, in chunks, taken over; broken, lost and refused."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from yarl import URL

from lazyimg.errors import CorruptError, NotFoundError, RegistryError
from lazyimg.registry.auth import pull_scope, push_scope
from lazyimg.registry.connection import Connection
from lazyimg.registry.hosts import own_endpoint
from lazyimg.registry.ports import Access
from lazyimg.registry.retry import RetryPolicy
from lazyimg.registry.transport import Transport, TransportLimits
from lazyimg.registry.upload import Uploader
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.reference import Reference
from tests.fakes.registry import FakeRegistry, run_registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CHUNK = 1000
DATA = bytes(range(250)) * 10  # two chunks and a half
DIGEST = Digest.of(DATA)
FAST = RetryPolicy(attempts=3, first_delay=0.001, max_delay=0.01)


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with run_registry() as running:
        running.auth = "token"
        yield running


@pytest.fixture
async def uploader(registry: FakeRegistry) -> AsyncIterator[Uploader]:
    transport = Transport(TransportLimits())

    async def nobody() -> None:
        return None

    reference = Reference(registry.host, "a/b")
    connection = Connection(reference, own_endpoint(reference, Access()), transport, nobody, FAST)
    yield Uploader(connection, (push_scope("a/b"), pull_scope("c/d")), CHUNK)
    await transport.close()


async def cut(data: bytes, size: int = 333) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def methods(registry: FakeRegistry) -> str:
    return " ".join(
        one.method for one in registry.asked if "/blobs/" in one.path and one.status < 400
    )


async def push(uploader: Uploader, data: bytes = DATA) -> int:
    return await uploader.push(cut(data), lambda: Digest.of(data))


@pytest.mark.parametrize("size", [0, 1, 999, 1000])
async def test_what_fits_into_a_chunk_goes_in_one_piece(
    registry: FakeRegistry, uploader: Uploader, size: int
) -> None:
    assert await push(uploader, DATA[:size]) == size
    assert registry.blobs["a/b"] == {str(Digest.of(DATA[:size])): DATA[:size]}
    assert methods(registry) == "POST PUT"


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1001, "POST PATCH PATCH PUT"),
        (2000, "POST PATCH PATCH PUT"),
        (2001, "POST" + " PATCH" * 3 + " PUT"),
    ],
)
async def test_more_goes_in_chunks(
    registry: FakeRegistry, uploader: Uploader, size: int, expected: str
) -> None:
    assert await push(uploader, DATA[:size]) == size
    assert registry.blobs["a/b"] == {str(Digest.of(DATA[:size])): DATA[:size]}
    assert methods(registry) == expected


async def test_one_large_piece_is_cut(registry: FakeRegistry, uploader: Uploader) -> None:
    assert await uploader.push(cut(DATA, 10**6), lambda: DIGEST) == 2500
    assert methods(registry) == "POST PATCH PATCH PATCH PUT"


async def test_registry_that_wants_larger_chunks(
    registry: FakeRegistry, uploader: Uploader
) -> None:
    registry.min_chunk = 2200
    await push(uploader)
    assert registry.blobs["a/b"][str(DIGEST)] == DATA
    assert methods(registry) == "POST PATCH PATCH PUT"


@pytest.mark.parametrize("least", ["67108865", "much", "9" * 30])
async def test_registry_that_wants_too_much(
    registry: FakeRegistry, uploader: Uploader, least: str
) -> None:
    registry.fail("headers", method="POST", headers={"OCI-Chunk-Min-Length": least}, times=9)
    with pytest.raises(RegistryError, match=f"asks for chunks of at least {least} bytes"):
        await push(uploader)


@pytest.mark.parametrize("kind", ["status", "reset", "lost"])
async def test_chunk_that_broke_off_goes_on_where_the_registry_is(
    registry: FakeRegistry, uploader: Uploader, kind: str
) -> None:
    registry.fail(kind, method="PATCH", times=2)
    assert await push(uploader) == 2500
    assert registry.blobs["a/b"][str(DIGEST)] == DATA


@pytest.mark.parametrize("size", [100, 2500])
@pytest.mark.parametrize("kind", ["status", "reset", "lost"])
async def test_end_that_broke_off(
    registry: FakeRegistry, uploader: Uploader, kind: str, size: int
) -> None:
    registry.fail(kind, method="PUT", times=2)
    assert await push(uploader, DATA[:size]) == size
    assert registry.blobs["a/b"][str(Digest.of(DATA[:size]))] == DATA[:size]


async def test_gives_up(registry: FakeRegistry, uploader: Uploader) -> None:
    registry.fail("status", method="PATCH", status=503, times=9)
    with pytest.raises(RegistryError, match="a/b: the registry answers 503"):
        await push(uploader)
    assert registry.uploads == {}


async def test_upload_that_the_registry_lost(registry: FakeRegistry, uploader: Uploader) -> None:
    async def losing() -> AsyncIterator[bytes]:
        yield DATA[:1500]
        registry.uploads.clear()
        yield DATA[1500:]

    with pytest.raises(NotFoundError, match="404"):
        await uploader.push(losing(), lambda: DIGEST)


async def test_upload_that_the_registry_lost_at_its_end(
    registry: FakeRegistry, uploader: Uploader
) -> None:
    registry.fail("status", method="PUT", status=404)
    with pytest.raises(NotFoundError, match=f"a/b@{DIGEST}: the registry answers 404"):
        await push(uploader)
    assert registry.uploads == {}


@pytest.mark.parametrize("size", [100, 2500])
async def test_wrong_digest(registry: FakeRegistry, uploader: Uploader, size: int) -> None:
    with pytest.raises(CorruptError, match="DIGEST_INVALID provided digest did not match"):
        await uploader.push(cut(DATA[:size]), lambda: Digest.of(b"other"))
    assert registry.blobs == {}
    assert registry.uploads == {}


async def test_source_that_fails_leaves_nothing(registry: FakeRegistry, uploader: Uploader) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield DATA
        raise CorruptError("source", "broken")

    with pytest.raises(CorruptError, match="source: broken"):
        await uploader.push(failing(), lambda: DIGEST)
    assert registry.uploads == {}
    assert registry.count("DELETE") == 1


async def test_cancelling_leaves_nothing(registry: FakeRegistry, uploader: Uploader) -> None:
    began = asyncio.Event()

    async def waiting() -> AsyncIterator[bytes]:
        yield DATA
        began.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(uploader.push(waiting(), lambda: DIGEST))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert registry.uploads == {}


async def test_upload_that_cannot_be_ended(
    registry: FakeRegistry, uploader: Uploader, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "lazyimg.registry.upload")
    registry.fail("status", method="DELETE", status=500)
    with pytest.raises(CorruptError, match="DIGEST_INVALID"):
        await uploader.push(cut(DATA), lambda: Digest.of(b"other"))
    assert "an upload to " in caplog.text
    assert "stays behind" in caplog.text


@pytest.mark.parametrize("received", ["0-99", "0-5000"])
async def test_registry_that_counts_otherwise(
    registry: FakeRegistry, uploader: Uploader, received: str
) -> None:
    registry.fail("headers", method="PATCH", headers={"Range": received})
    with pytest.raises(RegistryError, match=r"has \d+ bytes of an upload, sent were 1000"):
        await push(uploader)


async def test_registry_that_has_more_than_was_sent(
    registry: FakeRegistry, uploader: Uploader
) -> None:
    registry.fail("status", method="PATCH")
    registry.fail("headers", path="/uploads/", headers={"Range": "0-5000"})
    with pytest.raises(RegistryError, match="lost an upload: it has 5001 bytes, sent were 0"):
        await push(uploader)


@pytest.mark.parametrize("location", ["", "ftp://x/", "http://[oops/"])
async def test_registry_that_does_not_say_where(
    registry: FakeRegistry, uploader: Uploader, location: str
) -> None:
    registry.fail("headers", method="POST", headers={"Location": location}, times=9)
    with pytest.raises(RegistryError, match="does not say where an upload goes on"):
        await push(uploader)


async def test_absolute_location(registry: FakeRegistry, uploader: Uploader) -> None:
    url = URL(f"http://{registry.host}/v2/a/b/blobs/uploads/own?state=a%2Fb", encoded=True)
    registry.uploads["own"] = bytearray()
    registry.fail("headers", method="POST", headers={"Location": str(url)})
    await push(uploader)
    assert registry.blobs["a/b"][str(DIGEST)] == DATA


async def test_progress_without_location_keeps_the_old_one(
    registry: FakeRegistry, uploader: Uploader
) -> None:
    registry.fail("status", method="PATCH")
    registry.fail("headers", path="/uploads/", headers={"Location": ""})
    await push(uploader)
    assert registry.blobs["a/b"][str(DIGEST)] == DATA


async def test_mount(registry: FakeRegistry, uploader: Uploader) -> None:
    registry.add_blob("c/d", DATA)
    assert await uploader.mount(DIGEST, "c/d")
    assert registry.blobs["a/b"][str(DIGEST)] == DATA
    assert registry.sent() < 500


async def test_mount_that_the_registry_does_not_do(
    registry: FakeRegistry, uploader: Uploader
) -> None:
    registry.mount = False
    registry.add_blob("c/d", DATA)
    assert not await uploader.mount(DIGEST, "c/d")
    assert registry.uploads == {}
