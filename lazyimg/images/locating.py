"""Where the indexes of an image's layers are: places that are asked one after the other.

The first place that knows an index of a layer gives it: the layer itself (the manifest has the
digest of the index in it), what else the manifest commits to, what this node made of the very blob,
and, only if the configuration allows it, what refers to the image (`artifacts`). A new place is a
class with one method, and a line in `Locator`.

No place reads an index, nor vouches for what is in it: `lazyimg.layers.fetch` checks its digest,
and the check of the layer finds an index that lies.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from lazyimg.images.artifacts import Committed, Gone, Referring
from lazyimg.images.soci_places import NamedSoci, list_ztocs
from lazyimg.layers.locate import LAZY, PLAIN, SOCI, IndexLocation, locate_index, name_format

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lazyimg.images.fetching import MissingIndexError
    from lazyimg.images.library import Library
    from lazyimg.registry.ports import ImageSource
    from lazyimg.registry.resolve import ResolvedImage
    from lazyimg_formats.oci.digest import Digest
    from lazyimg_formats.oci.documents import Descriptor


@dataclass(frozen=True, slots=True)
class Sought:
    """An image whose layers' indexes are looked for; layers are numbered from 0, the lowest.

    Attributes:
        what: what an error calls it.
        manifest: the platform's.
        layers: all of them.
        diff_ids: of all of them.
        indexes: what leads from the reference to the manifest, the outermost first.
        annotations: the manifest's own.
    """

    what: str
    manifest: Descriptor
    layers: tuple[Descriptor, ...]
    diff_ids: tuple[Digest, ...]
    indexes: tuple[tuple[Descriptor, bytes], ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, what: str, resolved: ResolvedImage) -> Sought:
        """Give what is needed of what the registry says of an image."""
        return cls(
            what,
            resolved.descriptor,
            resolved.manifest.layers,
            resolved.config.diff_ids,
            resolved.indexes,
            resolved.manifest.annotations,
        )

    def name_layer(self, number: int) -> str:
        """Give what an error calls a layer."""
        return f"{self.what}: layer {number + 1} of {len(self.layers)}"


class Place(Protocol):
    """Where indexes may be."""

    async def find(
        self, image: Sought, numbers: Sequence[int], source: ImageSource
    ) -> Mapping[int, IndexLocation]:
        """Give where the indexes of layers are, by number; of those that are not here, nothing.

        Args:
            image: its layers.
            numbers: those of its layers that no place before this one knows.
            source: the image's repository.

        Raises:
            CorruptError: what the image says of an index contradicts itself.
            LazyimgError: the registry or the disk fails.
        """
        ...


class InLayers:
    """The layer's own blob, if the manifest has the digest of the index in it."""

    async def find(
        self, image: Sought, numbers: Sequence[int], _: ImageSource
    ) -> Mapping[int, IndexLocation]:
        """Give where the indexes are; see `Place`."""
        return {
            number: locate_index(image.layers[number], image.name_layer(number))
            for number in numbers
            if name_format(image.layers[number]) in LAZY
        }


class OnNode:
    """This node's directory: it has made the index, of the very blob."""

    def __init__(self, library: Library) -> None:
        self._library = library

    async def find(
        self, image: Sought, numbers: Sequence[int], _: ImageSource
    ) -> Mapping[int, IndexLocation]:
        """Give where the indexes are; see `Place`."""
        return await asyncio.to_thread(
            lambda: {
                number: found
                for number in numbers
                if (found := self._find_one(image, number)) is not None
            }
        )

    def _find_one(self, image: Sought, number: int) -> IndexLocation | None:
        layer, diff_id = image.layers[number], str(image.diff_ids[number])
        kind = name_format(layer)
        if kind not in PLAIN:
            return None
        own = self._library.find_own_index(str(layer.digest), diff_id)
        return None if own is None else IndexLocation(kind, 0, own.size, own.size, own.digest)


class Locator:
    """Asks each place in turn.

    Args:
        library: the records.
        referrers: whether what refers to an image is used: ``off`` or ``same-repository``.

    Attributes:
        loose: whether an index may come from where the platform's manifest does not commit to it.
    """

    def __init__(self, library: Library, referrers: str = "off") -> None:
        self.loose = referrers != "off"
        self._gone = Gone()
        self._places: list[Place] = [
            InLayers(), Committed(self._gone), NamedSoci(self._gone), OnNode(library)
        ]  # fmt: skip
        if self.loose:
            self._places.append(Referring(self._gone))
            self._places.append(Referring(self._gone, read=list_ztocs, form=SOCI))

    def miss(self, image: Sought, source: ImageSource, error: MissingIndexError) -> None:
        """Take note that an index is not where it was said to be; it is not said so again."""
        self._gone.note(image, source, error)

    async def find(
        self, image: Sought, source: ImageSource, numbers: Sequence[int]
    ) -> list[IndexLocation | None]:
        """Give where the indexes of layers are; None where there is none.

        Args:
            image: its layers.
            source: its repository.
            numbers: which layers.

        Raises:
            CorruptError: what the image says of an index contradicts itself.
            LazyimgError: the registry or the disk fails.
        """
        found: dict[int, IndexLocation] = {}
        for place in self._places:
            missing = [number for number in numbers if number not in found]
            if missing:
                found.update(await place.find(image, missing, source))
        return [found.get(number) for number in numbers]

    async def locate(
        self, image: Sought, source: ImageSource, numbers: Sequence[int]
    ) -> list[IndexLocation]:
        """Give where the indexes of layers are.

        Args and Raises: as `find`, and
            NotLazyError: there is none of a layer.
        """
        found = await self.find(image, source, numbers)
        return [
            locate_index(image.layers[number], image.name_layer(number)) if one is None else one
            for number, one in zip(numbers, found, strict=True)
        ]
