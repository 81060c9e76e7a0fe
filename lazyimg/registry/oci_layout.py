"""A directory in the OCI image layout, as a source and as a target of images.

On disk (image-spec, image-layout.md):
    oci-layout            {"imageLayoutVersion": "1.0.0"}
    index.json            an image index; the annotation `REF_NAME` names an image
    blobs/<algorithm>/<hex>

Whatever is written is written aside (``.lazyimg-*`` in the same directory), synced and renamed, so
that a reader, or a power cut, sees all or nothing of it. Making a layout, taking it back, changing
index.json hold a lock on the directory, against other processes and other tasks. Whoever writes
images into a layout shares a lock on its file oci-layout until it is done, so that nobody who made
the layout takes it back meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from lazyimg.errors import CorruptError, NotFoundError, StorageError
from lazyimg.registry.blob_files import Extract, LocalSource, parse_index, parse_local, unreadable
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import (
    MAX_DOCUMENT,
    REF_NAME,
    Descriptor,
    Index,
    Manifest,
    serialize_document,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterator, Sequence
    from typing import BinaryIO

    from lazyimg.registry.ports import ImageSource

VERSION: Final = b'{"imageLayoutVersion":"1.0.0"}'

_MAX_MARKER: Final = 4096


class LayoutFiles:
    """The files of a layout."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"oci:{self.path}"

    def check(self) -> None:
        """Raise LazyimgError unless this is a layout of a version that is known."""
        try:
            with (self.path / "oci-layout").open("rb") as file:
                data = file.read(_MAX_MARKER)
        except FileNotFoundError as error:
            problem = "has no oci-layout file" if self.path.exists() else "does not exist"
            raise NotFoundError(self.name, f"is no OCI image layout: {problem}") from error
        except OSError as error:
            raise unreadable(self.name, error) from error
        check_marker(self.name, data)

    def read_index(self) -> bytes:
        """Give index.json."""
        try:
            with (self.path / "index.json").open("rb") as file:
                return file.read(MAX_DOCUMENT + 1)
        except OSError as error:
            raise unreadable(f"{self.name}: index.json", error) from error

    def blob(self, digest: Digest) -> Path:
        """Give the path of a blob."""
        return self.path / "blobs" / digest.algorithm / digest.hex

    def locate(self, digest: Digest) -> Extract | None:
        """Give where a blob is, or None."""
        path = self.blob(digest)
        try:
            return Extract(path, 0, path.stat().st_size)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(f"{self.name}@{digest}", error) from error


def check_marker(name: str, data: bytes) -> None:
    """Raise CorruptError unless `data`, the file oci-layout, has a version that is known."""
    try:
        marker = msgspec.json.decode(data, type=dict[str, object])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CorruptError(name, "its oci-layout file is no JSON object") from error
    version = marker.get("imageLayoutVersion")
    if not isinstance(version, str) or not version.startswith("1."):
        raise CorruptError(name, f"expected layout version 1.0.0, got {str(version)[:40]!r}")


class OciLayout(LocalSource):
    """An ImageSource and ImageTarget in a directory; made by `open_layout`, `create_layout`.

    Args:
        files: its files.
        made: the directories that were made for it, the innermost first; None: it was there.
        lock: a descriptor of its file oci-layout that shares the lock, closed with this object.
    """

    def __init__(
        self, files: LayoutFiles, made: Sequence[Path] | None = None, lock: int | None = None
    ) -> None:
        super().__init__(files)
        self._layout = files
        self._made = made
        self._lock = lock
        if lock is not None:
            weakref.finalize(self, os.close, lock)
        self._written: set[Path] = set()  # blobs

    async def has_blob(self, digest: Digest) -> bool:
        """Tell whether a blob is there; see ImageTarget."""
        return await asyncio.to_thread(self._layout.locate, digest) is not None

    async def mount_blob_from(self, source: ImageSource, descriptor: Descriptor) -> bool:
        """Tell whether a blob is there: nothing is taken over without moving its bytes."""
        del source
        return await self.has_blob(descriptor.digest)

    async def push_blob(self, chunks: AsyncIterable[bytes], digest: Callable[[], Digest]) -> int:
        """Take in a blob; see ImageTarget."""
        pending = _PendingBlob(self._layout)
        try:
            async for piece in chunks:
                await asyncio.to_thread(pending.write, piece)
            self._written.add(self._layout.blob(digest()))
            return await asyncio.to_thread(pending.commit, digest())
        finally:
            await asyncio.to_thread(pending.discard)

    async def push_manifest(
        self, data: bytes, media_type: str, tag: str | None = None
    ) -> Descriptor:
        """Take in a manifest or index; see ImageTarget."""
        return await asyncio.to_thread(self._push_manifest, data, media_type, tag)

    def _push_manifest(self, data: bytes, media_type: str, tag: str | None) -> Descriptor:
        digest = Digest.of(data)
        document: Manifest | Index = parse_local(f"{self.name}@{digest}", data)
        self._written.add(self._layout.blob(digest))
        with _storage(self.name):
            write_file(self._layout.blob(digest), data)
        descriptor = Descriptor(
            media_type=media_type,
            digest=digest,
            size=len(data),
            annotations={REF_NAME: tag} if tag else {},
            artifact_type=document.artifact_type,
        )
        if tag is not None:
            with _storage(self.name), _locked(self._layout.path):
                self._add_to_index(descriptor)
        return replace(descriptor, annotations={}, artifact_type="")

    def _add_to_index(self, new: Descriptor) -> None:
        index = parse_index(self.name, self._layout.read_index())
        name = new.annotations.get(REF_NAME)
        kept = tuple(
            entry
            for entry in index.manifests
            if entry.annotations.get(REF_NAME) != name or (name is None and entry != new)
        )
        data = serialize_document(replace(index, manifests=(*kept, new)))
        write_file(self._layout.path / "index.json", data)

    async def take_back(self) -> None:
        """Remove the layout if it was made for this object, and nobody has put an image into it.

        Blobs that this object has brought go with it. Where there is anything else, or somebody
        else is about to write into it, all of it stays.
        """
        if self._made is not None:
            await asyncio.to_thread(self._take_back, self._made)

    def _take_back(self, made: Sequence[Path]) -> None:
        path = self._layout.path
        own = {path / "oci-layout", path / "index.json", *self._written}
        with _storage(self.name), _locked(path):
            if not self._is_alone() or parse_index(self.name, self._layout.read_index()).manifests:
                return
            if {found for found in path.rglob("*") if not found.is_dir()} <= own:
                _empty(path, made)

    def _is_alone(self) -> bool:
        """Tell whether nobody else writes images into it; the directory is locked."""
        if self._lock is None:
            return False
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        return True


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Hold the lock on a layout's directory; gives its descriptor."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # each open file has its own lock, so tasks too
        yield descriptor
    finally:
        os.close(descriptor)


async def open_layout(path: Path) -> OciLayout:
    """Give the layout in a directory.

    Raises:
        NotFoundError: there is none.
        CorruptError: of a version that is not known.
    """
    files = LayoutFiles(path)
    await asyncio.to_thread(files.check)
    return OciLayout(files)


async def create_layout(path: Path) -> OciLayout:
    """Give the layout in a directory; makes an empty one where there is nothing.

    Raises:
        StorageError: something else is there, or it cannot be written.
        CorruptError: of a version that is not known.
    """
    return await asyncio.to_thread(_create_layout, path)


def _create_layout(path: Path) -> OciLayout:
    """Make a layout, or take the one that is there."""
    files = LayoutFiles(path)
    with _storage(files.name):
        while True:
            made = [each for each in (path, *path.parents) if not each.exists()]
            path.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError), _locked(path) as directory:
                if os.path.samestat(os.fstat(directory), path.stat()):  # nobody has removed it
                    is_new = not (path / "oci-layout").exists()
                    if is_new:
                        _write_empty(path, made)
                    files.check()
                    return OciLayout(files, made if is_new else None, _share(path))


def _write_empty(path: Path, made: Sequence[Path]) -> None:
    """Make a layout without images in a directory that is empty."""
    if any(path.iterdir()):
        raise StorageError(
            f"oci:{path}", "is a directory with something else in it", "name an empty or a new one"
        )
    try:
        write_file(path / "index.json", serialize_document(Index(manifests=())))
        write_file(path / "oci-layout", VERSION)
    except OSError:
        _empty(path, made)
        raise


def _share(path: Path) -> int:
    """Take a share of the lock on a layout's marker; the directory is locked."""
    descriptor = os.open(path / "oci-layout", os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_SH)  # nobody holds it alone but under the directory's lock
    return descriptor


def _empty(path: Path, made: Sequence[Path]) -> None:
    """Remove what is in a directory, and the directories that were `made`, if they are empty."""
    for found in path.iterdir():
        if found.is_dir():
            shutil.rmtree(found)
        else:
            found.unlink()
    for directory in made:
        with contextlib.suppress(OSError):  # somebody has put something there
            directory.rmdir()


class _PendingBlob:
    """A blob that is being written, aside. Its methods are called in threads.

    A caller that is cancelled does not wait for its thread: whatever comes after `discard` does
    nothing, and `discard` waits for what has begun.
    """

    def __init__(self, layout: LayoutFiles) -> None:
        self._layout = layout
        self._hasher = Digest.of(b"").hasher()
        self._lock = threading.Lock()
        self._aside: tuple[BinaryIO, Path] | None = None
        self._discarded = False

    def write(self, data: bytes) -> None:
        with self._lock, _storage(self._layout.name):
            if not self._discarded:
                self._open()[0].write(data)
                self._hasher.update(data)

    def commit(self, digest: Digest) -> int:
        if digest != self._hasher.digest():
            raise CorruptError(
                f"{self._layout.name}@{digest}", f"its bytes have digest {self._hasher.digest()}"
            )
        with self._lock, _storage(self._layout.name):
            if not self._discarded:
                _publish(*self._open(), self._layout.blob(digest))
        return self._hasher.size

    def discard(self) -> None:
        with self._lock, _storage(self._layout.name):
            self._discarded = True
            if self._aside is not None:
                file, path = self._aside
                path.unlink(missing_ok=True)
                file.close()

    def _open(self) -> tuple[BinaryIO, Path]:
        if self._aside is None:
            self._aside = _open_aside(self._layout.path / "blobs" / "sha256")
        return self._aside


def write_file(path: Path, data: bytes) -> None:
    """Put `data` at `path`, all or nothing, also after a power cut; raises OSError."""
    file, aside = _open_aside(path.parent)
    try:
        with file:
            file.write(data)
            _publish(file, aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _open_aside(directory: Path) -> tuple[BinaryIO, Path]:
    directory.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=".lazyimg-", dir=directory)
    return os.fdopen(descriptor, "wb"), Path(name)


def _publish(file: BinaryIO, aside: Path, path: Path) -> None:
    file.flush()
    os.fchmod(file.fileno(), 0o644)
    os.fsync(file.fileno())
    aside.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _storage(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(name, f"cannot be written: {error.strerror}") from error
