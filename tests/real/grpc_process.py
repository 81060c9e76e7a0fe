"""A gRPC server in a process of its own, on a socket that its service manager keeps.

python -m tests.real.grpc_process SOCKET WORD       answers any call with the word, until killed
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from lazyimg.host.lasting_sockets import LastingSockets
from lazyimg.host.service_manager import ServiceManager

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).resolve().parents[2]


class _Answer(grpc.GenericRpcHandler):
    def __init__(self, word: bytes) -> None:
        self._word = word

    def service(self, _: grpc.HandlerCallDetails) -> Any:
        async def answer(_request: bytes, _context: object) -> bytes:
            return self._word

        return grpc.unary_unary_rpc_method_handler(answer)


def make_server(word: bytes) -> grpc.aio.Server:
    """Return a server that answers any call with a word; it is on no socket yet."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Answer(word),))
    return server


async def serve(path: Path, word: bytes) -> None:
    async with AsyncExitStack() as stack:
        server = make_server(word)
        sockets = LastingSockets(ServiceManager(os.environ), {})
        await sockets.start(server, path, "one", stack)
        print("ready", flush=True)  # noqa: T201
        await asyncio.Event().wait()


@contextmanager
def killed_server(path: Path, word: bytes, notify: Path) -> Iterator[None]:
    """Have a server until the block begins to end; then it is killed.

    Args:
        path: of its socket.
        word: what it answers.
        notify: the service manager's socket.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "tests.real.grpc_process", path, word],
        stdout=subprocess.PIPE,
        cwd=PROJECT,
        env={**os.environ, "NOTIFY_SOCKET": str(notify)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield
        finally:
            process.kill()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2].encode()))
