"""A small image whose containers can run a shell and cat: made of this machine's own, in a moment.

    image = make_shell_image(directory, "name")
    lazyimg.verb("convert", image, f"{registry.address}/name")
    # a container: sh -c 'cat /data/text'

Two layers: the programs with their libraries, and /data. The text is `TEXT`; beside it lie
`FILLING` bytes that nobody reads.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Final

from tests.real.oci_layout import LayoutWriter

PROGRAMS: Final = ("sh", "cat")
TEXT: Final = "out of the upper layer\n"
FILLING: Final = 8 << 20


def make_shell_image(directory: Path, name: str) -> str:
    """Make the image in an OCI layout below `directory`; return its reference."""
    writer = LayoutWriter(directory / f"{name}-layout")
    base, top = (directory / f"{name}-{part}" for part in ("base", "top"))
    (base / "bin").mkdir(parents=True)
    for program in PROGRAMS:
        found = shutil.which(program)
        assert found is not None
        copy(Path(found), base / "bin" / program)
        for library in libraries(found):
            copy(library, base / library.relative_to("/"))
    (top / "data").mkdir(parents=True)
    (top / "data/text").write_text(TEXT)
    (top / "data/filling").write_bytes(random.Random(1).randbytes(FILLING))  # noqa: S311
    layers = []
    for part in (base, top):
        tar = directory / f"{name}.tar"
        with tarfile.open(tar, "w") as archive:
            archive.add(part, ".")
        layers.append(writer.add_layer(tar))
        tar.unlink()
        shutil.rmtree(part)
    writer.add_image(name, layers, ["sh"])
    return f"oci:{writer.directory}:{name}"


def libraries(program: str) -> list[Path]:
    """Return what a program is linked to, under the names by which it is found."""
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", said)]


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)  # a file, if it is a link
