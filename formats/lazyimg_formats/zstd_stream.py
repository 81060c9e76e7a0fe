"""Where a zstd stream that arrives in pieces can be cut, so that no part of it decodes to much.

A block decodes to at most 128 KiB, and its header says how many bytes it takes in the stream. So
what a part can decode to is known without decoding it, however well it is compressed.

| state | waits for | leads to |
|---|---|---|
| start | 5 bytes | frame header, skippable header |
| frame header | as many bytes as the fifth one says | block header |
| skippable header | 8 bytes | start, behind its payload |
| block header | 3 bytes | itself, behind the block; start, behind the frame's last one |

Source: RFC 8878, "Zstandard Compression and the application/zstd Media Type".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazyimg_formats.errors import FormatError
from lazyimg_formats.zstd_frames import (
    BLOCK_HEADER,
    CHECKSUM,
    MAX_BLOCK,
    SKIPPABLE_HEADER,
    START,
    is_skippable,
    parse_block_header,
    parse_frame_header,
    parse_header_length,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class StreamCutter:
    """Takes a stream, in whatever pieces it arrives.

    Args:
        most: bytes from which on a part ends with the block that reaches them, decoded. So a part
            holds less than `most` and two blocks more.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._position = 0  # in the stream, of the next byte
        self._decoded = 0  # bytes of the part that is being cut, at most
        self._skip = 0  # bytes up to the next header
        self._held = b""  # of a header that is not complete
        self._take: Callable[[bytes], None] = self._take_start
        self._want = START
        self._largest = MAX_BLOCK  # of this frame, decoded
        self._trailer = 0  # bytes behind its last block

    def cut(self, data: bytes) -> Iterator[memoryview]:
        """Take the next bytes; give them in parts, in their order and without copying them.

        Raises:
            FormatError: they are no zstd stream. What comes before is given first.
        """
        view = memoryview(data)
        start = at = 0
        self._decoded = self._largest if self._skip else 0  # a block that has begun
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
                continue
            if self._decoded >= self._most:
                yield view[start:at]
                start, self._decoded = at, 0
            header = self._held + data[at : at + self._want - len(self._held)]
            at += len(header) - len(self._held)
            self._held = header
            if len(header) == self._want:
                begin = self._position + at - len(header)
                try:
                    self._take(header)
                except FormatError as error:
                    problem = f"{error.problem} of what begins at byte {begin}"
                    raise FormatError("zstd", problem) from error
        self._position += len(data)
        if start < at:
            yield view[start:]

    def finish(self) -> None:
        """Tell that there are no more bytes.

        Raises:
            FormatError: a frame is not complete.
        """
        if self._skip or self._held or self._want != START:
            raise FormatError("zstd", "cut short")

    def _wait(self, take: Callable[[bytes], None], want: int, held: bytes = b"") -> None:
        self._take, self._want, self._held = take, want, held

    def _take_start(self, start: bytes) -> None:
        if is_skippable(start):
            self._wait(self._take_skippable, SKIPPABLE_HEADER, start)
        else:
            self._wait(self._take_frame, parse_header_length(start), start)

    def _take_skippable(self, header: bytes) -> None:
        self._skip = int.from_bytes(header[4:], "little")
        self._wait(self._take_start, START)

    def _take_frame(self, data: bytes) -> None:
        header = parse_frame_header(data)
        self._trailer = CHECKSUM * header.has_checksum
        self._largest = min(
            MAX_BLOCK, header.window_size
        )  # what it says of its content may be wrong
        self._wait(self._take_block, BLOCK_HEADER)

    def _take_block(self, header: bytes) -> None:
        self._skip, is_last = parse_block_header(header)
        self._decoded += self._largest
        self._held = b""
        if is_last:
            self._skip += self._trailer
            self._wait(self._take_start, START)
