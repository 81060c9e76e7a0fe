"""From a reference to an image that can be mounted.

What the registry is asked for: the manifest (always, while it answers, unless the reference names
a digest that is recorded), whether this user may read the layers (`proofs`), and the layers'
indexes (once). When the registry is away, what a
reference last stood for is used, and that is said in the log.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from lazyimg.errors import (
    AccessDeniedError,
    CorruptError,
    NotFoundError,
    NotLazyError,
    RegistryError,
    UsageError,
)
from lazyimg.images.access import serialize_access
from lazyimg.images.build import BuildRequest, LayerSource, build_image
from lazyimg.images.kept import KeptConfigs
from lazyimg.images.library import (
    ChainRecord,
    ImageRecord,
    LayerClaim,
    LayerRecord,
    SourceRecord,
)
from lazyimg.images.proofs import Proofs
from lazyimg.images.readers import repository_of
from lazyimg.layers.fetch import fetch_index, find_index
from lazyimg.layers.locate import PLAIN, STARGZ, IndexLocation, locate_index, name_format
from lazyimg.layers.parse import check_names
from lazyimg.limits import MIB, BuildLimits
from lazyimg.registry.ports import ProvingSource
from lazyimg.registry.resolve import parse_location, parse_platform, resolve_image
from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.reference import ArchiveLocation, LayoutLocation, RegistryLocation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
    from pathlib import Path

    from lazyimg.images.catalog import Catalog
    from lazyimg.images.library import Library
    from lazyimg.registry.ports import Access, ImageSource
    from lazyimg.registry.resolve import ResolvedImage
    from lazyimg_formats.oci.digest import Digest
    from lazyimg_formats.oci.documents import Descriptor
    from lazyimg_formats.oci.platform import Platform
    from lazyimg_formats.oci.reference import Location

    OpenSource = Callable[[Location, Access], Awaitable[tuple[ImageSource, Digest | str]]]

_log = logging.getLogger(__name__)

T = TypeVar("T")

BUILDER: Final = 2
"""Version of what is built from an index. Another one builds, and names, bootstraps anew."""

INDEX_MEMORY: Final = 32 * MIB
"""Bytes of layers' indexes that are fetched at the same time; one that is larger comes alone."""

MAX_INDEXES: Final = 512 * MIB
"""Bytes of all indexes of an image: they are kept on the disk, and decoded to build it."""

RESOLVE_DEADLINE: Final = 15.0
"""Seconds that the registry may take to say what a recorded reference stands for now."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image of this node.

    Attributes:
        reference: canonical, with the tag or digest asked for.
        digest: of the platform's manifest.
        platform: os/arch[/variant].
        chain: its bootstrap and layers.
    """

    reference: str
    digest: str
    platform: str
    chain: ChainRecord


@dataclass(frozen=True, slots=True)
class Description:
    """An image as its manifest describes it.

    Attributes:
        reference: canonical, with the tag or digest asked for.
        digest: of the platform's manifest.
        platform: os/arch[/variant].
        layers: their descriptors, lowest first.
        formats: of each layer, in the words of `lazyimg.layers`.
        chain: its bootstrap and devices, if it was made ready on this node.
    """

    reference: str
    digest: str
    platform: str
    layers: tuple[Descriptor, ...]
    formats: tuple[str, ...]
    chain: ChainRecord | None


class ImageLayer(NamedTuple):
    """One layer of an image, and what the image says of it.

    Attributes:
        source: has its blob.
        descriptor: of the blob.
        diff_id: digest of its tar.
        location: of its index in the blob.
        path: the file of its index.
    """

    source: ImageSource
    descriptor: Descriptor
    diff_id: str
    location: IndexLocation
    path: Path

    @property
    def claim(self) -> LayerClaim:
        """What a check of it is recorded under."""
        return LayerClaim(str(self.descriptor.digest), self.diff_id, self.location.name)


class _Part(NamedTuple):
    """What was asked for: an image, or its lowest layers."""

    place: Location
    platform: Platform
    depth: int | None
    comparable: bool


class Images:
    """Makes images ready.

    Args:
        root: the daemon's directory.
        library: the records.
        catalog: told of each new name before anybody can ask for it.
        open_source: gives what to read an image from, and what to ask there for.
        limits: of building a bootstrap.
    """

    def __init__(
        self,
        root: Path,
        library: Library,
        catalog: Catalog,
        open_source: OpenSource,
        limits: BuildLimits | None = None,
    ) -> None:
        self._root = root
        self._limits = limits or BuildLimits()
        self._library = library
        self._catalog = catalog
        self._open_source = open_source
        self._proofs = Proofs(library)
        self._building: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._fetching = 0  # bytes of indexes that are on their way
        self._fetched = asyncio.Condition()

    async def open(
        self,
        text: str,
        platform_text: str,
        access: Access,
        depth: int | None = None,
        *,
        comparable: bool = False,
    ) -> Image:
        """Give the image under a reference, ready to be mounted.

        Args:
            text: the reference as the user wrote it.
            platform_text: os/arch[/variant], ``local`` or "" for this machine's.
            access: how to reach the registry.
            depth: how many of its layers, the lowest ones; None: all. Then the reference must
                have the digest of a platform's manifest.
            comparable: with times as in `lazyimg.images.comparable`; for such parts only.

        Raises:
            BadReferenceError, UsageError: `text` or `platform_text` says nothing.
            AccessDeniedError: the registry does not let this user read one of its layers.
            NotLazyError: a layer cannot be loaded lazily.
            LazyimgError: the registry, the image or the disk fails.
        """
        location, platform = _locate(text), parse_platform(platform_text)
        known = await self._known(location, platform, depth, comparable=comparable)
        source, wanted = await self._open_source(location, access)
        pinned = known is not None and _is_fixed(location) and not access.username
        part = _Part(location, platform, depth, comparable)
        if known is not None and pinned and await self._is_proven(source, known):
            return await self._as_known(part, known, access)
        kept = KeptConfigs(source, self._root / "content")
        resolved = await _resolve(kept, wanted, platform, known, node=access.node)
        if isinstance(resolved, Image):
            if isinstance(source, ProvingSource):
                await self._proofs.require(source, _blobs(resolved))
            return await self._as_known(part, resolved, access)
        if isinstance(source, ProvingSource):
            needed = (*resolved.manifest.layers, resolved.manifest.config)
            await self._proofs.prove(source, needed)
        return await self._open_resolved(part, resolved, kept, access)

    async def _as_known(self, part: _Part, image: Image, access: Access) -> Image:
        """Give an image that was made ready already; lowest layers perhaps in another repository.

        Then they are filled from this one, too.
        """
        place, _, depth, comparable = part
        if depth is not None:
            sources = _sources(place, image.chain, access)
            devices = [device for device, _ in sources]
            repository = repository_of(place)
            if not await asyncio.to_thread(self._library.has_sources, repository, devices):
                name, chain = _part_name(image.digest, comparable=comparable), image.chain.key
                await asyncio.to_thread(self._library.add_part, name, depth, chain, sources)
                for device, one in sources:
                    await self._catalog.add_source(device, one, access)
        return image

    async def _is_proven(self, source: ImageSource, image: Image) -> bool:
        return isinstance(source, ProvingSource) and await self._proofs.are_fresh(
            source, _blobs(image)
        )

    async def describe(self, text: str, platform_text: str, access: Access) -> Description:
        """Give what the registry says of an image, lazily loadable or not; builds nothing.

        While the registry is away, what is known of it here, without layers and formats.

        Args and Raises: as `open`.
        """
        location, platform = _locate(text), parse_platform(platform_text)
        known = await self._known(location, platform, None)
        opened, wanted = await self._open_source(location, access)
        source = KeptConfigs(opened, self._root / "content")
        resolved = await _resolve(source, wanted, platform, known)
        if isinstance(resolved, Image):
            return Description(
                resolved.reference, resolved.digest, resolved.platform, (), (), resolved.chain
            )
        layers = resolved.manifest.layers
        formats = tuple(name_format(layer) for layer in layers)
        chain = None
        with suppress(NotLazyError):
            key = _chain_key(layers, await self._locate_layers(str(location), resolved))
            chain = await asyncio.to_thread(self._library.find_chain, key)
        digest = str(resolved.descriptor.digest)
        return Description(str(location), digest, str(platform), layers, formats, chain)

    async def _known(
        self,
        location: Location,
        platform: Platform,
        depth: int | None,
        *,
        comparable: bool = False,
    ) -> Image | None:
        """Give an image as it is recorded; None when its files are not all there any more."""
        if depth is not None:
            return await self._known_part(location, platform, depth, comparable=comparable)
        record = await asyncio.to_thread(self._library.find_image, str(location), str(platform))
        if record is None:
            return None
        chain = await asyncio.to_thread(self._library.find_chain, record.chain)
        if chain is None or not await asyncio.to_thread(self._is_whole, chain):
            return None
        return Image(record.reference, record.digest, record.platform, chain)

    async def _known_part(
        self, location: Location, platform: Platform, depth: int, *, comparable: bool
    ) -> Image | None:
        image = await self._recorded_part(location, platform, depth, comparable=comparable)
        if image is None or not await asyncio.to_thread(self._is_whole, image.chain):
            return None
        return image

    async def _recorded_part(
        self, location: Location, platform: Platform, depth: int, *, comparable: bool = False
    ) -> Image | None:
        if not isinstance(location, RegistryLocation) or location.reference.digest is None:
            raise UsageError(str(location), "parts of an image are known by its digest only")
        digest = str(location.reference.digest)
        chain = await self.find_part(digest, depth, comparable=comparable)
        return None if chain is None else Image(str(location), digest, str(platform), chain)

    async def is_ready(self, text: str, platform_text: str, depth: int) -> bool:
        """Whether the lowest layers of an image were made ready, and all files are there.

        Args: as `recorded`.
        """
        location, platform = _locate(text), parse_platform(platform_text)
        return await self._known(location, platform, depth) is not None

    async def recorded(self, text: str, platform_text: str, depth: int) -> Image:
        """Give the lowest layers of an image as they were made ready before; asks no registry.

        Args:
            text: a reference with the digest of a platform's manifest.
            platform_text: as `open` takes it.
            depth: how many layers.

        Raises:
            NotFoundError: they were not.
        """
        location, platform = _locate(text), parse_platform(platform_text)
        image = await self._recorded_part(location, platform, depth)
        if image is None:
            raise NotFoundError(text, f"its lowest {depth} layers are not known here")
        return image

    async def find_part(
        self, digest: str, depth: int, *, comparable: bool = False
    ) -> ChainRecord | None:
        """Give what was made of the lowest layers of an image, if it was.

        Args:
            digest: of the platform's manifest.
            depth: how many layers.
            comparable: as `open` takes it.
        """
        name = _part_name(digest, comparable=comparable)
        key = await asyncio.to_thread(self._library.find_part, name, depth)
        return None if key is None else await asyncio.to_thread(self._library.find_chain, key)

    async def locate(
        self, what: str, layers: Sequence[Descriptor], diff_ids: Sequence[Digest]
    ) -> list[IndexLocation]:
        """Give where the indexes of layers are: in their blobs, or here.

        Args:
            what: what an error calls their image.
            layers: the lowest ones of the image, or all.
            diff_ids: of all layers of the image.

        Raises:
            NotLazyError: a layer has none.
            CorruptError: annotations contradict each other.
        """
        return await asyncio.to_thread(
            lambda: [
                self._locate_one(f"{what}: layer {number} of {len(diff_ids)}", layer, str(diff_id))
                for number, (layer, diff_id) in enumerate(zip(layers, diff_ids, strict=False), 1)
            ]
        )

    async def _locate_layers(
        self, what: str, resolved: ResolvedImage, depth: int | None = None
    ) -> list[IndexLocation]:
        return await self.locate(what, resolved.manifest.layers[:depth], resolved.config.diff_ids)

    def _locate_one(self, what: str, layer: Descriptor, diff_id: str) -> IndexLocation:
        kind = name_format(layer)
        if kind in PLAIN:
            own = self._library.find_own_index(str(layer.digest), diff_id)
            if own is not None:
                return IndexLocation(kind, 0, own.size, own.size, own.digest)
        return locate_index(layer, what)

    async def resolve_in(
        self, text: str, platform_text: str, access: Access
    ) -> tuple[str, ImageSource, ResolvedImage]:
        """Give what the registry says of an image, its canonical name, and what has its blobs.

        Args and Raises: as `open`.
        """
        location = _locate(text)
        source, wanted = await self._open_source(location, access)
        kept = KeptConfigs(source, self._root / "content")
        resolved = await resolve_image(kept, wanted, parse_platform(platform_text))
        return str(location), source, resolved

    async def resolve(self, text: str, access: Access) -> ResolvedImage:
        """Give what the registry says of an image for this machine: its manifest and its config.

        Raises:
            LazyimgError: it is not there, or the registry does not answer.
        """
        _, _, resolved = await self.resolve_in(text, "", access)
        return resolved

    async def prove(self, text: str, access: Access, blobs: Sequence[Descriptor]) -> None:
        """Check that this user may read blobs of an image; asks the registry now and then only.

        Raises:
            AccessDeniedError: one may not be read.
            LazyimgError: the registry does not answer.
        """
        source, _ = await self._open_source(_locate(text), access)
        if isinstance(source, ProvingSource):
            await self._proofs.prove(source, blobs)

    async def problems(self, claims: Sequence[LayerClaim]) -> list[str]:
        """Give what was found to be wrong with layers, of those that were checked."""
        found = await asyncio.to_thread(self._library.checked, claims)
        return [problem for problem in found.values() if problem]

    async def layers(
        self, text: str, platform_text: str, access: Access, depth: int
    ) -> list[ImageLayer]:
        """Give the lowest layers of an image, with what is said of them, to be read whole.

        Their indexes are on the disk afterwards.

        Args and Raises: as `open`.
        """
        source, wanted = await self._open_source(_locate(text), access)
        kept = KeptConfigs(source, self._root / "content")
        resolved = await resolve_image(kept, wanted, parse_platform(platform_text))
        layers = resolved.manifest.layers[:depth]
        locations = await _find_indexes(
            kept, layers, await self._locate_layers(text, resolved, depth)
        )
        _check_indexes(text, locations)
        indexes = await self._fetch(layers, locations, kept)
        return [
            ImageLayer(source, layer, str(diff_id), location, path)
            for layer, diff_id, location, path in zip(
                layers, resolved.config.diff_ids, locations, indexes, strict=False
            )
        ]

    async def _open_resolved(
        self,
        part: _Part,
        resolved: ResolvedImage,
        source: ImageSource,
        access: Access,
    ) -> Image:
        place, platform, depth, comparable = part
        layers = resolved.manifest.layers[:depth]
        locations = await self._locate_layers(str(place), resolved, depth)
        key = _chain_key(layers, locations, comparable=comparable)
        async with self._building[key]:
            chain = await asyncio.to_thread(self._library.find_chain, key)
            if chain is None or not await asyncio.to_thread(self._is_whole, chain):
                locations = await _find_indexes(source, layers, locations)
                _check_indexes(str(place), locations)
                chain = await self._build(key, layers, locations, source, comparable=comparable)
        sources = _sources(place, chain, access)
        image = ImageRecord(str(place), str(platform), str(resolved.descriptor.digest), chain.key)
        if depth is None:
            await asyncio.to_thread(self._library.add_image, image, sources)
        else:
            name = _part_name(image.digest, comparable=comparable)
            await asyncio.to_thread(self._library.add_part, name, depth, chain.key, sources)
        self._catalog.add(chain)
        for device, one in sources:
            await self._catalog.add_source(device, one, access)
        return Image(image.reference, image.digest, image.platform, chain)

    def _is_whole(self, chain: ChainRecord) -> bool:
        files = [self._root / "bootstraps" / chain.fsid]
        files += [self._root / "tables" / layer.table for layer in chain.layers]
        return all(path.exists() for path in files)

    async def _build(
        self,
        key: str,
        layers: tuple[Descriptor, ...],
        locations: list[IndexLocation],
        source: ImageSource,
        *,
        comparable: bool,
    ) -> ChainRecord:
        indexes = await self._fetch(layers, locations, source)
        request = BuildRequest(
            [
                LayerSource(
                    str(layer.digest),
                    location,
                    str(index),
                    str(self._root / "tables" / location.name),
                )
                for layer, location, index in zip(layers, locations, indexes, strict=True)
            ],
            str(self._root / "bootstraps"),
            self._limits.memory,
            self._limits.processor_time,
            comparable,
        )
        built = await build_image(source.name, request)
        chain = ChainRecord(
            key,
            built.fsid,
            built.size,
            [
                LayerRecord(
                    str(layer.digest), layer.size, layer.media_type, location.format,
                    location.name, one.device, one.size,
                )
                for layer, location, one in zip(layers, locations, built.layers, strict=True)
            ],
        )  # fmt: skip
        await asyncio.to_thread(self._library.add_chain, chain)
        return chain

    async def _fetch(
        self,
        layers: tuple[Descriptor, ...],
        locations: list[IndexLocation],
        source: ImageSource,
    ) -> list[Path]:
        return await _gather(
            self._fetch_one(source, layer, location)
            for layer, location in zip(layers, locations, strict=True)
        )

    async def fetch_index(self, text: str, access: Access, layer: Descriptor) -> None:
        """Have an index that may turn out to be none that can be used, once it is looked at.

        Args:
            text: the image.
            access: for its registry.
            layer: one of its layers.

        Raises:
            NotLazyError: the layer cannot be loaded lazily.
            CorruptError: its index is not what the manifest promises.
            LazyimgError: the registry or the disk fails.
        """
        location = locate_index(layer, text)
        if location.format not in STARGZ:
            return
        source, _ = await self._open_source(_locate(text), access)
        location = await find_index(source, layer, location)
        path = await self._fetch_one(source, layer, location)
        try:
            await asyncio.to_thread(_check_names, location, path)
        except FormatError as error:
            raise NotLazyError(text, f"a layer of format {location.format}: {error}") from error

    async def _fetch_one(
        self, source: ImageSource, layer: Descriptor, location: IndexLocation
    ) -> Path:
        """Fetch an index when there is room for it in memory; a large one is fetched alone."""
        size = location.length
        async with self._fetched:
            await self._fetched.wait_for(
                lambda: not self._fetching or self._fetching + size <= INDEX_MEMORY
            )
            self._fetching += size
        try:
            return await fetch_index(source, layer, location, self._root / "content")
        finally:
            async with self._fetched:
                self._fetching -= size
                self._fetched.notify_all()


def _locate(text: str) -> Location:
    location = parse_location(text)
    if isinstance(location, (LayoutLocation, ArchiveLocation)) and not location.path.startswith(
        "/"
    ):
        raise UsageError(text, "the daemon takes absolute paths only")
    return location


async def _resolve(
    source: ImageSource,
    wanted: Digest | str,
    platform: Platform,
    known: Image | None,
    *,
    node: bool = False,
) -> ResolvedImage | Image:
    """Ask the registry; `known` when there is one and the registry is away or too slow.

    For the `node` also when it refuses: what containerd was told is there stays there.
    """
    try:
        async with asyncio.timeout(RESOLVE_DEADLINE if known else None):
            return await resolve_image(source, wanted, platform)
    except (RegistryError, TimeoutError, AccessDeniedError) as error:
        denied = isinstance(error, AccessDeniedError)
        if known is None or (denied and not node):
            raise
        _log.warning(
            "%s: the registry %s (%s); using %s, known from before",
            known.reference, "refuses" if denied else "does not answer", error or "too slow",
            known.digest,
        )  # fmt: skip
        return known


async def _gather(calls: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """Give what all of them give; the first failure ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures
    return [task.result() for task in tasks]


async def _find_indexes(
    source: ImageSource, layers: Sequence[Descriptor], locations: Sequence[IndexLocation]
) -> list[IndexLocation]:
    return await _gather(
        find_index(source, layer, location)
        for layer, location in zip(layers, locations, strict=True)
    )


def _check_names(location: IndexLocation, path: Path) -> None:
    check_names(location, path.read_bytes())


def _check_indexes(what: str, locations: list[IndexLocation]) -> None:
    total = sum({location.digest: location.length for location in locations}.values())
    if total > MAX_INDEXES:
        raise CorruptError(what, f"its indexes have {total} bytes, at most {MAX_INDEXES} allowed")


def _blobs(image: Image) -> set[str]:
    return {layer.blob for layer in image.chain.layers}


def _is_fixed(location: Location) -> bool:
    return isinstance(location, RegistryLocation) and location.reference.digest is not None


def _part_name(digest: str, *, comparable: bool) -> str:
    return f"{digest} comparable" if comparable else digest


def _chain_key(
    layers: tuple[Descriptor, ...], locations: list[IndexLocation], *, comparable: bool = False
) -> str:
    text = [f"bootstrap {BUILDER}{' comparable' if comparable else ''}"]
    text += [
        f"{layer.digest} {layer.size} {location.format} {location.digest}"
        for layer, location in zip(layers, locations, strict=True)
    ]
    return hashlib.sha256("\n".join(text).encode()).hexdigest()


def _sources(place: Location, chain: ChainRecord, access: Access) -> list[tuple[str, SourceRecord]]:
    """Give what each device of an image is filled from there."""
    return [
        (layer.device, _source_record(place, layer, access))
        for layer in chain.layers
        if layer.device_size
    ]


def _source_record(place: Location, layer: LayerRecord, access: Access) -> SourceRecord:
    return SourceRecord(
        repository_of(place), layer.blob, layer.blob_size, layer.table, serialize_access(access)
    )
