"""The beginning of an HTTP/2 connection, as far as a server may begin it without a server.

Source: RFC 9113, sections 3.4 (connection preface), 4.1 (frame format), 6.5 (SETTINGS).
"""

from __future__ import annotations

from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends first."""

GREETING: Final = bytes.fromhex("000000 04 00 00000000")
"""What a server sends first: SETTINGS, here with nothing but the defaults. More may follow."""

ACKNOWLEDGEMENT: Final = bytes.fromhex("000000 04 01 00000000")
"""What a client answers to SETTINGS."""

_HEADER: Final = 9  # bytes of a frame's header: length of the payload (3), type, flags, stream (4)
_LENGTH: Final = 3


class GreetedClient:
    """What a client sends, without its acknowledgement of a greeting.

    A server that did not send the greeting itself takes the acknowledgement for an error. Settings
    are acknowledged in their order, so it is the first one.
    """

    def __init__(self) -> None:
        self._header = bytearray()
        self._left = len(PREFACE)  # bytes until the next header
        self._found = False

    def feed(self, data: bytes) -> bytes:
        """Take in what the client sends, cut anywhere; gives what is for the server."""
        if self._found:
            return data
        kept = bytearray()
        while data and not self._found:
            kept += data[: self._left]
            taken = min(self._left, len(data))
            self._left, data = self._left - taken, data[taken:]
            missing = _HEADER - len(self._header)
            if data:
                self._header += data[:missing]
                data = data[missing:]
            if len(self._header) == _HEADER:
                kept += self._end_header()
        return bytes(kept) + data

    def _end_header(self) -> bytes:
        header = bytes(self._header)
        self._header.clear()
        if header == ACKNOWLEDGEMENT:
            self._found = True
            return b""
        self._left = int.from_bytes(header[:_LENGTH])
        return header
