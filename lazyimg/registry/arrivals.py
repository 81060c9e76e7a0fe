"""The bytes of a large answer, in few and large pieces.

Without more, the event loop is woken for each packet's worth of bytes, and a thousand times for a
large answer: switches between processes and turns of the loop that cost more than the bytes. So the
kernel is told to wake us only when many have come (SO_RCVLOWAT), or all that are to come: never to
wait for more than that, or it would wait for ever.

Only where the bytes of the answer are those of the socket: not over TLS, whose records may have
been taken from the socket and not be decrypted yet. An answer that ends early, and an error, wake
us in any case.

Source: socket(7), SO_RCVLOWAT; tcp_set_rcvlowat in net/ipv4/tcp.c.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aiohttp import ClientResponse

PIECE: Final = 1 << 18
"""Bytes to be woken for: what asyncio takes from a socket in one call."""

LARGE: Final = 1 << 20
"""Bytes of an answer from which on that is worth it. A slow host has to send a `PIECE` within the
read timeout, which is less than a read of so many bytes needs to meet its own deadline."""


class _Socket(Protocol):
    """What is used of one."""

    def setsockopt(self, level: int, name: int, value: int, /) -> None: ...


async def receive(response: ClientResponse) -> AsyncGenerator[bytes]:
    """Give an answer's body as it comes, to somebody who takes each piece at once.

    The connection is used again as soon as the last byte has come: until that was taken, the next
    answer would wait. Close the generator when it is not used up.
    """
    found = _find_socket(response)
    body = response.content
    if found is None:
        async for piece in body.iter_any():
            yield piece
        return
    waited = _Wait(found)
    length = response.content_length or 0
    try:
        waited.set(min(PIECE, length - body.total_bytes))
        async for piece in body.iter_any():
            waited.set(min(PIECE, length - body.total_bytes))
            yield piece
    finally:
        waited.set(1)


class _Wait:
    """The bytes that the kernel waits for before it wakes us."""

    def __init__(self, found: _Socket) -> None:
        self._socket = found
        self._size = 1

    def set(self, size: int) -> None:
        """Wait for `size` bytes, or any if that is less than one."""
        size = max(size, 1)
        if size != self._size:
            with suppress(OSError):  # it is closed
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
            self._size = size


def _find_socket(response: ClientResponse) -> _Socket | None:
    """Give the socket of a large answer whose bytes it gives as they are."""
    connection = response.connection  # None when everything has come
    transport = None if connection is None else connection.transport
    if transport is None or (response.content_length or 0) < LARGE:
        return None
    if transport.get_extra_info("sslcontext") is not None:
        return None
    found: _Socket | None = transport.get_extra_info("socket")
    return found
