"""Two images that share their base layer, made in a moment, and the same files beside them.

    images = make_shared_images(directory, size=32 << 20)
    lazyimg.verb("convert", images.reference("one"), f"{registry.address}/one")
    ...
    # what is mounted must equal images.files("one")

The base has a program in `bin/digest`: this machine's sha256sum, with its dynamic linker and
libraries, so that it runs in the image as a root directory, too. The rest are random bytes, see
`tests.real.plain_image`. The base is half of an image, and has a file that is as large as all its
others together.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Final, NamedTuple

from tests.real.oci_layout import LayoutWriter, StoredLayer
from tests.real.plain_image import SMALL, write_file

NAMES: Final = ("one", "two")
BASE: Final = "base"
LARGE: Final = f"{BASE}/large"
"""The largest file, in both images."""

PROGRAM: Final = "bin/digest"
FILE: Final = 4 << 20  # bytes of the largest of the others


class SharedImages(NamedTuple):
    """The images."""

    directory: Path

    def reference(self, name: str) -> str:
        """Give one's reference."""
        return f"oci:{self.directory}/layout:{name}"

    def files(self, name: str) -> Path:
        """Give a directory with one's files."""
        return self.directory / f"{name}-files"


def make_shared_images(directory: Path, *, size: int, seed: int = 1) -> SharedImages:
    """Make both, of about `size` bytes each."""
    chance = random.Random(seed)  # noqa: S311 - bytes to tell apart
    images = SharedImages(directory)
    writer = LayoutWriter(directory / "layout")
    base = directory / "base-files"
    write_file(make_parent(base / LARGE), chance, size // 4)
    write_files(base / BASE, chance, size // 4)
    copy_program(base)
    stored = {BASE: add_layer(writer, base)}
    for name in NAMES:
        top = directory / f"{name}-layer"
        write_files(top / name, chance, size // 2)
        stored[name] = add_layer(writer, top)
        writer.add_image(name, [stored[BASE], stored[name]], [PROGRAM])
        shutil.copytree(base, images.files(name))
        shutil.copytree(top, images.files(name), dirs_exist_ok=True)
    return images


def write_files(directory: Path, chance: random.Random, size: int) -> None:
    """Write files of many sizes, `size` bytes in all or a little more."""
    directory.mkdir(parents=True, exist_ok=True)
    for count, length in enumerate(SMALL):
        write_file(directory / f"small{count}", chance, length)
    while size > 0:
        length = min(size, chance.randrange(1, FILE))
        write_file(directory / f"file{size}", chance, length)
        size -= length


def copy_program(root: Path) -> None:
    """Copy the program, its libraries and its linker."""
    program = Path(shutil.which("sha256sum") or "")
    shutil.copy(program, make_parent(root / PROGRAM))
    needed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    for name in re.findall(r"(/\S+) \(0x", needed):
        shutil.copy(name, make_parent(root / name.lstrip("/")))


def make_parent(path: Path) -> Path:
    """Make a path's directory; give the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def add_layer(writer: LayoutWriter, top: Path) -> StoredLayer:
    """Add a directory's content as a layer."""
    tar = top.with_suffix(".tar")
    with tarfile.open(tar, "w") as archive:
        for path in sorted(top.iterdir()):
            archive.add(path, path.name)
    layer = writer.add_layer(tar)
    tar.unlink()
    return layer
