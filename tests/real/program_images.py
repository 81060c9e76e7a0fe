"""Small images in which a shell and a few programs of this machine run, over a base they share.

    images = make_program_images(directory, ["one", "two"], size=2 << 20)
    images["one"].reference     # oci:..., to be converted
    images["one"].files         # what is in its /data

The base has the programs with their libraries; each image has a layer of its own: /data with FILES
files of random bytes.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import tarfile
from typing import TYPE_CHECKING, Final

from tests.real.oci_layout import LayoutWriter
from tests.real.plain_image import PlainImage, write_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PROGRAMS: Final = ("sh", "cat", "sha256sum", "sleep")
FILES: Final = 12


def make_program_images(
    directory: Path, names: Sequence[str], *, size: int
) -> dict[str, PlainImage]:
    """Make images in an OCI layout; each has about `size` bytes in its /data."""
    writer = LayoutWriter(directory / "programs-layout")
    tar = directory / "layer.tar"
    write_programs(tar)
    base = writer.add_layer(tar)
    images = {}
    for seed, name in enumerate(names):
        chance = random.Random(seed)  # noqa: S311 - bytes to tell apart
        files = directory / f"{name}-data"
        files.mkdir()
        for number in range(FILES):
            write_file(files / f"{number:02}", chance, size // FILES)
        with tarfile.open(tar, "w") as archive:
            archive.add(files, "data")
        writer.add_image(name, [base, writer.add_layer(tar)], ["sh"])
        images[name] = PlainImage(f"oci:{writer.directory}:{name}", files)
    tar.unlink()
    return images


def write_programs(tar: Path) -> None:
    """Write a layer with the programs, and what they need."""
    with tarfile.open(tar, "w", dereference=True) as archive:
        needed = set()
        for name in PROGRAMS:
            path = shutil.which(name)
            assert path is not None, name
            archive.add(path, f"bin/{name}")
            needed |= libraries(path)
        for path in sorted(needed):
            archive.add(path, path.lstrip("/"))


def libraries(program: str) -> set[str]:
    """Return the files that a program is linked with."""
    ended = subprocess.run(["ldd", program], capture_output=True, text=True, check=True)
    return {word for word in ended.stdout.split() if word.startswith("/")}


def sums(image: PlainImage) -> str:
    """Return what `sha256sum /data/*` prints in a container of an image."""
    command = ["sha256sum", *sorted(path.name for path in image.files.iterdir())]
    ended = subprocess.run(command, cwd=image.files, capture_output=True, text=True, check=True)
    return ended.stdout.replace("  ", "  /data/")
