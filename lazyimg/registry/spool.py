"""Blobs of hosts that send the whole of one where a part was asked for.

A cold mirror, or a plain file server, answers a ranged request with 200 and everything. To pass
over what comes before the part would cost one whole transfer for each part. So the first such
answer is kept: its body goes to a file without a name, and every read of this blob, of the same
repository and access, waits there for its bytes, until the blob has been unused for `IDLE`. Then
the file goes, and the next read asks with a range again: a mirror that was cold has the blob now.
A read far behind what has come asks earlier, every `RETRY`, since a host may be warm, or another
machine, by then.

While it is known that a host does this, the first request for a blob is a probe: other reads of
that blob wait for its status, so that the host is not made to send the same blob several times.
Whatever the status, they all go on at once then; of a blob that was given in part, or that there
is no room for, there is no probe. Other blobs never wait.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
import time
from collections import OrderedDict
from contextlib import AsyncExitStack, aclosing, contextmanager
from typing import TYPE_CHECKING, Final

from lazyimg.errors import LazyimgError, RegistryError, StorageError
from lazyimg.registry.ranges import take_range

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Hashable, Iterator
    from pathlib import Path

IDLE: Final = 30.0
"""Seconds after its last read that a blob is kept, or received further."""

REMEMBER: Final = 600.0
"""Seconds for which a host is known to send whole blobs."""

RETRY: Final = 10.0
"""Seconds until a blob that is on its way is asked for in part again."""

PATIENCE: Final = 5.0
"""Seconds that a read waits for the status of another's request."""

MAX_KNOWN: Final = 4096
"""Blobs that are known to need no probe; the longest unused are forgotten first."""

AHEAD: Final = 16 << 20
"""Bytes behind what has come from which on a read asks another host, if there is one."""

PIECE: Final = 1 << 20
"""Bytes that are written at a time, at least."""


class Incoming:
    """An answer that is being received: of `size` bytes in all.

    Args:
        what: what messages call the blob.
        size: its bytes.
        answer: holds the answer open; closed when it is not needed any more.
        body: the answer's body.
        count: told of the bytes that come.
    """

    def __init__(
        self,
        what: str,
        size: int,
        answer: AsyncExitStack,
        body: AsyncIterator[bytes],
        count: Callable[[int], None],
    ) -> None:
        self.what = what
        self.size = size
        self.answer = answer
        self.body = body
        self.count = count


class SpoolFile:
    """A file without a name, made by the first write. Its methods are called in threads.

    Who is cancelled does not wait for its thread: whatever comes after `close` does nothing, and
    `close` waits for what has begun. Else a late thread would write to whichever file has the
    number then. All raise OSError.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._fd = -1
        self._closed = False

    def read(self, offset: int, length: int) -> bytes:
        """Give a part of what was written."""
        with self._lock:
            return os.pread(self._fd, length, offset) if self._fd >= 0 else b""

    def write(self, offset: int, data: bytes) -> None:
        """Write all of `data`."""
        view = memoryview(data)
        with self._lock:
            while view and not self._closed:
                written = os.pwrite(self._open(), view, offset)
                offset += written
                view = view[written:]

    def _open(self) -> int:
        if self._fd < 0:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._directory) as file:
                self._fd = os.dup(file.fileno())
        return self._fd

    def close(self) -> None:
        """Give its space back."""
        with self._lock:
            self._closed = True
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


class Spooled:
    """A blob in the spool, or on its way there.

    Args:
        incoming: where it comes from.
        file: that it goes to; closed by `close`.
        unused: called when it has failed, or nobody has read it for `IDLE`.
    """

    def __init__(self, incoming: Incoming, file: SpoolFile, unused: Callable[[], None]) -> None:
        self._incoming = incoming
        self._file = file
        self._unused = unused
        self._received = 0
        self._failure: LazyimgError | None = None
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._readers = 0
        self._closed = False
        self._left = asyncio.Event()
        self._left.set()
        self._timer: asyncio.TimerHandle | None = None
        self._task = asyncio.create_task(self._receive())

    @property
    def received(self) -> int:
        """Bytes that have come."""
        return self._received

    async def read(self, offset: int, length: int) -> bytes:
        """Give a part of the blob, when it has come.

        Raises:
            RegistryError: it will not come; it can be tried again.
            StorageError: the disk is full or fails.
        """
        if self._closed:
            raise self._gone()
        self._readers += 1
        self._left.clear()
        if self._timer is not None:
            self._timer.cancel()
        try:
            await self._wait_for(offset + length)
            data = await asyncio.to_thread(self._file.read, offset, length)
        except OSError as error:
            raise _storage_error(self._incoming.what, error) from error
        finally:
            self._readers -= 1
            self._rest()
        if len(data) != length:
            raise StorageError(self._incoming.what, "its spooled file is cut short")
        return data

    async def _wait_for(self, end: int) -> None:
        if self._received < end and self._failure is None:
            future = asyncio.get_running_loop().create_future()
            self._waiting.append((end, future))
            await future
        if self._received < end and self._failure is not None:
            raise self._failure

    def _rest(self) -> None:
        """Start the time after which it is unused."""
        if not self._readers:
            self._left.set()
            self._timer = asyncio.get_running_loop().call_later(IDLE, self._unused)

    async def _receive(self) -> None:
        incoming = self._incoming
        try:
            async with (
                incoming.answer,
                aclosing(
                    take_range(incoming.what, incoming.body, 0, incoming.size, last=True)
                ) as pieces,
            ):
                parts: list[bytes] = []
                async for piece in pieces:
                    incoming.count(len(piece))
                    parts.append(piece)
                    if sum(map(len, parts)) >= PIECE:
                        await self._write(b"".join(parts))
                        parts = []
                await self._write(b"".join(parts))
        except LazyimgError as error:
            self._fail(error)
        except OSError as error:
            self._fail(_storage_error(incoming.what, error))
        finally:
            if self._received < incoming.size and self._failure is None:  # cancelled
                self._fail(self._gone())

    def _gone(self) -> RegistryError:
        return RegistryError(self._incoming.what, "is not received further", retryable=True)

    async def _write(self, data: bytes) -> None:
        await asyncio.to_thread(self._file.write, self._received, data)
        self._received += len(data)
        self._wake()

    def _fail(self, error: LazyimgError) -> None:
        self._failure = error
        self._wake()
        self._unused()

    def _wake(self) -> None:
        failed = self._failure is not None
        for end, future in self._waiting:
            if (failed or end <= self._received) and not future.done():
                future.set_result(None)
        self._waiting = [one for one in self._waiting if not one[1].done()]

    async def close(self) -> None:
        """End receiving, fail who waits, and give the disk space back."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._left.wait()  # they fail at once, or read what is there
        await asyncio.to_thread(self._file.close)


class Spool:
    """All blobs that are sent whole.

    Args:
        directory: where files go; made when needed. None: nothing is spooled.
        capacity: bytes of all files together.
        clock: seconds that only ever grow.
    """

    def __init__(
        self,
        directory: Path | None,
        capacity: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._capacity = capacity if directory is not None else 0
        self._clock = clock
        self._used = 0
        self._blobs: dict[Hashable, Spooled] = {}
        self._sizes: dict[Hashable, int] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._ignorant: dict[str, float] = {}
        self._probes: dict[Hashable, asyncio.Future[None]] = {}
        self._free: OrderedDict[Hashable, None] = OrderedDict()
        self._due: dict[Hashable, float] = {}

    def find(self, key: Hashable) -> Spooled | None:
        """Give a blob that is here or on its way."""
        return self._blobs.get(key)

    def is_due(self, key: Hashable) -> bool:
        """Tell whether a blob that is on its way should be asked for in part again; once."""
        if self._clock() < self._due[key]:
            return False
        self._due[key] = self._clock() + RETRY
        return True

    def is_probed(self, key: Hashable) -> bool:
        """Tell whether the first request for a blob waits for its status."""
        return key in self._probes

    async def wait_for_probe(self, key: Hashable) -> None:
        """Wait until it has it, or has failed, for `PATIENCE` at most."""
        await asyncio.wait([self._probes[key]], timeout=PATIENCE)

    @contextmanager
    def probe(self, host: str, key: Hashable) -> Iterator[None]:
        """Ask `host` for a part of a blob inside the block, which ends with the status."""
        if (
            not self._capacity
            or key in self._free
            or key in self._probes
            or self._ignorant.get(host, 0.0) < self._clock()
        ):
            yield
            return
        probe = self._probes[key] = asyncio.get_running_loop().create_future()
        try:
            yield
        finally:
            del self._probes[key]
            probe.set_result(None)

    def note_part(self, host: str, key: Hashable) -> None:
        """Learn that `host` has sent a part of a blob as a part."""
        if self._ignorant.get(host, 0.0) >= self._clock():
            self._set_free(key)

    def _set_free(self, key: Hashable) -> None:
        self._free[key] = None
        self._free.move_to_end(key)
        if len(self._free) > MAX_KNOWN:
            self._free.popitem(last=False)

    async def start(self, host: str, key: Hashable, incoming: Incoming) -> Spooled | None:
        """Receive an answer of `host` from now on, or give what is being received already.

        The answer is taken over, and closed if it is not needed.

        Returns:
            None if there is no room: then the answer is still the caller's.
        """
        self._ignorant[host] = self._clock() + REMEMBER
        self._free.pop(key, None)
        known = self._blobs.get(key)
        if known is not None:
            await incoming.answer.aclose()
            return known
        if self._directory is None or self._used + incoming.size > self._capacity:
            self._set_free(key)
            return None
        self._used += incoming.size
        blob = Spooled(incoming, SpoolFile(self._directory), lambda: self._drop(key, blob))
        self._blobs[key], self._sizes[key] = blob, incoming.size
        self._due[key] = self._clock() + RETRY
        return blob

    def drop(self, key: Hashable) -> None:
        """Forget a blob: its bytes are wrong."""
        blob = self._blobs.get(key)
        if blob is not None:
            self._drop(key, blob)

    def _drop(self, key: Hashable, blob: Spooled) -> None:
        if self._blobs.get(key) is not blob:
            return
        del self._blobs[key], self._due[key]
        size = self._sizes.pop(key)
        task = asyncio.create_task(self._end(blob, size))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _end(self, blob: Spooled, size: int) -> None:
        await blob.close()
        self._used -= size

    async def close(self) -> None:
        """Drop everything."""
        for key, blob in list(self._blobs.items()):
            self._drop(key, blob)
        if self._closing:
            await asyncio.wait(self._closing)


def _storage_error(what: str, error: OSError) -> StorageError:
    return StorageError(what, f"cannot be spooled: {error.strerror}")
