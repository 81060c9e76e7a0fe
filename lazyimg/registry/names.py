"""Names of hosts -> addresses, as the machine has them, asked for in threads of their own.

getaddrinfo(3) blocks, for many seconds where the name service does not answer, and cannot be
ended. In the event loop's own threads it would keep everything else that blocks waiting.
"""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final

from aiohttp.abc import AbstractResolver, ResolveResult

if TYPE_CHECKING:
    from typing import Any

THREADS: Final = 16
"""Names that are asked for at a time."""

_NUMERIC: Final = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


class Names(AbstractResolver):
    """Asks the name service; made and used in one event loop."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "names")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Give the addresses of a host. Raises OSError."""
        asking = partial(
            socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG
        )
        found = await asyncio.get_running_loop().run_in_executor(self._threads, asking)
        return [
            ResolveResult(
                hostname=host,
                host=_text_of(address),
                port=port,
                family=kind,
                proto=protocol,
                flags=_NUMERIC,
            )
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        """Ask no more; what is under way ends by itself."""
        self._threads.shutdown(wait=False)


def _text_of(address: tuple[Any, ...]) -> str:
    """Give an address as text; of a link-local one, its interface is a part."""
    scope = address[3] if len(address) > 3 else 0
    return f"{address[0]}%{scope}" if scope else str(address[0])
