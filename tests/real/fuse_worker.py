"""A process that serves a made image through FUSE, and may be killed: `FuseWorker` runs it.

It hands its connection to the process that started it, which gives that to the next one.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lazyimg.cache.device_cache import DeviceCache
from lazyimg.errors import RegistryError
from lazyimg.transports.fuse.transport import FuseTransport
from tests.real.kernel_image import Image, MemoryFiller, make_image

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lazyimg.fill.ports import Sink

PROJECT: Final = Path(__file__).resolve().parents[2]
STARTING: Final = 60.0
"""Seconds that a worker may take to start."""


class UnreliableFiller(MemoryFiller):
    """Takes `delay` seconds for a fill, of which `failing_share` fail."""

    def __init__(self, image: Image, *, delay: float, failing_share: float) -> None:
        super().__init__(image)
        self._delay = delay
        self._failing_share = failing_share

    async def fill(self, cookie: str, offset: int, length: int, sink: Sink) -> None:
        await asyncio.sleep(self._delay)
        if random.random() < self._failing_share:  # noqa: S311 - chance
            raise RegistryError("registry", "fails now and then")
        await super().fill(cookie, offset, length, sink)


class FuseWorker:
    """Runs one worker after the other, and keeps the connection.

    Args:
        directory: on a disk; `tree` in it is where FUSE is mounted.
        seed, sizes, devices: as `make_image` takes them.
        options: `delay` and `failing_share` of the filler, `passthrough` of the transport.
    """

    def __init__(
        self, directory: Path, seed: int, sizes: Mapping[str, int], devices: int, **options: Any
    ) -> None:
        self.image = make_image(seed, sizes, devices=devices)
        self.tree = directory / "tree"
        self.paths: dict[str, Path] = {}
        for name in ("cache", "tree"):
            (directory / name).mkdir(exist_ok=True)
        self._settings = {
            "directory": str(directory),
            "seed": seed,
            "sizes": dict(sizes),
            "devices": devices,
            **options,
        }
        self._connection: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start a worker, and wait until it serves. Blocks."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(STARTING)
            kept = [] if self._connection is None else [self._connection]
            settings = {
                **self._settings,
                "channel": theirs.fileno(),
                "control_fd": self._connection,
            }
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.real.fuse_worker", json.dumps(settings)],
                pass_fds=[theirs.fileno(), *kept],
                cwd=PROJECT,
                env={"PYTHONPATH": f"{PROJECT}:{PROJECT / 'formats'}"},
                start_new_session=True,
            )
            theirs.close()
            said, fds, _, _ = socket.recv_fds(ours, 1 << 16, 1)
        assert fds, "the worker has ended"
        if self._connection is None:
            (self._connection,) = fds
        else:
            os.close(fds[0])
        self.paths = {name: Path(path) for name, path in json.loads(said).items()}

    def kill(self) -> None:
        """Kill the worker. Blocks."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(STARTING)

    def forget(self) -> None:
        """Kill the worker, and give the connection back: nobody has it. Blocks."""
        self.kill()
        if self._connection is not None:
            os.close(self._connection)
            self._connection = None

    def stop(self) -> None:
        """Have the worker stop, and give the connection back. Blocks."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(STARTING)
        if self._connection is not None:
            os.close(self._connection)
            self._connection = None
        assert status == 0, f"the worker ended with {status}"


async def _serve(settings: dict[str, Any]) -> None:
    image = make_image(settings["seed"], settings["sizes"], devices=settings["devices"])
    filler = UnreliableFiller(
        image,
        delay=settings.get("delay", 0.0),
        failing_share=settings.get("failing_share", 0.0),
    )
    directory = Path(settings["directory"])
    cache = DeviceCache(directory / "cache")
    cache.load()
    transport = FuseTransport(filler, cache, passthrough=settings.get("passthrough", False))
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await transport.start(directory / "tree", control_fd=settings["control_fd"])
    devices = {name: len(data) for name, data in image.devices.items()}
    if settings["control_fd"] is not None:
        await transport.adopt(devices)
    if settings.get("complete"):
        for name, data in image.devices.items():
            cache.open(name, len(data)).write_now(0, [memoryview(data)])
    paths = await transport.prepare(devices)
    said = json.dumps({name: str(path) for name, path in paths.items()}).encode()
    with socket.socket(fileno=settings["channel"]) as channel:
        socket.send_fds(channel, [said], [transport.control_fd])
    await ended.wait()
    await transport.stop()
    await cache.close()


if __name__ == "__main__":
    asyncio.run(_serve(json.loads(sys.argv[1])))
