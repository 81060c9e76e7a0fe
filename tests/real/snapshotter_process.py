"""lazyimg's snapshots service in a process of its own. What is lazy is not mounted for real.

    python -m tests.real.snapshotter_process ROOT SOCKET [CHAIN]...     until it gets SIGTERM

The chains are lazy. It says "ready" on standard output.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lazyimg.snapshotter.grpc_server import start_server
from lazyimg.snapshotter.service import Snapshotter
from tests.fakes.lazy_images import FakeLazyImages

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).resolve().parents[2]


async def serve(root: Path, socket: Path, *chains: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    snapshotter = Snapshotter(root, FakeLazyImages(*chains), ["index=off"])
    await snapshotter.start()
    server = await start_server(socket, snapshotter)
    print("ready", flush=True)  # noqa: T201
    await stop.wait()
    await server.stop(None)
    await snapshotter.finish()
    await snapshotter.close()


def start_snapshotter(root: Path, socket: Path, *chains: str) -> subprocess.Popen[str]:
    """Start the service; it does not answer yet."""
    module = "tests.real.snapshotter_process"
    command = [sys.executable, "-m", module, str(root), str(socket), *chains]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT)


def wait_until_ready(process: subprocess.Popen[str]) -> None:
    """Wait until it answers; fails if it ends."""
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def kill(process: subprocess.Popen[str]) -> None:
    """Kill it, and wait until it is gone."""
    with process:
        process.kill()


@contextmanager
def running_snapshotter(root: Path, socket: Path, *chains: str) -> Iterator[subprocess.Popen[str]]:
    """Run the service until the block ends; a process that was killed is no failure."""
    with start_snapshotter(root, socket, *chains) as process:
        try:
            wait_until_ready(process)
            yield process
        finally:
            process.terminate()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]))
