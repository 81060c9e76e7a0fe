"""The decoded spans of the last moments.

A read that comes just too late to join a fill, or that needs the other half of a span, costs no
second fetch.
"""

from __future__ import annotations

from collections import OrderedDict

from lazyimg.host.mutex import Mutex


class RecentSpans:
    """Least recently used spans are dropped first. Any thread may call.

    Args:
        capacity: bytes kept. A span of more than a quarter of it is not kept.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._spans: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._lock = Mutex()
        self.size = 0

    def get(self, device: str, span: int) -> bytes | None:
        """Give a span's decoded bytes, if they are still here."""
        with self._lock:
            data = self._spans.get((device, span))
            if data is not None:
                self._spans.move_to_end((device, span))
            return data

    def put(self, device: str, span: int, data: bytes) -> None:
        """Keep a span's decoded bytes for a while."""
        if len(data) > self._capacity // 4:
            return
        with self._lock:
            old = self._spans.pop((device, span), b"")
            self._spans[device, span] = data
            self.size += len(data) - len(old)
            while self.size > self._capacity:
                self.size -= len(self._spans.popitem(last=False)[1])

    def drop_device(self, device: str) -> None:
        """Forget all spans of a device."""
        with self._lock:
            for key in [key for key in self._spans if key[0] == device]:
                self.size -= len(self._spans.pop(key))
