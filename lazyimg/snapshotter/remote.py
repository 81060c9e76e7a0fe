"""Layers that were not downloaded, out of lazyimg's images; implements `ports.LazyImages`.

A Prepare's labels name an image. Its manifest and config are asked for once; the layer is lazy if
the config's diff IDs give the chain that the Prepare is for, and each layer up to it can be loaded
lazily; where only a layer's blob can tell, it is read. What is shown for a container is one merged
EROFS image of exactly these layers.

A chain that is there already, from another image, is not given for the asking: the image must have
it, and the registry must let its blobs be read in its own repository (`lazyimg.images.proofs`). An
image that was found to lie (`lazyimg.images.completion`) is unpacked as usual, so that
containerd checks it.

Why an image, from some layer on, is unpacked as usual is said once in the log. When the uppermost
layer is known that is lazy, the image can be made ready for its containers (`beforehand`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from lazyimg.errors import LazyimgError, NotLazyError
from lazyimg.images.library import LayerClaim
from lazyimg.images.locating import Sought
from lazyimg.logs import Repeats
from lazyimg.registry.ports import Access
from lazyimg.registry.resolve import parse_location, parse_platform
from lazyimg.snapshotter.lifecycle import RemoteLayer, Unpacked, name_image
from lazyimg_formats.containerd.labels import parse_image_labels
from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.chain import chain_ids
from lazyimg_formats.oci.reference import RegistryLocation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from lazyimg.images.image import Image
    from lazyimg.images.mounts import Mounts
    from lazyimg.images.service import Images
    from lazyimg_formats.oci.documents import Descriptor

_log = logging.getLogger(__name__)

KEPT: Final = 64
"""Images whose layers are remembered, so that the next Prepare asks nobody."""

NODE: Final = Access(node=True)
"""Who may read is for containerd to say, and what it was shown is used."""

NO_LABELS: Final = "no label names the image"
"""Why a layer is unpacked that was pulled without saying for which image."""

QUIET: Final = 3600.0
"""Seconds for which it is not said again why an image is unpacked."""

REFUSED: Final = "the configuration does not let it be loaded lazily"

LIE: Final = "a layer of it is not what it says"

ORDER: Final = "its layer does not follow the one below it"


@dataclass(frozen=True, slots=True)
class _Layers:
    """An image's layers (of a canonical reference with digest), its config and its chain IDs."""

    sought: Sought
    config: Descriptor
    chains: list[str]

    @property
    def reference(self) -> str:
        return self.sought.what


class RemoteLayers:
    """Finds and mounts layers that were not downloaded.

    Args:
        images: makes images ready.
        mounts: mounts them.
        repositories: patterns of the repositories (with registry) that may be loaded lazily;
            none: all of them.
        stream: whether a layer that has no index is read whole, and one made, rather than unpacked.
            One that SOCI leaves out is, always: else no layer above it could be lazy.

    Attributes:
        pulled: is called with the uppermost lazily loaded layer of an image that is pulled.
    """

    def __init__(
        self, images: Images, mounts: Mounts, repositories: Sequence[str], *, stream: bool = False
    ) -> None:
        self._images = images
        self._mounts = mounts
        self.pulled: Callable[[RemoteLayer], None] = lambda _: None
        self._stream = stream
        self._repositories = tuple(repositories) or ("*",)
        self._known: OrderedDict[str, _Layers] = OrderedDict()
        self._users: dict[int, Image] = {}
        self._comparable: dict[int, Image] = {}
        self._locks: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        self._said = Repeats(QUIET)

    async def find(
        self, chain: str, labels: Mapping[str, str], below: RemoteLayer | None
    ) -> RemoteLayer | Unpacked:
        """Give what shows a chain of layers, or why not; see `ports.LazyImages`."""
        try:
            return await self._find(chain, labels, below.depth if below else 0)
        except (LazyimgError, FormatError) as error:
            if below is not None:
                self.pulled(below)
            why = _explain(labels, error)
            more = self._said.due((why.name or chain, why.digest, why.reason))
            if more is not None:
                _log.info("from layer %s on it is unpacked as usual: %s%s", chain, error, more)
            return why

    async def _find(self, chain: str, labels: Mapping[str, str], below: int) -> RemoteLayer:
        named = parse_image_labels(labels)
        if named is None:
            raise NotLazyError(chain, NO_LABELS, reason="no-labels")
        location = parse_location(named.reference)
        if not isinstance(location, RegistryLocation):
            raise NotLazyError(named.reference, "is in no registry", reason="no-registry")
        name = location.reference.name
        if not any(fnmatchcase(name, pattern) for pattern in self._repositories):
            raise NotLazyError(name, REFUSED, reason="configuration")
        text = str(location) if named.manifest is None else f"{name}@{named.manifest}"
        image = await self._layers(text, name)
        if chain not in image.chains:
            raise NotLazyError(
                image.reference, f"has no layers that make the chain {chain}", reason="chain"
            )
        depth = image.chains.index(chain) + 1
        if depth != below + 1:
            raise NotLazyError(image.reference, ORDER, reason="order")
        await self._images.stream(image.sought, NODE, depth - 1, always=self._stream)
        await self._check(image, depth)
        await self._images.prove(image.reference, NODE, (*image.sought.layers, image.config))
        await self._images.fetch_index(image.sought, NODE, depth - 1)
        layer = RemoteLayer(chain, image.reference, str(parse_platform("")), depth)
        if depth == len(image.chains):
            self.pulled(layer)
        return layer

    async def _check(self, image: _Layers, depth: int) -> None:
        """Raise NotLazyError if a layer cannot be loaded lazily, or is known to lie."""
        sought = image.sought
        locations = await self._images.locate(sought, NODE, depth)
        claims = [
            LayerClaim(str(layer.digest), str(diff_id), location.name)
            for layer, diff_id, location in zip(
                sought.layers, sought.diff_ids, locations, strict=False
            )
        ]
        for problem in await self._images.problems(claims):
            raise NotLazyError(image.reference, f"{LIE}: {problem}", reason="quarantined")

    async def _layers(self, text: str, name: str) -> _Layers:
        known = self._known.get(text)
        if known is None:
            resolved = await self._images.resolve(text, NODE)
            known = _Layers(
                Sought.of(f"{name}@{resolved.descriptor.digest}", resolved),
                resolved.manifest.config,
                [str(chain) for chain in chain_ids(resolved.config.diff_ids)],
            )
            if "@" in text:  # what a tag stands for may change
                self._known[text] = known
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        return known

    async def mount(self, layer: RemoteLayer, user: int, *, comparable: bool = False) -> Path:
        """Mount layers for a snapshot; see `ports.LazyImages`."""
        if comparable:
            try:
                return await self._mount(layer, user, self._comparable)
            except LazyimgError as error:
                _log.warning("%s: files will be read to compare them: %s", layer.reference, error)
        return await self._mount(layer, user, self._users)

    async def _mount(self, layer: RemoteLayer, user: int, users: dict[int, Image]) -> Path:
        async with self._lock(user):
            image = users.get(user)
            if image is None:
                image = await self._images.open(
                    layer.reference,
                    layer.platform,
                    NODE,
                    layer.depth,
                    comparable=users is self._comparable,
                )
                await self._mounts.hold(image)
                users[user] = image
        return self._mounts.path(image)

    async def make_ready(self, layer: RemoteLayer) -> None:
        """Have what is needed to mount layers; see `beforehand.Readying`."""
        if await self._images.is_ready(layer.reference, layer.platform, layer.depth):
            return
        image = await self._images.open(layer.reference, layer.platform, NODE, layer.depth)
        async with self._mounts.held(image):  # the first time takes longest
            pass

    async def mount_again(self, layer: RemoteLayer, users: Sequence[int]) -> None:
        """Mount layers as a process before this one did; see `ports.LazyImages`."""
        image = await self._images.recorded(layer.reference, layer.platform, layer.depth)
        await self._mounts.hold(image, len(users))
        self._users.update(dict.fromkeys(users, image))

    def _lock(self, user: int) -> asyncio.Lock:
        """Give the lock of a user, the same one to all who wait for it."""
        return self._locks.setdefault(user, asyncio.Lock())

    async def release(self, user: int) -> None:
        """Take back what was mounted for a snapshot; see `ports.LazyImages`."""
        async with self._lock(user):
            for users in (self._users, self._comparable):
                image = users.pop(user, None)
                if image is not None:
                    await self._mounts.release(image)

    async def fsids(self, layers: Iterable[RemoteLayer]) -> set[str]:
        """Give the names of the images that show layers, as far as they were made."""
        found = set()
        for layer in set(layers):
            chain = await self._images.find_part(layer.reference, layer.depth)
            if chain is not None:
                found.add(chain.fsid)
        return found


def _explain(labels: Mapping[str, str], error: LazyimgError | FormatError) -> Unpacked:
    name, digest = name_image(labels)
    if isinstance(error, FormatError):
        return Unpacked(name, digest, "labels", str(error))
    reason = error.reason if isinstance(error, NotLazyError) else error.kind
    return Unpacked(name, digest, reason, error.problem)
