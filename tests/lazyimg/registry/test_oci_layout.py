"""Image layouts on disk: written all or nothing, read with every digest checked."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import shutil
import threading
from typing import TYPE_CHECKING

import msgspec
import pytest

from lazyimg.errors import CorruptError, LazyimgError, NotFoundError, StorageError
from lazyimg.registry.oci_layout import OciLayout, create_layout, open_layout, write_file
from lazyimg.registry.ports import ImageSource, ImageTarget
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import OCI_INDEX, Descriptor, Index, describe, serialize_document

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

DATA = bytes(range(256)) * 10
DIGEST = Digest.of(DATA)


def index_named(name: str) -> bytes:
    """Give an index that differs from others by an annotation."""
    return serialize_document(Index(manifests=(), annotations={"name": name}))


async def cut(data: bytes, size: int = 999) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def listing(path: Path) -> set[str]:
    return {str(one.relative_to(path)) for one in path.rglob("*") if one.is_file()}


@pytest.fixture
async def layout(tmp_path: Path) -> OciLayout:
    return await create_layout(tmp_path / "deep/layout")


@pytest.fixture
def path(layout: OciLayout, tmp_path: Path) -> Path:
    return tmp_path / "deep/layout"


class TestPlace:
    async def test_new(self, layout: OciLayout, path: Path) -> None:
        assert isinstance(layout, ImageSource)
        assert isinstance(layout, ImageTarget)
        assert layout.name == f"oci:{path}"
        assert (path / "oci-layout").read_bytes() == b'{"imageLayoutVersion":"1.0.0"}'
        index = msgspec.json.decode((path / "index.json").read_bytes())
        assert index == {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
        assert (path / "index.json").stat().st_mode & 0o777 == 0o644

    async def test_opened_again(self, layout: OciLayout, path: Path) -> None:
        await layout.push_manifest(index_named("a"), OCI_INDEX, "a")
        await create_layout(path)
        descriptor, _ = await (await open_layout(path)).fetch_manifest("a")
        assert descriptor.digest == Digest.of(index_named("a"))

    async def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError) as caught:
            await open_layout(tmp_path / "x")
        assert str(caught.value) == f"oci:{tmp_path}/x: is no OCI image layout: does not exist"

    async def test_something_else_there(self, tmp_path: Path) -> None:
        (tmp_path / "precious").touch()
        with pytest.raises(NotFoundError, match="is no OCI image layout: has no oci-layout file"):
            await open_layout(tmp_path)
        with pytest.raises(StorageError) as caught:
            await create_layout(tmp_path)
        assert str(caught.value) == (
            f"oci:{tmp_path}: is a directory with something else in it; name an empty or a new one"
        )
        assert listing(tmp_path) == {"precious"}

    async def test_made_by_many_at_once(self, tmp_path: Path) -> None:
        """None of them puts an empty index over that of another."""

        async def put(path: Path, name: str) -> None:
            layout = await create_layout(path)
            await layout.push_manifest(index_named(name), OCI_INDEX, name)

        for turn in range(10):
            path = tmp_path / str(turn) / "layout"
            names = [str(number) for number in range(8)]
            await asyncio.gather(*(put(path, name) for name in names))
            layout = await open_layout(path)
            for name in names:
                assert (await layout.fetch_manifest(name))[1] == index_named(name)

    async def test_a_file_there(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(NotFoundError, match="cannot be read: Not a directory"):
            await open_layout(tmp_path / "file")
        with pytest.raises(StorageError, match="cannot be written: File exists"):
            await create_layout(tmp_path / "file")

    @pytest.mark.parametrize(
        ("marker", "problem"),
        [
            (b"", "its oci-layout file is no JSON object"),
            (b"[" * 4000, "its oci-layout file is no JSON object"),
            (b"{}", "expected layout version 1.0.0, got 'None'"),
            (b'{"imageLayoutVersion":"2.0"}', "expected layout version 1.0.0, got '2.0'"),
        ],
    )
    async def test_another_version(self, path: Path, marker: bytes, problem: str) -> None:
        (path / "oci-layout").write_bytes(marker)
        with pytest.raises(CorruptError, match=problem):
            await open_layout(path)


class TestTakenBack:
    async def test_with_what_it_brought(self, layout: OciLayout, tmp_path: Path) -> None:
        await layout.push_blob(cut(DATA), lambda: DIGEST)
        await layout.push_manifest(index_named("a"), OCI_INDEX)
        await layout.take_back()
        assert listing(tmp_path) == set()

    async def test_an_empty_directory_that_was_there(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        await (await create_layout(tmp_path / "a")).take_back()
        await (await create_layout(tmp_path / "a/b/c")).take_back()
        assert list(tmp_path.rglob("*")) == [tmp_path / "a"]

    async def test_not_with_an_image(self, layout: OciLayout, tmp_path: Path) -> None:
        await layout.push_manifest(index_named("a"), OCI_INDEX, "a")
        before = listing(tmp_path)
        await layout.take_back()
        assert listing(tmp_path) == before

    async def test_not_what_was_there_before(
        self, layout: OciLayout, path: Path, tmp_path: Path
    ) -> None:
        before = listing(tmp_path)
        await (await create_layout(path)).take_back()
        await (await open_layout(path)).take_back()
        assert listing(tmp_path) == before
        await (await create_layout(path)).push_blob(cut(DATA), lambda: DIGEST)
        await layout.take_back()
        assert listing(tmp_path) > before

    async def test_something_beside_it(self, layout: OciLayout, path: Path) -> None:
        (path.parent / "other").touch()
        await layout.take_back()
        assert listing(path.parent) == {"other"}

    async def test_not_while_somebody_else_writes_into_it(
        self, layout: OciLayout, path: Path
    ) -> None:
        """What both have brought is there only once."""
        other = await create_layout(path)
        await layout.push_blob(cut(DATA), lambda: DIGEST)
        assert await other.has_blob(DIGEST)
        await layout.take_back()
        await other.push_manifest(index_named("a"), OCI_INDEX, "a")
        assert await other.has_blob(DIGEST)
        del other
        await layout.take_back()  # nobody but an image is there
        assert (await layout.fetch_manifest("a"))[1] == index_named("a")

    async def test_and_made_by_another_meanwhile(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Both have found that nothing is there; the directory that one of them sees goes away."""
        first = await create_layout(tmp_path / "a/b")
        waiting = threading.Event()
        flock = fcntl.flock

        def watched(descriptor: int, operation: int) -> None:
            waiting.set()
            flock(descriptor, operation)

        descriptor = os.open(tmp_path / "a/b", os.O_RDONLY)
        flock(descriptor, fcntl.LOCK_EX)
        monkeypatch.setattr(fcntl, "flock", watched)
        making = asyncio.create_task(create_layout(tmp_path / "a/b"))
        await asyncio.to_thread(waiting.wait)
        monkeypatch.undo()
        shutil.rmtree(tmp_path / "a")
        os.close(descriptor)
        second = await making
        assert await second.push_manifest(index_named("a"), OCI_INDEX, "a")
        assert listing(tmp_path) >= {"a/b/oci-layout", "a/b/index.json"}
        await first.take_back()
        assert (await second.fetch_manifest("a"))[1] == index_named("a")

    async def test_half_made(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(path: Path, data: bytes) -> None:
            if path.name == "oci-layout":
                raise OSError(errno.ENOSPC, "No space left on device")
            path.write_bytes(data)

        monkeypatch.setattr("lazyimg.registry.oci_layout.write_file", fail)
        with pytest.raises(StorageError, match="cannot be written: No space left on device"):
            await create_layout(tmp_path / "deep/layout")
        assert list(tmp_path.iterdir()) == []


class TestBlobs:
    async def test_pushed_and_read(self, layout: OciLayout, path: Path) -> None:
        assert not await layout.has_blob(DIGEST)
        assert await layout.push_blob(cut(DATA), lambda: DIGEST) == len(DATA)
        assert await layout.has_blob(DIGEST)
        assert f"blobs/sha256/{DIGEST.hex}" in listing(path)
        blob = describe(DATA, "")
        assert await layout.read_blob(blob, 100, 50) == DATA[100:150]
        assert await layout.read_blob(blob, 5, 0) == b""
        assert b"".join([piece async for piece in layout.stream_blob(blob)]) == DATA

    async def test_large_blob_comes_in_pieces(self, layout: OciLayout) -> None:
        large = DATA * 1000
        await layout.push_blob(cut(large, 100_000), lambda: Digest.of(large))
        pieces = [piece async for piece in layout.stream_blob(describe(large, ""))]
        assert b"".join(pieces) == large
        assert len(pieces) == 3

    async def test_empty_blob(self, layout: OciLayout) -> None:
        assert await layout.push_blob(cut(b""), lambda: Digest.of(b"")) == 0
        assert [piece async for piece in layout.stream_blob(describe(b"", ""))] == []

    async def test_wrong_digest_leaves_nothing(self, layout: OciLayout, path: Path) -> None:
        with pytest.raises(CorruptError, match=f"its bytes have digest {DIGEST}"):
            await layout.push_blob(cut(DATA), lambda: Digest.of(b"other"))
        assert listing(path) == {"oci-layout", "index.json"}

    async def test_source_that_fails_leaves_nothing(self, layout: OciLayout, path: Path) -> None:
        async def failing() -> AsyncIterator[bytes]:
            yield DATA
            raise CorruptError("source", "broken")

        with pytest.raises(CorruptError, match="source: broken"):
            await layout.push_blob(failing(), lambda: DIGEST)
        assert listing(path) == {"oci-layout", "index.json"}

    async def test_cancelling_leaves_nothing(self, layout: OciLayout, path: Path) -> None:
        began = asyncio.Event()

        async def waiting() -> AsyncIterator[bytes]:
            yield DATA
            began.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(layout.push_blob(waiting(), lambda: DIGEST))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert listing(path) == {"oci-layout", "index.json"}

    async def test_full_disk(
        self, layout: OciLayout, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(StorageError) as caught:
            await layout.push_blob(cut(DATA), lambda: DIGEST)
        assert str(caught.value) == f"oci:{path}: cannot be written: No space left on device"
        with pytest.raises(StorageError):
            await layout.push_manifest(index_named("a"), OCI_INDEX, "a")
        assert listing(path) == {"oci-layout", "index.json"}

    async def test_missing(self, layout: OciLayout, path: Path) -> None:
        for read in (layout.read_blob(describe(DATA, ""), 0, 1), layout.fetch_manifest(DIGEST)):
            with pytest.raises(NotFoundError) as caught:
                await read
            assert str(caught.value) == f"oci:{path}@{DIGEST}: no such blob in it"

    async def test_outside(self, layout: OciLayout) -> None:
        with pytest.raises(ValueError, match="2560\\+1 is not inside a blob of 2560 bytes"):
            await layout.read_blob(describe(DATA, ""), 2560, 1)

    async def test_damaged(self, layout: OciLayout, path: Path) -> None:
        await layout.push_blob(cut(DATA), lambda: DIGEST)
        blob, file = describe(DATA, ""), path / "blobs/sha256" / DIGEST.hex
        file.write_bytes(DATA[:-1] + b"x")
        with pytest.raises(CorruptError, match=f"@{DIGEST}: its bytes have digest sha256:"):
            [piece async for piece in layout.stream_blob(blob)]
        file.write_bytes(DATA[:-1])
        with pytest.raises(CorruptError, match="expected 2560 bytes, it has 2559"):
            await layout.read_blob(blob, 0, 1)

    async def test_unreadable(self, layout: OciLayout, path: Path) -> None:
        (path / "blobs/sha256").mkdir(parents=True)
        (path / "blobs/sha256" / DIGEST.hex).symlink_to(DIGEST.hex)
        with pytest.raises(StorageError, match="cannot be read: Too many levels of symbolic link"):
            await layout.has_blob(DIGEST)

    async def test_taken_over_only_if_it_is_there(self, layout: OciLayout) -> None:
        blob = describe(DATA, "")
        assert not await layout.mount_blob_from(layout, blob)
        await layout.push_blob(cut(DATA), lambda: DIGEST)
        assert await layout.mount_blob_from(layout, blob)


class TestManifests:
    async def test_by_name_and_digest(self, layout: OciLayout) -> None:
        pushed = await layout.push_manifest(index_named("a"), OCI_INDEX, "a")
        assert pushed == describe(index_named("a"), OCI_INDEX)
        for reference in ("a", "", pushed.digest):
            assert await layout.fetch_manifest(reference) == (pushed, index_named("a"))

    async def test_name_is_given_anew(self, layout: OciLayout, path: Path) -> None:
        for name in ("a", "b", "c"):
            await layout.push_manifest(index_named(name), OCI_INDEX, "one")
        await layout.push_manifest(index_named("d"), OCI_INDEX, "two")
        assert (await layout.fetch_manifest("one"))[1] == index_named("c")
        entries = msgspec.json.decode((path / "index.json").read_bytes())["manifests"]
        assert [list(entry["annotations"].values()) for entry in entries] == [["one"], ["two"]]

    async def test_part_of_an_index_is_not_listed(self, layout: OciLayout) -> None:
        part = await layout.push_manifest(index_named("a"), OCI_INDEX)
        assert (await layout.fetch_manifest(part.digest))[1] == index_named("a")
        with pytest.raises(NotFoundError, match=r"no image in it$"):
            await layout.fetch_manifest("")

    async def test_without_a_name(self, layout: OciLayout, path: Path) -> None:
        for _ in range(2):
            await layout.push_manifest(index_named("a"), OCI_INDEX, "")
        assert (await layout.fetch_manifest(""))[1] == index_named("a")
        await layout.push_manifest(index_named("b"), OCI_INDEX, "")
        with pytest.raises(NotFoundError, match=r"2 images in it$"):
            await layout.fetch_manifest("")
        await layout.push_manifest(index_named("b"), OCI_INDEX, "named")
        with pytest.raises(NotFoundError) as caught:
            await layout.fetch_manifest("")
        assert str(caught.value) == f"oci:{path}: 3 images in it; name one of: named"
        with pytest.raises(NotFoundError) as caught:
            await layout.fetch_manifest("nope")
        assert str(caught.value) == (f"oci:{path}: no image named 'nope' in it; there are: named")

    async def test_many_at_once(self, layout: OciLayout, path: Path) -> None:
        names = [f"n{number}" for number in range(20)]
        other = await open_layout(path)
        await asyncio.gather(
            *[
                (layout, other)[number % 2].push_manifest(index_named(name), OCI_INDEX, name)
                for number, name in enumerate(names)
            ]
        )
        for name in names:
            assert (await layout.fetch_manifest(name))[1] == index_named(name)
        assert not [name for name in listing(path) if ".lazyimg-" in name]

    async def test_what_an_index_says_of_others_is_kept(
        self, layout: OciLayout, path: Path
    ) -> None:
        entry = {"mediaType": OCI_INDEX, "digest": str(DIGEST), "size": 1, "x": [1]}
        index = {"schemaVersion": 2, "manifests": [entry], "more": {"y": 2}}
        (path / "index.json").write_bytes(msgspec.json.encode(index))
        await layout.push_manifest(index_named("a"), OCI_INDEX, "a")
        written = msgspec.json.decode((path / "index.json").read_bytes())
        assert written["more"] == {"y": 2}
        assert written["manifests"][0] == entry

    async def test_no_document(self, layout: OciLayout, path: Path) -> None:
        with pytest.raises(CorruptError, match="manifest: no JSON"):
            await layout.push_manifest(b"x", OCI_INDEX, "a")
        assert listing(path) == {"oci-layout", "index.json"}
        await layout.push_blob(cut(DATA), lambda: DIGEST)
        with pytest.raises(CorruptError, match=f"@{DIGEST}: manifest: no JSON"):
            await layout.fetch_manifest(DIGEST)

    async def test_damaged(self, layout: OciLayout, path: Path) -> None:
        pushed = await layout.push_manifest(index_named("a"), OCI_INDEX, "a")
        file = path / "blobs/sha256" / pushed.digest.hex
        file.write_bytes(index_named("b"))
        with pytest.raises(CorruptError, match="its bytes have digest"):
            await layout.fetch_manifest("a")
        file.write_bytes(bytes((4 << 20) + 1))
        with pytest.raises(CorruptError, match="4194305 bytes, at most 4194304 allowed"):
            await layout.fetch_manifest("a")

    @pytest.mark.parametrize(
        ("content", "error", "problem"),
        [
            (b"", CorruptError, "manifest: no JSON"),
            (None, NotFoundError, "index.json: cannot be read: No such file or directory"),
            (
                b'{"schemaVersion":2,"layers":[],"config":{"mediaType":"","size":0,"digest":"'
                + str(DIGEST).encode()
                + b'"}}',
                CorruptError,
                "its index.json is no image index",
            ),
        ],
    )
    async def test_bad_index(
        self,
        layout: OciLayout,
        path: Path,
        content: bytes | None,
        error: type[LazyimgError],
        problem: str,
    ) -> None:
        if content is None:
            (path / "index.json").unlink()
        else:
            (path / "index.json").write_bytes(content)
        with pytest.raises(error, match=problem):
            await layout.fetch_manifest("a")


async def test_other_digests(layout: OciLayout) -> None:
    digest = Digest.of(b"x", "sha512")
    blob = Descriptor(media_type="", digest=digest, size=1)
    with pytest.raises(NotFoundError):
        await layout.read_blob(blob, 0, 1)


def test_failed_write_leaves_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    write_file(file, b"old")

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        write_file(file, b"new")
    assert file.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
