"""Nydus images are made ready: what their building needs is fetched.

That is the bootstrap layer, which the manifest commits to, and, unless that layer has them, the
contexts of those blobs whose chunks do not stand alone (batches, gzip layers). To these nothing
commits but the digests of their blobs as a whole: one that lies gives chunks that are refused when
they are read, never other bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from lazyimg.errors import CorruptError, NotLazyError, StorageError
from lazyimg.host.files import write_file
from lazyimg.images.build import BuildRequest, build_image
from lazyimg.images.library import ChainRecord, LayerRecord
from lazyimg.images.nydus import NydusSource, empty_table
from lazyimg.layers.locate import NYDUS, NYDUS_BOOTSTRAP, IndexLocation
from lazyimg.layers.nydus import sort_layers
from lazyimg.limits import MIB
from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import OCI_LAYER_GZIP, Descriptor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lazyimg.images.build import BuildReply
    from lazyimg.images.fetching import IndexFetcher
    from lazyimg.images.locating import Sought
    from lazyimg.images.nydus import BuiltBlob, MissingContext
    from lazyimg.layers.nydus import NydusLayers
    from lazyimg.registry.ports import ImageSource

MAX_CONTEXT: Final = 64 * MIB
"""Bytes of a blob's context in its blob: it is in memory while it is fetched."""

_REMEDY: Final = "convert the image again, or check the registry"


class _Fetched(NamedTuple):
    """A context: where it was, and its file."""

    holder: Descriptor
    offset: int
    length: int
    path: Path


def chain_key(sought: Sought, builder: int) -> str:
    """Give what a Nydus image's chain is recorded under."""
    text = [f"nydus bootstrap {builder}"]
    text += [f"{layer.digest} {layer.size}" for layer in sought.layers]
    return hashlib.sha256("\n".join(text).encode()).hexdigest()


class NydusMaker:
    """Makes them.

    Args:
        root: the daemon's directory.
        fetcher: fetches bootstrap layers.
        request: gives a request to build, to which the image is added.
    """

    def __init__(
        self, root: Path, fetcher: IndexFetcher, request: Callable[[NydusSource], BuildRequest]
    ) -> None:
        self._root = root
        self._fetcher = fetcher
        self._request = request

    async def make(self, key: str, sought: Sought, source: ImageSource) -> ChainRecord:
        """Give what is made of an image; it is not recorded yet.

        Args:
            key: as `chain_key` gives it.
            sought: the image.
            source: its repository.

        Raises:
            NotLazyError: the image is of a kind that cannot be loaded lazily.
            CorruptError: it breaks its format.
            LazyimgError: the registry or the disk fails.
        """
        layers = sort_layers(sought.what, sought.layers)
        digest, size = str(layers.bootstrap.digest), layers.bootstrap.size
        location = IndexLocation(NYDUS_BOOTSTRAP, 0, size, size, digest)
        found = await self._fetcher.complete(sought.what, source, [layers.bootstrap], [location])
        [path] = await self._fetcher.fetch(source, [layers.bootstrap], found)
        image = NydusSource(str(path), location.name, str(self._root / "tables"))
        reply = await self._build(sought.what, source, layers, image)
        records = [_record(sought.what, layers, blob) for blob in reply.blobs]
        records.append(
            LayerRecord(
                digest, size, layers.bootstrap.media_type, NYDUS_BOOTSTRAP, location.name,
                empty_table().name, 0,
            )
        )  # fmt: skip
        return ChainRecord(key, reply.fsid, reply.size, records)

    async def _build(
        self, what: str, source: ImageSource, layers: NydusLayers, image: NydusSource
    ) -> BuildReply:
        fetched: dict[str, _Fetched] = {}
        try:
            while True:
                paths = {blob: str(one.path) for blob, one in fetched.items()}
                request = self._request(NydusSource(image.layer, image.name, image.tables, paths))
                try:
                    reply = await build_image(source.name, request)
                except CorruptError:  # perhaps only one of several hosts has given wrong bytes
                    if not _distrust(source, fetched):
                        raise
                    await self._remove(fetched)
                    continue
                if not reply.missing:
                    return reply
                for missing in reply.missing:
                    fetched[missing.blob] = await self._fetch(what, source, layers, missing)
        finally:
            await self._remove(fetched)

    async def _fetch(
        self, what: str, source: ImageSource, layers: NydusLayers, missing: MissingContext
    ) -> _Fetched:
        digest = f"sha256:{missing.blob}"
        holder = (layers.originals if missing.separate else layers.blobs).get(digest)
        if holder is None:
            raise NotLazyError(
                what, f"a Nydus image whose manifest lacks the context of blob {digest}", _REMEDY
            )
        if missing.length > MAX_CONTEXT or missing.offset + missing.length > holder.size:
            raise CorruptError(
                what, f"{missing.length} bytes of context of blob {digest} cannot be", _REMEDY
            )
        data = await source.read_blob(holder, missing.offset, missing.length)
        name = f"context of {missing.blob} at {missing.offset} in {holder.digest}"
        path = self._root / "content" / hashlib.sha256(name.encode()).hexdigest()
        try:
            await asyncio.to_thread(write_file, path, data)
        except OSError as error:
            raise StorageError(str(path), f"cannot be written: {error.strerror}") from error
        return _Fetched(holder, missing.offset, missing.length, path)

    async def _remove(self, fetched: dict[str, _Fetched]) -> None:
        """Remove contexts: nothing could tell later whether they are whole."""
        for one in fetched.values():
            with suppress(FileNotFoundError):
                await asyncio.to_thread(one.path.unlink)
        fetched.clear()


def _distrust(source: ImageSource, fetched: dict[str, _Fetched]) -> bool:
    distrusted = [source.distrust(one.holder, one.offset, one.length) for one in fetched.values()]
    return any(distrusted)


def list_blobs(chain: ChainRecord) -> list[Descriptor]:
    """Give the blobs that an image is made of: not all of them need be in its manifest."""
    return [
        Descriptor(
            media_type=layer.media_type, digest=Digest.parse(layer.blob), size=layer.blob_size
        )
        for layer in chain.layers
    ]


def _record(what: str, layers: NydusLayers, blob: BuiltBlob) -> LayerRecord:
    digest = f"sha256:{blob.blob}"
    layer = layers.blobs.get(digest)
    if digest in layers.originals:
        try:
            layer = Descriptor(
                media_type=OCI_LAYER_GZIP, digest=Digest.parse(digest), size=blob.blob_size
            )
        except FormatError as error:
            raise CorruptError(what, str(error), _REMEDY) from error
    if layer is None:
        raise NotLazyError(what, f"a Nydus image whose manifest lacks its blob {digest}", _REMEDY)
    return LayerRecord(
        digest, layer.size, layer.media_type, NYDUS, blob.table, blob.device, blob.size, blob.first
    )
