"""lazyimg's snapshots service in a process of its own. What is lazy is not mounted for real.

    python -m tests.real.snapshotter_process ROOT SOCKET [CHAIN]...     until it gets SIGTERM

The chains are lazy. It says "ready" on standard output.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lazyimg.host.service_manager import ServiceManager
from lazyimg.host.waiting import greet_callers
from lazyimg.supervisor.command import LogSettings, supervisor_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lazyimg.host.waiting import Waiting

START = 60.0
"""Seconds that its start may take."""

PROJECT = Path(__file__).resolve().parents[2]


async def serve(
    manager: ServiceManager, waiting: Mapping[str, Waiting], root: Path, path: Path, *chains: str
) -> None:
    from lazyimg.host.lasting_sockets import LastingSockets  # noqa: PLC0415  callers come first
    from lazyimg.snapshotter.grpc_server import listen  # noqa: PLC0415
    from lazyimg.snapshotter.service import Snapshotter  # noqa: PLC0415
    from tests.fakes.lazy_images import FakeLazyImages  # noqa: PLC0415

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    snapshotter = Snapshotter(root, FakeLazyImages(*chains), ["index=off"])
    await snapshotter.start()
    async with AsyncExitStack() as stack:
        await listen(path, snapshotter, LastingSockets(manager, waiting), stack)
        print("ready", flush=True)  # noqa: T201
        manager.notify("READY=1")
        await stop.wait()
    await snapshotter.close()


def snapshotter_command(root: Path, path: Path, *chains: str) -> list[str]:
    """Return the service's command; it is run in the project's directory."""
    module = "tests.real.snapshotter_process"
    return [sys.executable, "-m", module, str(root), str(path), *chains]


def start_snapshotter(root: Path, path: Path, *chains: str) -> subprocess.Popen[str]:
    """Start the service; it does not answer yet."""
    command = snapshotter_command(root, path, *chains)
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT)


@contextmanager
def supervised_snapshotter(root: Path, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the service below lazyimg's supervisor until the block ends; gives the supervisor."""
    command = supervisor_command(snapshotter_command(root, path), LogSettings("info", "text"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        notify = path.with_name("notify")
        channel.bind(str(notify))
        channel.settimeout(START)
        environment = {**os.environ, "NOTIFY_SOCKET": str(notify)}
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, cwd=PROJECT, env=environment
        ) as process:
            try:
                assert channel.recv(4096) == b"READY=1"
                yield process
            finally:
                process.terminate()
        notify.unlink()


def wait_until_ready(process: subprocess.Popen[str]) -> None:
    """Wait until it answers; fails if it ends."""
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def kill(process: subprocess.Popen[str]) -> None:
    """Kill it, and wait until it is gone."""
    with process:
        process.kill()


@contextmanager
def running_snapshotter(root: Path, path: Path, *chains: str) -> Iterator[subprocess.Popen[str]]:
    """Run the service until the block ends; a process that was killed is no failure."""
    with start_snapshotter(root, path, *chains) as process:
        try:
            wait_until_ready(process)
            yield process
        finally:
            process.terminate()


if __name__ == "__main__":
    manager = ServiceManager(os.environ)
    waiting = greet_callers(manager)
    root, path, *chains = sys.argv[1:]
    asyncio.run(serve(manager, waiting, Path(root), Path(path), *chains))
