"""An image is read whole and checked: manifest, config, each blob, tar, index, and each span.

What is checked of a layer, and how, is in `check`: it goes through the same child as in completion,
which is told to decode each span as well, because no device is filled that would find a wrong one.
Nothing is mounted and nothing kept but small documents, so neither a daemon is needed nor its root;
without one, the indexes that a node has made are not known.

A layer without an index is checked as those who unpack it do: its blob's digest and its diff ID.
The blobs of a Nydus image are no tars: their digests are checked, and all chunks in them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lazyimg.errors import CorruptError, NotLazyError
from lazyimg.images.build import BuildRequest
from lazyimg.images.check import CheckRequest, Finding, open_check
from lazyimg.images.fetching import IndexFetcher, MissingIndexError
from lazyimg.images.kept import KeptConfigs
from lazyimg.images.library import LayerClaim
from lazyimg.images.locating import Locator, Sought
from lazyimg.images.nydus_making import NydusMaker, list_blobs
from lazyimg.layers.locate import PLAIN, name_format
from lazyimg.layers.nydus import is_nydus
from lazyimg.registry.resolve import parse_location, parse_platform, resolve_image

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from lazyimg.images.library import Library
    from lazyimg.images.nydus import NydusSource
    from lazyimg.layers.locate import IndexLocation
    from lazyimg.limits import BuildLimits
    from lazyimg.registry.ports import Access, ImageSource
    from lazyimg_formats.oci.digest import Digest
    from lazyimg_formats.oci.documents import Descriptor
    from lazyimg_formats.oci.reference import Location

    OpenSource = Callable[[Location, Access], Awaitable[tuple[ImageSource, Digest | str]]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found of a layer.

    Attributes:
        digest: of its blob.
        format: in the words of `lazyimg.layers`.
        size: of the blob.
        index: digest of its index; "": it has none.
        problem: how it is not what its image says; "": it is.
    """

    digest: str
    format: str
    size: int
    index: str
    problem: str


@dataclass(frozen=True, slots=True)
class Validated:
    """An image that was read whole.

    Attributes:
        reference: canonical, with the tag or digest asked for.
        digest: of the platform's manifest.
        platform: os/arch[/variant].
        layers: lowest first.
    """

    reference: str
    digest: str
    platform: str
    layers: list[Verdict]


class _Layer(NamedTuple):
    source: ImageSource
    what: str
    blob: Descriptor
    diff_id: str  # "": it is no tar
    location: IndexLocation | None = None
    problem: str = ""  # why the index could not be had
    table: str = ""  # of a device, without an index


class Validator:
    """Reads images.

    Args:
        root: has the directories content, for configs and indexes by their digests, tables and
            bootstraps.
        library: the records: the indexes that this node has made, and what was found of layers.
        open_source: gives what to read an image from, and what to ask there for.
        limits: of the process that checks a layer.
        referrers: which indexes that refer to an image may be used, as in the configuration.
    """

    def __init__(
        self,
        root: Path,
        library: Library,
        open_source: OpenSource,
        limits: BuildLimits,
        referrers: str = "off",
    ) -> None:
        self._root = root
        self._directory = root / "content"
        self._library = library
        self._open_source = open_source
        self._limits = limits
        self._locator = Locator(library, referrers)
        self._fetcher = IndexFetcher(self._directory)
        self._nydus = NydusMaker(root, self._fetcher, self._request)

    async def validate(
        self,
        text: str,
        platform_text: str,
        access: Access,
        progress: Callable[[int, int], None],
    ) -> Validated:
        """Read an image whole, and check all of it.

        Args:
            text: the reference as the user wrote it.
            platform_text: os/arch[/variant], ``local`` or "" for this machine's.
            access: how to reach the registry.
            progress: called with the bytes of blobs that were read, and those of all.

        Raises:
            CorruptError: its manifest or its config is not what was promised.
            LazyimgError: the registry or the disk fails, or a check cannot be made.
        """
        location = parse_location(text)
        opened, wanted = await self._open_source(location, access)
        source = KeptConfigs(opened, self._directory)
        resolved = await resolve_image(source, wanted, parse_platform(platform_text))
        image = Sought.of(str(location), resolved)
        layers = await (self._open_nydus if is_nydus(image.layers) else self._open)(image, opened)
        total = sum(layer.blob.size for layer in layers)
        done = 0

        def add(size: int) -> None:
            nonlocal done
            done += size
            progress(done, total)

        add(0)
        verdicts = [await self._check(layer, add) for layer in layers]
        digest, platform = str(resolved.descriptor.digest), str(resolved.config.platform)
        return Validated(str(location), digest, platform, verdicts)

    async def _open(self, image: Sought, source: ImageSource) -> list[_Layer]:
        numbers = range(len(image.layers))
        found = await self._locator.find(image, source, numbers)
        return [
            await self._complete(image, number, source, one)
            for number, one in zip(numbers, found, strict=True)
        ]

    async def _open_nydus(self, image: Sought, source: ImageSource) -> list[_Layer]:
        """Give the blobs of the manifest, and those that they refer to."""
        problem, tables, blobs = "", {}, {str(blob.digest): blob for blob in image.layers}
        try:
            chain = await self._nydus.make("", image, source)
        except NotLazyError:
            pass  # of a kind that is not read
        except CorruptError as error:
            problem = error.problem
        else:
            for blob in list_blobs(chain):
                blobs.setdefault(str(blob.digest), blob)
            tables = {
                layer.blob: str(self._root / "tables" / layer.table)
                for layer in chain.layers
                if layer.device_size
            }
        bootstrap = str(image.layers[-1].digest)
        return [
            _Layer(
                source, f"{image.what}: blob {digest}", blob, "",
                problem=problem if digest == bootstrap else "", table=tables.get(digest, ""),
            )
            for digest, blob in blobs.items()
        ]  # fmt: skip

    def _request(self, nydus: NydusSource) -> BuildRequest:
        return BuildRequest(
            [], str(self._root / "bootstraps"), self._limits.memory, self._limits.processor_time,
            nydus=nydus,
        )  # fmt: skip

    async def _complete(
        self, image: Sought, number: int, source: ImageSource, found: IndexLocation | None
    ) -> _Layer:
        """Have a layer's index; a wrong one is a finding, and so is one that is gone."""
        what, problem = image.name_layer(number), ""
        layers = [image.layers[number]]
        if found is not None:
            try:
                found = (await self._fetcher.complete(what, source, layers, [found]))[0]
                await self._fetcher.fetch(source, layers, [found])
            except NotLazyError as error:
                gone = found.format in PLAIN  # not one that lies where it is not looked for
                found, problem = None, error.problem if gone else ""
            except (CorruptError, MissingIndexError) as error:
                found, problem = None, error.problem
        blob, diff_id = image.layers[number], str(image.diff_ids[number])
        return _Layer(source, what, blob, diff_id, found, problem)

    async def _check(self, layer: _Layer, add: Callable[[int], None]) -> Verdict:
        descriptor, diff_id, location = layer.blob, layer.diff_id, layer.location
        blob = str(descriptor.digest)
        request = CheckRequest(
            blob,
            descriptor.size,
            diff_id,
            location,
            str(self._directory / location.name) if location else "",
            memory=self._limits.memory,
            processor_time=self._limits.processor_time,
            spans=True,
            table=layer.table,
        )
        finding = Finding(layer.problem)
        try:
            async with open_check(layer.what, request) as check:
                async for piece in layer.source.stream_blob(descriptor):
                    await check.feed(piece)
                    add(len(piece))
                found = await check.finish()
            finding = Finding(finding.problem or found.problem, found.lasting)
        except CorruptError as error:  # the blob is another one
            finding = Finding(error.problem, lasting=False)
        if finding.problem and finding.lasting and location is not None:
            claim = LayerClaim(blob, diff_id, location.name)
            await asyncio.to_thread(self._library.add_checked, claim, finding.problem)
        index = location.digest if location else ""
        return Verdict(blob, name_format(descriptor), descriptor.size, index, finding.problem)
