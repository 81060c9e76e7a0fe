"""lazyimg's snapshots service in a thread, which calls every layer lazy whose image it is told.

with recording_snapshotter(directory) as snapshotter:
    ...  # a client has a containerd pull through snapshotter.socket
    snapshotter.labels     # of each layer, as they came
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from lazyimg.host.lasting_sockets import LastingSockets
from lazyimg.host.service_manager import ServiceManager
from lazyimg.snapshotter.grpc_server import listen
from lazyimg.snapshotter.service import Snapshotter
from lazyimg_formats.containerd.labels import parse_image_labels
from tests.fakes.lazy_images import FakeLazyImages

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from lazyimg.snapshotter.lifecycle import RemoteLayer, Unpacked


class Recording(NamedTuple):
    """A running service."""

    socket: Path
    labels: list[dict[str, str]]


class RecordingImages(FakeLazyImages):
    """Keeps the labels of every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.labels: list[dict[str, str]] = []

    async def find(
        self, chain: str, labels: Mapping[str, str], below: RemoteLayer | None
    ) -> RemoteLayer | Unpacked:
        self.labels.append(dict(labels))
        if parse_image_labels(labels) is not None:
            self.chains.add(chain)
        return await super().find(chain, labels, below)


@contextmanager
def recording_snapshotter(directory: Path) -> Iterator[Recording]:
    """Run the service until the block ends; all it has is below `directory`."""
    directory.mkdir(exist_ok=True)
    images = RecordingImages()
    running = Recording(directory / "socket", images.labels)
    ready, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        snapshotter = Snapshotter(directory / "root", images, ["index=off"])
        try:
            await snapshotter.start()
            async with AsyncExitStack() as stack:
                sockets = LastingSockets(ServiceManager({}), {})
                await listen(running.socket, snapshotter, sockets, stack)
                ready.set()
                await stop.wait()
        finally:
            ready.set()
            await snapshotter.close()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        yield running
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
