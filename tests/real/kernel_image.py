"""Images for tests on the real kernel: made in memory, served from memory, read by processes.

The process that serves must not read what it serves: `read_file` and `run` use others, each with
a time limit, so that a hang is a failure.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lazyimg.errors import RegistryError
from lazyimg.host.mount_table import parse_mount_table
from lazyimg_formats.device_table import BLOCK_SIZE
from lazyimg_formats.erofs.tree import Device, FlatData, Node
from lazyimg_formats.erofs.writer import serialize_image

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lazyimg.fill.ports import Sink

DOMAIN = "lazyimg-test"
READ_LIMIT = 30.0
"""Seconds that a reading process may take."""

_READER = """
import os, sys
try:
    fd = os.open(sys.argv[1], os.O_RDONLY)
    offset, length = int(sys.argv[2]), int(sys.argv[3])
    while length:
        piece = os.pread(fd, min(length, 1 << 20), offset)
        if not piece:
            break
        sys.stdout.buffer.write(piece)
        offset += len(piece)
        length -= len(piece)
    sys.stdout.buffer.flush()
except OSError as error:
    sys.exit(error.errno)
"""


@dataclass
class Image:
    """A bootstrap, its devices by name, and the files in it."""

    bootstrap: bytes
    devices: dict[str, bytes]
    files: dict[str, bytes]
    fsid: str = field(init=False)

    def __post_init__(self) -> None:
        self.fsid = hashlib.sha256(self.bootstrap).hexdigest()


def make_image(seed: int, sizes: Mapping[str, int], *, devices: int = 1) -> Image:
    """Make an image of files with random bytes, dealt out to devices in turn."""
    source = random.Random(seed)  # noqa: S311 - bytes to tell apart, not secrets
    files = {name: source.randbytes(size) for name, size in sizes.items()}
    contents = [bytearray() for _ in range(devices)]
    root = Node(stat.S_IFDIR | 0o755, children={})
    assert root.children is not None
    for index, (name, data) in enumerate(files.items()):
        content = contents[index % devices]
        where = FlatData(index % devices, len(content) // BLOCK_SIZE)
        content += data + bytes(-len(data) % BLOCK_SIZE)
        root.children[name.encode()] = Node(stat.S_IFREG | 0o644, size=len(data), data=where)
    named_contents = {hashlib.sha256(data).hexdigest(): bytes(data) for data in contents}
    slots = [Device(name, len(data) // BLOCK_SIZE) for name, data in named_contents.items()]
    return Image(serialize_image(root, slots), named_contents, files)


class MemoryFiller:
    """A filler whose bootstraps are local and whose devices are filled when the test allows it.

    Attributes:
        gate: fills wait for it.
        held: fills of these devices wait for their own.
        failing: fills raise while it is set.
        asked: (cookie, offset, length) of each fill.
    """

    def __init__(self, *images: Image) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.held: dict[str, asyncio.Event] = {}
        self.failing = False
        self.asked: list[tuple[str, int, int]] = []
        self.arrived = asyncio.Condition()
        self.bootstraps = {image.fsid: image.bootstrap for image in images}
        self.devices = {name: data for image in images for name, data in image.devices.items()}

    def size(self, cookie: str) -> int | None:
        data = self.bootstraps.get(cookie, self.devices.get(cookie))
        return None if data is None else len(data)

    def read_local(self, cookie: str, offset: int, _length: int, into: memoryview, /) -> int | None:
        data = self.bootstraps.get(cookie)
        if data is None:
            return None
        found = memoryview(data)[offset : offset + len(into)]
        into[: len(found)] = found
        return len(found)

    async def fill(self, cookie: str, offset: int, length: int, sink: Sink) -> None:
        async with self.arrived:
            self.asked.append((cookie, offset, length))
            self.arrived.notify_all()
        await self.gate.wait()
        if cookie in self.held:
            await self.held[cookie].wait()
        if self.failing:
            raise RegistryError("registry", "is away")
        content = self.devices.get(cookie) or self.bootstraps[cookie]
        data = content[offset : offset + length]
        await sink.write(offset, memoryview(data + bytes(length - len(data))))

    async def wait_asked(self, count: int) -> None:
        """Wait until so many fills have arrived."""
        async with asyncio.timeout(READ_LIMIT), self.arrived:
            await self.arrived.wait_for(lambda: len(self.asked) >= count)


class ReadFailedError(Exception):
    """A reading process got this errno."""


@dataclass
class Reader:
    """A process that reads a file."""

    process: asyncio.subprocess.Process

    async def result(self) -> bytes:
        """Give the bytes, or raise ReadFailedError with the errno."""
        try:
            async with asyncio.timeout(READ_LIMIT):
                output, _ = await self.process.communicate()
        finally:
            if self.process.returncode is None:
                self.process.kill()
        if self.process.returncode:
            raise ReadFailedError(self.process.returncode)
        return output

    async def kill(self) -> None:
        """Kill it; fails if it does not die."""
        os.kill(self.process.pid, signal.SIGKILL)
        async with asyncio.timeout(READ_LIMIT):
            await self.process.wait()


async def start_reader(path: Path, offset: int = 0, length: int = 1 << 40) -> Reader:
    """Start a process that reads a range of a file."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-S",
        "-c",
        _READER,
        str(path),
        str(offset),
        str(length),
        stdout=asyncio.subprocess.PIPE,
        cwd="/",
        start_new_session=True,
    )
    return Reader(process)


async def read_file(path: Path, offset: int = 0, length: int = 1 << 40) -> bytes:
    """Give a range of a file, read by another process."""
    return await (await start_reader(path, offset, length)).result()


async def run(*command: str) -> str:
    """Run a command to its end and give its output; fails if it fails."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd="/",
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(READ_LIMIT):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until the kernel has done something that it does not announce."""
    async with asyncio.timeout(READ_LIMIT):
        while not condition():  # noqa: ASYNC110 - nothing to wait for
            await asyncio.sleep(0.02)


async def drop_caches() -> None:
    """Make the kernel forget all file pages that are not in use."""
    await asyncio.to_thread(Path("/proc/sys/vm/drop_caches").write_text, "3")


async def unmount_below(directory: Path) -> None:
    """Unmount everything at or below a directory."""
    for entry in reversed(parse_mount_table(Path("/proc/self/mountinfo").read_bytes())):
        if Path(entry.mount_point).is_relative_to(directory):
            await run("umount", "-l", entry.mount_point)
