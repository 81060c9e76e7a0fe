"""Images of files with known bytes, made in a moment, and the same files beside them.

    image = make_plain_image(directory, "name", seed=1, size=64 << 20)
    lazyimg.verb("convert", image.reference, f"{registry.address}/name")
    ...
    # what is mounted must equal image.files

The bytes are half random, half a repetition, so that they compress, and no two blocks are equal.
"""

from __future__ import annotations

import random
import tarfile
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.real.oci_layout import LayoutWriter

if TYPE_CHECKING:
    from pathlib import Path

FILE: Final = 8 << 20  # bytes of the largest files
PIECE: Final = 1 << 15
SMALL: Final = (1, 511, 4095, 4096, 4097, 65_536, 100_001)


class PlainImage(NamedTuple):
    """An image, and what is in it."""

    reference: str
    files: Path
    """A directory with the same files."""


def make_plain_image(
    directory: Path, name: str, *, seed: int, size: int, layers: int = 2
) -> PlainImage:
    """Make an image of about `size` bytes, in layers of gzip, in an OCI layout."""
    chance = random.Random(seed)  # noqa: S311 - bytes to tell apart
    files = directory / f"{name}-files"
    writer = LayoutWriter(directory / f"{name}-layout")
    stored = []
    for number in range(layers):
        top = files / f"layer{number}"
        top.mkdir(parents=True)
        left = size // layers
        for count, length in enumerate(SMALL):
            write_file(top / f"small{count}", chance, length)
        while left > 0:
            length = min(left, chance.randrange(1, FILE))
            write_file(top / f"file{left}", chance, length)
            left -= length
        tar = directory / f"{name}.tar"
        with tarfile.open(tar, "w") as archive:
            archive.add(top, f"layer{number}")
        stored.append(writer.add_layer(tar))
        tar.unlink()
    writer.add_image(name, stored, ["none"])
    return PlainImage(f"oci:{writer.directory}:{name}", files)


def write_file(path: Path, chance: random.Random, length: int) -> None:
    """Write a file of random pieces, each of them twice."""
    with path.open("wb") as file:
        while length > 0:
            piece = chance.randbytes(PIECE)
            file.write((piece + piece)[:length])
            length -= 2 * PIECE
