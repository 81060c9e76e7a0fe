"""Indexes that this node makes of layers that have none, and keeps.

Each layer's blob is read once, from the registry into the process that makes its index
(`indexing`); no copy of it is kept. The index is good for this blob and this diff ID: both were
checked in the pass that made it, so nothing else needs to vouch for it. From then on `service`
finds it as it finds the index inside a blob.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lazyimg.errors import NotFoundError, StorageError
from lazyimg.host.files import sync_directory
from lazyimg.images.indexing import IndexMaker, IndexRequest
from lazyimg.images.library import LayerClaim, OwnIndex
from lazyimg.layers.locate import PLAIN, locate_index, name_format

if TYPE_CHECKING:
    from lazyimg.images.library import Library
    from lazyimg.images.service import Images
    from lazyimg.limits import BuildLimits
    from lazyimg.registry.ports import Access, ImageSource
    from lazyimg_formats.oci.documents import Descriptor

_log = logging.getLogger(__name__)


class IndexFiles:
    """The files of indexes that this node has made, and what is recorded of them. All blocks.

    Args:
        directory: where they are.
        library: the records.
    """

    def __init__(self, directory: Path, library: Library) -> None:
        self._directory = directory
        self._library = library

    def open_aside(self) -> Path:
        """Give a new file, to write an index to. Raises StorageError."""
        try:
            handle, path = tempfile.mkstemp(dir=self._directory, prefix=".index.")
            os.close(handle)
        except OSError as error:
            raise _storage_error(self._directory, error) from error
        return Path(path)

    def path(self, index: OwnIndex) -> Path:
        """Give where an index is."""
        return self._directory / index.digest.partition(":")[2]

    def find(self, blob: str, diff_id: str) -> OwnIndex | None:
        """Give the index of a layer, if it was made and is there. Raises StorageError."""
        found = self._library.find_own_index(blob, diff_id)
        return found if found is not None and self.path(found).exists() else None

    def keep(self, aside: Path, index: OwnIndex) -> None:
        """Take an index that is whole and synced in a file aside. Raises StorageError."""
        path = self.path(index)
        try:
            aside.rename(path)
            sync_directory(self._directory)
        except OSError as error:
            raise _storage_error(path, error) from error
        self._library.add_own_index(index)
        claim = LayerClaim(index.blob, index.diff_id, path.name)
        self._library.add_checked(claim, "")  # all that a check would look at was looked at

    def remove(self, index: OwnIndex) -> None:
        """Forget an index, and remove it unless another layer has the same. Raises StorageError."""
        if self._library.remove_own_index(index):
            try:
                self.path(index).unlink(missing_ok=True)
            except OSError as error:
                raise _storage_error(self.path(index), error) from error


class IndexedLayer(NamedTuple):
    """A layer that can be loaded lazily now.

    Attributes:
        layer: its blob.
        format: in the words of `lazyimg.layers`.
        own: the index that this node has; None: it has one itself.
        made: just now.
    """

    layer: Descriptor
    format: str
    own: OwnIndex | None
    made: bool


class Indexes:
    """Makes and keeps them.

    Args:
        root: the daemon's directory.
        library: the records.
        images: resolves references.
        limits: of the process that makes one.
    """

    def __init__(self, root: Path, library: Library, images: Images, limits: BuildLimits) -> None:
        self._files = IndexFiles(root / "content", library)
        self._library = library
        self._images = images
        self._limits = limits
        self._making: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def create(
        self, text: str, platform_text: str, access: Access
    ) -> tuple[str, list[IndexedLayer]]:
        """Make an index of each layer of an image that has none.

        Args:
            text: the reference as the user wrote it.
            platform_text: os/arch[/variant], ``local`` or "" for this machine's.
            access: how to reach the registry.

        Returns:
            The canonical reference, and the layers, lowest first.

        Raises:
            NotLazyError: no index can be made of a layer.
            LazyimgError: the registry, the image or the disk fails.
        """
        name, source, resolved = await self._images.resolve_in(text, platform_text, access)
        layers = resolved.manifest.layers
        indexed = []
        maker = IndexMaker()
        try:
            for number, (layer, diff_id) in enumerate(
                zip(layers, resolved.config.diff_ids, strict=True), 1
            ):
                what = f"{name}: layer {number} of {len(layers)}"
                indexed.append(await self._create_one(what, source, layer, str(diff_id), maker))
        finally:
            await maker.close()
        return name, indexed

    async def _create_one(
        self, what: str, source: ImageSource, layer: Descriptor, diff_id: str, maker: IndexMaker
    ) -> IndexedLayer:
        kind = name_format(layer)
        if kind not in PLAIN:
            locate_index(layer, what)  # says why there is none
            return IndexedLayer(layer, kind, None, made=False)
        blob = str(layer.digest)
        async with self._making[blob]:
            known = await asyncio.to_thread(self._files.find, blob, diff_id)
            if known is not None:
                return IndexedLayer(layer, kind, known, made=False)
            made = await self._make(what, source, layer, diff_id, maker)
        return IndexedLayer(layer, kind, made, made=True)

    async def _make(
        self, what: str, source: ImageSource, layer: Descriptor, diff_id: str, maker: IndexMaker
    ) -> OwnIndex:
        aside = await asyncio.to_thread(self._files.open_aside)
        try:
            request = IndexRequest(
                str(layer.digest), layer.size, diff_id, str(aside),
                self._limits.memory, self._limits.processor_time,
            )  # fmt: skip
            reply = await maker.make(what, request, source.stream_blob(layer))
            index = OwnIndex(str(layer.digest), diff_id, layer.size, reply.digest, reply.size)
            await asyncio.to_thread(self._files.keep, aside, index)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        _log.info("%s: made its index, %d bytes for %d", what, index.size, layer.size)
        return index

    async def kept(self) -> list[OwnIndex]:
        """Give the indexes that were made here."""
        return await asyncio.to_thread(self._library.own_indexes)

    async def remove(self, text: str, platform_text: str, access: Access) -> list[OwnIndex]:
        """Remove the indexes of an image's layers; what is mounted stays so.

        Args and Returns: as `create`; of `text` may also be a layer's digest.

        Raises:
            NotFoundError: there are none.
            LazyimgError: the registry or the disk fails.
        """
        blobs = {text}
        if not text.startswith(("sha256:", "sha512:")):
            _, _, resolved = await self._images.resolve_in(text, platform_text, access)
            blobs = {str(layer.digest) for layer in resolved.manifest.layers}
        found = [index for index in await self.kept() if index.blob in blobs]
        if not found:
            raise NotFoundError(text, "this node has made no index of it")
        for index in found:
            await asyncio.to_thread(self._files.remove, index)
        return found


def _storage_error(path: Path, error: OSError) -> StorageError:
    return StorageError(str(path), f"cannot be written: {error.strerror}")
