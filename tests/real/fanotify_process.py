"""The fanotify transport in a process of its own, which may be killed; its parent keeps its fds.

python -m tests.real.fanotify_process SETTINGS      (JSON; started by `FanotifyProcess`)
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from lazyimg.cache.device_cache import DeviceCache
from lazyimg.transports.fanotify.guarding import NAME as GUARD
from lazyimg.transports.fanotify.transport import FanotifyTransport

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lazyimg.fill.ports import Sink

CONTROL: Final = "fanotify"
PIECE: Final = 1 << 16
"""Bytes that a fill is widened to."""

_TIMEOUT: Final = 30.0
_PROJECT: Final = Path(__file__).resolve().parents[2]


class FanotifyProcess:
    """A process that serves devices; this one is its supervisor.

    Args:
        directory: for its state, on a disk.
        devices: their names and bytes.
        held: whether its fills never end.

    Attributes:
        paths: where the devices are mounted from.
        kept: fds that outlive the process, by name.
    """

    def __init__(self, directory: Path, devices: Mapping[str, bytes], *, held: bool) -> None:
        self.directory = directory
        self.kept: dict[str, int] = {}
        for name in ("source", "devices", "fanotify"):
            (directory / name).mkdir(exist_ok=True)
        for name, data in devices.items():
            (directory / "source" / name).write_bytes(data)
        self.paths: dict[str, Path] = {}
        self.process: subprocess.Popen[str]
        self._channel: socket.socket
        self.start(held=held)

    def start(self, *, held: bool) -> None:
        """Start it, with the fds of the one before."""
        self._channel, theirs = socket.socketpair()
        self._channel.settimeout(_TIMEOUT)
        settings = {
            "directory": str(self.directory),
            "held": held,
            "channel": theirs.fileno(),
            "kept": self.kept,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.real.fanotify_process", json.dumps(settings)],
            cwd=_PROJECT,
            env=os.environ | {"PYTHONPATH": str(_PROJECT / "formats")},
            stdin=subprocess.PIPE,
            pass_fds=[theirs.fileno(), *self.kept.values()],
            text=True,
        )
        theirs.close()
        while True:
            message, fds, _, _ = socket.recv_fds(self._channel, 1 << 16, 1)
            assert message, "it has not started"
            said = json.loads(message)
            if "keep" in said:
                self.kept[said["keep"]] = fds[0]
                self._channel.send(b"k")
                continue
            self.paths = {name: Path(path) for name, path in said["paths"].items()}
            return

    def kill(self) -> None:
        """Kill it, as a crash would end it."""
        self.process.kill()
        self.process.wait(_TIMEOUT)
        self._stdin.close()
        self._channel.close()

    def forget(self) -> None:
        """Close what outlives the process: there is no supervisor any more."""
        for fd in self.kept.values():
            os.close(fd)
        self.kept = {}

    def ask(self) -> dict[str, Any]:
        """Give what it has counted, and whether the devices are complete."""
        self._stdin.write("ask\n")
        self._stdin.flush()
        answer: dict[str, Any] = json.loads(self._channel.recv(1 << 16))
        return answer

    def stop(self) -> None:
        """End it by itself."""
        if GUARD in self.kept:
            os.close(self.kept.pop(GUARD))  # it waits for its guard
        self._stdin.close()
        assert self.process.wait(_TIMEOUT) == 0
        self._channel.close()

    @property
    def _stdin(self) -> IO[str]:
        assert self.process.stdin is not None
        return self.process.stdin

    def close(self) -> None:
        """End it somehow."""
        if self.process.poll() is None:
            self.kill()
        self._stdin.close()
        self._channel.close()
        self.forget()


class SourceFiller:
    """Fills from files."""

    def __init__(self, directory: Path, *, held: bool) -> None:
        self._directory = directory
        self._held = held
        self.fills = 0

    def size(self, cookie: str) -> int | None:
        return (self._directory / cookie).stat().st_size

    def read_local(self, _: str, __: int, ___: int, ____: memoryview, /) -> int | None:
        return None

    async def fill(self, cookie: str, offset: int, length: int, sink: Sink) -> None:
        self.fills += 1
        if self._held:
            await asyncio.Event().wait()
        start = offset - offset % PIECE
        with (self._directory / cookie).open("rb") as file:
            file.seek(start)
            data = file.read(-(-(offset + length - start) // PIECE) * PIECE)
        await sink.write(start, memoryview(data))


class ChannelKeeper:
    """Has the parent keep fds."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def keep(self, name: str, fd: int) -> None:
        socket.send_fds(self._channel, [json.dumps({"keep": name}).encode()], [fd])
        assert self._channel.recv(1) == b"k"

    def forget(self, name: str) -> None:
        """Leave it to the parent."""


async def serve(settings: dict[str, Any]) -> None:
    """Serve until standard input ends."""
    channel = socket.socket(fileno=settings["channel"])
    directory, kept = Path(settings["directory"]), settings["kept"]
    keeper = ChannelKeeper(channel)
    cache = DeviceCache(directory / "devices")
    cache.load()
    filler = SourceFiller(directory / "source", held=settings["held"])
    transport = FanotifyTransport(filler, cache, keeper=keeper)
    await transport.start(
        directory / "fanotify", control_fd=kept.get(CONTROL), guard_fd=kept.get(GUARD)
    )
    if CONTROL not in kept:
        keeper.keep(CONTROL, transport.control_fd)
    sizes = {path.name: path.stat().st_size for path in (directory / "source").iterdir()}
    paths = await transport.prepare(sizes)
    channel.send(json.dumps({"paths": {name: str(path) for name, path in paths.items()}}).encode())
    while await asyncio.to_thread(sys.stdin.readline):
        answer = {
            "fills": filler.fills,
            "reads": transport.counters.reads,
            "complete": all([(await transport.opened(name)).complete for name in sizes]),
        }
        channel.send(json.dumps(answer).encode())
    await transport.stop()
    await cache.close()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(serve(json.loads(sys.argv[1])))
