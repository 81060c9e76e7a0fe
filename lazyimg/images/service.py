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
from typing import TYPE_CHECKING, Final, NamedTuple

from lazyimg.errors import (
    AccessDeniedError,
    NotFoundError,
    NotLazyError,
    RegistryError,
    UsageError,
)
from lazyimg.images.access import serialize_access
from lazyimg.images.build import BuildRequest, LayerSource, build_image
from lazyimg.images.fetching import IndexFetcher, MissingIndexError
from lazyimg.images.image import Description, Image, ImageLayer
from lazyimg.images.kept import KeptConfigs
from lazyimg.images.library import (
    ChainRecord,
    ImageRecord,
    LayerRecord,
    SourceRecord,
)
from lazyimg.images.locating import Locator, Sought
from lazyimg.images.nydus_making import NydusMaker, chain_key, list_blobs
from lazyimg.images.proofs import Proofs
from lazyimg.images.readers import repository_of
from lazyimg.images.streaming import Wanted
from lazyimg.layers.locate import PLAIN, SOCI, STARGZ, locate_index, name_format
from lazyimg.layers.nydus import is_nydus
from lazyimg.layers.parse import check_names
from lazyimg.limits import BuildLimits
from lazyimg.registry.ports import ProvingSource
from lazyimg.registry.resolve import parse_location, parse_platform, resolve_image
from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.reference import ArchiveLocation, LayoutLocation, RegistryLocation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from pathlib import Path

    from lazyimg.images.catalog import Catalog
    from lazyimg.images.library import LayerClaim, Library
    from lazyimg.images.nydus import NydusSource
    from lazyimg.images.streaming import Streams
    from lazyimg.layers.locate import IndexLocation
    from lazyimg.registry.ports import Access, ImageSource
    from lazyimg.registry.resolve import ResolvedImage
    from lazyimg_formats.oci.digest import Digest
    from lazyimg_formats.oci.documents import Descriptor
    from lazyimg_formats.oci.platform import Platform
    from lazyimg_formats.oci.reference import Location

    OpenSource = Callable[[Location, Access], Awaitable[tuple[ImageSource, Digest | str]]]

_log = logging.getLogger(__name__)

BUILDER: Final = 2
"""Version of what is built from an index. Another one builds, and names, bootstraps anew."""

RESOLVE_DEADLINE: Final = 15.0
"""Seconds that the registry may take to say what a recorded reference stands for now."""


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
        referrers: as `Locator` takes it.
        streams: read layers that have no index; None: they are refused.
    """

    def __init__(
        self,
        root: Path,
        library: Library,
        catalog: Catalog,
        open_source: OpenSource,
        *,
        limits: BuildLimits | None = None,
        referrers: str = "off",
        streams: Streams | None = None,
    ) -> None:
        self._root = root
        self._limits = limits or BuildLimits()
        self._library = library
        self._catalog = catalog
        self._open_source = open_source
        self._proofs = Proofs(library)
        self._building: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._locator = Locator(library, referrers)
        self._streams = streams
        self._fetcher = IndexFetcher(root / "content")
        self._nydus = NydusMaker(root, self._fetcher, self._request)

    async def open(
        self,
        text: str,
        platform_text: str,
        access: Access,
        depth: int | None = None,
        *,
        comparable: bool = False,
        stream: bool = False,
    ) -> Image:
        """Give the image under a reference, ready to be mounted.

        Args:
            text: the reference as the user wrote it.
            platform_text: os/arch[/variant], ``local`` or "" for this machine's.
            access: how to reach the registry.
            depth: how many of its layers, the lowest ones; None: all. Then the reference must
                have the digest of a platform's manifest.
            comparable: with times as in `lazyimg.images.comparable`; for such parts only.
            stream: read layers whole that have no index (`lazyimg.images.streaming`).

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
        return await self._open_resolved(part, resolved, source, access, stream=stream)

    async def _as_known(self, part: _Part, image: Image, access: Access) -> Image:
        """Give an image that was made ready already; lowest layers perhaps in another repository.

        Then they are filled from this one, too.
        """
        place, _, depth, _ = part
        if depth is not None:
            sources = _sources(place, image.chain, access)
            devices = [device for device, _ in sources]
            repository = repository_of(place)
            if not await asyncio.to_thread(self._library.has_sources, repository, devices):
                await asyncio.to_thread(self._library.add_sources, sources)
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
                resolved.reference, resolved.digest, resolved.platform, (), (), (), resolved.chain
            )
        layers = resolved.manifest.layers
        chain = None
        sought = Sought.of(str(location), resolved)
        found = await self._locator.find(sought, opened, range(len(layers)))
        formats = tuple(
            name_format(layer) if one is None else one.format
            for layer, one in zip(layers, found, strict=True)
        )
        indexes = tuple("" if one is None else one.place for one in found)
        if is_nydus(layers):
            key = chain_key(sought, BUILDER)
            chain = await asyncio.to_thread(self._library.find_chain, key)
            indexes = ("layer",) * len(layers if chain is None else chain.layers)
        elif all(indexes):
            key = _chain_key(layers, [one for one in found if one is not None])
            chain = await asyncio.to_thread(self._library.find_chain, key)
        digest = str(resolved.descriptor.digest)
        return Description(str(location), digest, str(platform), layers, formats, indexes, chain)

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
        image = await self._recorded_part(
            location, platform, depth, comparable=comparable, loose=self._locator.loose
        )
        if image is None or not await asyncio.to_thread(self._is_whole, image.chain):
            return None
        return image

    async def _recorded_part(
        self,
        location: Location,
        platform: Platform,
        depth: int,
        *,
        comparable: bool = False,
        loose: bool = True,
    ) -> Image | None:
        digest = _digest_of(location)
        for only in ("", repository_of(location)) if loose else ("",):
            name = _part_name(digest, only, comparable=comparable)
            key = await asyncio.to_thread(self._library.find_part, name, depth)
            if key is None:
                continue
            chain = await asyncio.to_thread(self._library.find_chain, key)
            if chain is not None:
                return Image(str(location), digest, str(platform), chain)
        return None

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

    async def find_part(self, text: str, depth: int) -> ChainRecord | None:
        """Give what was made of the lowest layers of an image, if it was.

        Args:
            text: a reference with the digest of a platform's manifest.
            depth: how many layers.
        """
        image = await self._recorded_part(_locate(text), parse_platform(""), depth)
        return None if image is None else image.chain

    async def locate(self, image: Sought, access: Access, depth: int) -> list[IndexLocation]:
        """Give where the indexes of the lowest layers of an image are.

        Args:
            image: its `what` is its reference.
            access: how to reach the registry.
            depth: how many layers.

        Raises:
            NotLazyError: a layer has none.
            CorruptError: annotations contradict each other.
            LazyimgError: the registry or the disk fails.
        """
        source, _ = await self._open_source(_locate(image.what), access)
        return await self._locator.locate(image, source, range(depth))

    async def stream(
        self, image: Sought, access: Access, number: int, *, always: bool = True
    ) -> None:
        """Read a layer whole if it has no index.

        Args:
            image: its `what` is its reference.
            access: how to reach the registry.
            number: of the layer.
            always: False: only if it is one that SOCI leaves out, since it is small, below one that
                has an index.

        Raises:
            NotLazyError: no index can be made of it.
            LazyimgError: the registry, the image or the disk fails.
        """
        source, _ = await self._open_source(_locate(image.what), access)
        if always or await self._is_left_out(image, source, number):
            await self._stream(image, source, [number])

    async def _is_left_out(self, image: Sought, source: ImageSource, number: int) -> bool:
        if name_format(image.layers[number]) not in PLAIN:
            return False
        found = await self._locator.find(image, source, range(number, len(image.layers)))
        return found[0] is None and any(one is not None and one.format == SOCI for one in found)

    async def _stream(self, image: Sought, source: ImageSource, numbers: Sequence[int]) -> int:
        """Read those layers whole that have no index; gives the bytes of their blobs."""
        if self._streams is None:
            return 0
        wanted = []
        found = await self._locator.find(image, source, numbers)
        for number, location in zip(numbers, found, strict=True):
            layer, what = image.layers[number], image.name_layer(number)
            if location is None and name_format(layer) not in PLAIN:
                locate_index(layer, what)  # says why it cannot be used
            if location is None or await asyncio.to_thread(self._is_lost, location):
                wanted.append(Wanted(what, source, layer, str(image.diff_ids[number])))
        await self._streams.read(wanted)
        return sum({str(one.layer.digest): one.layer.size for one in wanted}.values())

    def _is_lost(self, location: IndexLocation) -> bool:
        """Tell whether an index of this node is not there any more."""
        own = location.format in PLAIN and not location.artifact
        return own and not (self._root / "content" / location.name).exists()

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
        sought = Sought.of(text, resolved)
        locations, indexes = await self._find_indexes(sought, source, range(len(layers)))
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
        *,
        stream: bool,
    ) -> Image:
        place, platform, depth, comparable = part
        sought = Sought.of(str(place), resolved)
        numbers = range(len(resolved.manifest.layers[:depth]))
        streamed = 0
        locations: list[IndexLocation] = []
        whole = depth is None and is_nydus(sought.layers)
        if whole:
            chain = await self._make_nydus(sought, source)
        while not whole:
            if stream:
                streamed += await self._stream(sought, source, numbers)
            locations = await self._locator.locate(sought, source, numbers)
            try:
                chain = await self._make_chain(sought, source, locations, comparable=comparable)
                break
            except MissingIndexError as error:
                self._locator.miss(sought, source, error)
        sources = _sources(place, chain, access)
        image = ImageRecord(str(place), str(platform), str(resolved.descriptor.digest), chain.key)
        if depth is None:
            await asyncio.to_thread(self._library.add_image, image, sources)
        else:
            loose = any(location.loose for location in locations)
            only = repository_of(place) if loose else ""
            name = _part_name(image.digest, only, comparable=comparable)
            await asyncio.to_thread(self._library.add_part, name, depth, chain.key, sources)
        self._catalog.add(chain)
        for device, one in sources:
            await self._catalog.add_source(device, one, access)
        return Image(image.reference, image.digest, image.platform, chain, streamed)

    async def _make_chain(
        self,
        sought: Sought,
        source: ImageSource,
        locations: list[IndexLocation],
        *,
        comparable: bool,
    ) -> ChainRecord:
        """Give what is made of the lowest layers of an image, as many as there are locations."""
        layers = sought.layers[: len(locations)]
        key = _chain_key(layers, locations, comparable=comparable)

        async def make() -> ChainRecord:
            found = await self._fetcher.complete(sought.what, source, layers, locations)
            return await self._build(key, layers, found, source, comparable=comparable)

        return await self._find_or_make(key, make)

    async def _make_nydus(self, sought: Sought, source: ImageSource) -> ChainRecord:
        """Give what is made of a Nydus image, whose manifest need not have all of its blobs."""
        key = chain_key(sought, BUILDER)
        chain = await self._find_or_make(key, lambda: self._nydus.make(key, sought, source))
        if isinstance(source, ProvingSource):
            await self._proofs.prove(source, list_blobs(chain))
        return chain

    async def _find_or_make(
        self, key: str, make: Callable[[], Coroutine[None, None, ChainRecord]]
    ) -> ChainRecord:
        async with self._building[key]:
            chain = await asyncio.to_thread(self._library.find_chain, key)
            if chain is None or not await asyncio.to_thread(self._is_whole, chain):
                chain = await make()
                await asyncio.to_thread(self._library.add_chain, chain)
        return chain

    def _request(self, nydus: NydusSource) -> BuildRequest:
        return BuildRequest(
            [], str(self._root / "bootstraps"), self._limits.memory, self._limits.processor_time,
            nydus=nydus,
        )  # fmt: skip

    async def _find_indexes(
        self, sought: Sought, source: ImageSource, numbers: Sequence[int]
    ) -> tuple[list[IndexLocation], list[Path]]:
        """Give where indexes of layers are, in full, and their files."""
        layers = [sought.layers[number] for number in numbers]
        while True:
            locations = await self._locator.locate(sought, source, numbers)
            locations = await self._fetcher.complete(sought.what, source, layers, locations)
            try:
                return locations, await self._fetcher.fetch(source, layers, locations)
            except MissingIndexError as error:
                self._locator.miss(sought, source, error)

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
        indexes = await self._fetcher.fetch(source, layers, locations)
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
        return ChainRecord(
            key,
            built.fsid,
            built.size,
            [
                LayerRecord(
                    str(layer.digest), layer.size, layer.media_type, location.format,
                    location.name, one.device, one.size, one.first,
                )
                for layer, location, one in zip(layers, locations, built.layers, strict=True)
            ],
        )  # fmt: skip

    async def fetch_index(self, image: Sought, access: Access, number: int) -> None:
        """Have an index that may turn out to be none that can be used, once it is looked at.

        Args:
            image: its `what` is its reference.
            access: for its registry.
            number: of one of its layers.

        Raises:
            NotLazyError: the layer cannot be loaded lazily.
            CorruptError: its index is not what the manifest promises.
            LazyimgError: the registry or the disk fails.
        """
        source, _ = await self._open_source(_locate(image.what), access)
        locations = await self._locator.locate(image, source, [number])
        if locations[0].format not in STARGZ and not locations[0].artifact:
            return
        locations, [path] = await self._find_indexes(image, source, [number])
        try:
            await asyncio.to_thread(_check_names, locations[0], path)
        except FormatError as error:
            raise NotLazyError(
                image.what, f"a layer of format {locations[0].format}: {error}"
            ) from error


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


def _check_names(location: IndexLocation, path: Path) -> None:
    check_names(location, path.read_bytes())


def _blobs(image: Image) -> set[str]:
    return {layer.blob for layer in image.chain.layers}


def _is_fixed(location: Location) -> bool:
    return isinstance(location, RegistryLocation) and location.reference.digest is not None


def _digest_of(location: Location) -> str:
    if not isinstance(location, RegistryLocation) or location.reference.digest is None:
        raise UsageError(str(location), "parts of an image are known by its digest only")
    return str(location.reference.digest)


def _part_name(digest: str, only: str, *, comparable: bool) -> str:
    """Give what lowest layers are recorded under; for one repository `only`, if it is not ""."""
    return f"{digest}{' comparable' if comparable else ''}{f' in {only}' if only else ''}"


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
