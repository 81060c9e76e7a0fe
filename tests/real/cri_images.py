"""Small images for pods, around one static program, made with Debian's C compiler.

    write_images(directory, layout)    # the tags `pause`, `small` and `tall`

Without arguments the program waits until it is killed, as a pause container does; with the paths of
files it writes their contents one behind the other, and fails if one cannot be read. `-w PATH`
makes a file of 1 MiB.
"""

from __future__ import annotations

import io
import random
import subprocess
import tarfile
from typing import TYPE_CHECKING, Final

from tests.real.oci_layout import LayoutWriter

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TOOL: Final = "/bin/tool"
SOURCE: Final = """\
#include <fcntl.h>
#include <unistd.h>

static char piece[1 << 16];

int main(int argc, char **argv)
{
    if (argc == 1)
        for (;;)
            pause();
    if (argc == 3 && argv[1][0] == '-') {
        int fd = open(argv[2], O_WRONLY | O_CREAT, 0600);
        for (int i = 0; i < 16; i++)
            if (write(fd, piece, sizeof piece) != sizeof piece)
                return 2;
        return 0;
    }
    for (int i = 1; i < argc; i++) {
        int fd = open(argv[i], O_RDONLY);
        ssize_t count;
        while ((count = read(fd, piece, sizeof piece)) > 0)
            if (write(1, piece, count) != count)
                return 2;
        if (count < 0)
            return 1;
        close(fd);
    }
    return 0;
}
"""
LAYERS: Final = 58
"""Of `tall`: more digests than fit into a label of containerd (4,096 bytes with its name)."""

MIDDLE, LARGE = (
    random.Random(number).randbytes(size)  # noqa: S311 - the same each time
    for number, size in enumerate((1 << 20, 4 << 20))
)
"""What is in /middle and in /large of `small`, each in a layer of its own."""


def write_images(directory: Path, layout: Path) -> None:
    """Write all three images into a new layout; `directory` takes what is needed for that."""
    program = make_tool(directory)
    writer = LayoutWriter(layout)
    base = writer.add_layer(write_tar(directory / "base.tar", {TOOL: program, "/name": b"base\n"}))
    writer.add_image("pause", [base], [TOOL])
    middle = writer.add_layer(write_tar(directory / "middle.tar", {"/middle": MIDDLE}))
    large = writer.add_layer(write_tar(directory / "large.tar", {"/large": LARGE}))
    writer.add_image("small", [base, middle, large], [TOOL])
    tall = [base]
    for number in range(1, LAYERS):
        files = {f"/layers/{number}": f"layer {number}\n".encode()}
        tall.append(writer.add_layer(write_tar(directory / f"{number}.tar", files)))
    writer.add_image("tall", tall, [TOOL])


def make_tool(directory: Path) -> bytes:
    """Return the program."""
    source, program = directory / "tool.c", directory / "tool"
    source.write_text(SOURCE)
    subprocess.run(["gcc", "-static", "-O1", "-s", "-o", program, source], check=True)
    return program.read_bytes()


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write a layer of some files that everybody may read and run; return its path."""
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name.lstrip("/"))
            member.size, member.mode = len(content), 0o755
            tar.addfile(member, io.BytesIO(content))
    return path
