"""The loop: requests from the kernel to the protocol, its actions to the kernel.

See the package's docstring for threads and rules.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from errno import EIO
from threading import Thread
from typing import TYPE_CHECKING, Final

from lazyimg.errors import LazyimgError
from lazyimg.host.mutex import Mutex
from lazyimg.logs import Repeats
from lazyimg.transports.cachefiles.cull import run_culling
from lazyimg.transports.cachefiles.object_file import ZEROS, ObjectFile, new_buffer
from lazyimg.transports.cachefiles.protocol import (
    Action,
    CloseFd,
    Complete,
    Fill,
    OpenObject,
    Orphan,
    PendingRead,
    Protocol,
    Reply,
)
from lazyimg.transports.cachefiles.sink import ObjectSink, WriterPool
from lazyimg.transports.counters import Counters
from lazyimg_formats.cachefiles.messages import (
    OpenRequest,
    ReadRequest,
    Request,
    fail_open,
    parse_request,
    refuse_unreadable,
)
from lazyimg_formats.device_table import BLOCK_SIZE
from lazyimg_formats.errors import FormatError

if TYPE_CHECKING:
    from lazyimg.host.space import CacheSpace
    from lazyimg.transports.cachefiles.ports import KernelDevice
    from lazyimg.transports.ports import Filler

LOCAL_WINDOW: Final = 1 << 18
"""Bytes of local data to write at least for one READ: the kernel reads a bootstrap block by block,
and what is already there it does not ask for."""

LOCAL_LIMIT: Final = 4 << 20
"""Bytes of a READ that the thread answers by itself: others wait meanwhile."""

CULL_PAUSE: Final = 5.0
"""Seconds between two rounds of culling: the kernel notices what was freed at its next write."""

_log = logging.getLogger(__name__)

_Job = tuple[Action, ObjectFile | None]


class Server:
    """Serves one binding, from `start` to `stop`.

    Args:
        device: bound; closed by `stop`.
        filler: knows the objects.
        space: of the cache directory.
    """

    def __init__(self, device: KernelDevice, filler: Filler, space: CacheSpace) -> None:
        self.counters = Counters()
        self._device = device
        self._filler = filler
        self._space = space
        self._protocol = Protocol()
        self._files: dict[int, ObjectFile] = {}
        self._lock = Mutex()  # protocol, files, counters
        self._writers = WriterPool()
        self._buffer = new_buffer()  # of the thread, as the next
        self._absent: list[tuple[PendingRead, ObjectFile]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False  # of the event loop
        self._failures = Repeats()
        self._loop: asyncio.AbstractEventLoop
        self._thread = Thread(target=self._run, name="cachefiles", daemon=True)
        self._culling: Thread | None = None
        self._cull_after = 0.0
        self._culled = True  # no round is under way
        self._ending = False
        self._opening = asyncio.Event()

    def start(self) -> None:
        """Begin to answer; call it in the event loop that shall run the fills."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Fail what is pending, give every fd back, end the threads. Readers never hang."""
        with self._lock:
            jobs = self._resolve(self._protocol.begin_stop())
        self._perform(jobs, failed=True)
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._writers.close()
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        self._ending = True
        self._device.wake()
        self._thread.join()
        if self._culling is not None:
            self._culling.join()
        with self._lock:
            jobs = self._resolve(self._protocol.end_stop())
        self._perform(jobs, failed=True)
        self._device.close()

    def find(self, volume: str, cookie: str) -> tuple[OpenObject, ObjectFile] | None:
        """Give the open object of a cookie, and its file."""
        with self._lock:
            opened = self._protocol.find(volume, cookie)
            return None if opened is None else (opened, self._files[opened.fd])

    async def opened(self, volume: str, cookie: str) -> tuple[OpenObject, ObjectFile]:
        """Wait until the kernel has opened an object; give it and its file."""
        while (found := self.find(volume, cookie)) is None:
            await self._opening.wait()
        return found

    def _tell_opening(self) -> None:
        self._opening.set()
        self._opening = asyncio.Event()

    def sink(self, opened: OpenObject, file: ObjectFile) -> ObjectSink:
        """Give the sink of an open object."""
        return ObjectSink(file, opened.cookie, self._space, self._writers)

    # The thread.

    def _run(self) -> None:
        while True:
            pause = self._cull_after - time.monotonic()
            ready = self._device.wait(
                culling=pause <= 0 and self._culled, timeout=pause if pause > 0 else None
            )
            if ready.culling:
                self._start_culling()
            if ready.requests:
                self._drain()
            if self._ending:
                self._drain()
                return

    def _drain(self) -> None:
        """Take the requests that wait; what cannot be answered here goes to the loop together."""
        try:
            self._take_all()
        finally:
            self._hand_over()

    def _take_all(self) -> None:
        while True:
            try:
                message = self._device.read_message()
            except OSError as error:  # out of fds: the kernel has failed that OPEN itself
                _log.error("cannot take a request of the kernel: %s", error)
                return
            if not message:
                return
            try:
                self._receive(parse_request(message))
            except FormatError as error:
                self._refuse(refuse_unreadable(message, EIO))
                _log.error("a request of the kernel is not understood: %s", error)
            except Exception:
                _log.exception("a request of the kernel could not be handled")

    def _receive(self, request: Request) -> None:
        if isinstance(request, OpenRequest):
            self._receive_open(request)
            return
        with self._lock:
            if isinstance(request, ReadRequest):
                jobs = self._resolve(self._protocol.receive_read(request))
            else:
                jobs = self._resolve(self._protocol.receive_close(request))
        self._perform(jobs, failed=True)

    def _receive_open(self, request: OpenRequest) -> None:
        try:
            file = self._device.adopt(request.fd)
            size = self._size(request.cookie)
            with self._lock:
                self._files[request.fd] = file
                jobs = self._resolve(self._protocol.receive_open(request, size))
                if len(jobs) == 1:
                    self.counters.opens += 1
                else:
                    self.counters.opens_refused += 1
        except Exception:  # whatever it is: somebody waits for an answer, unkillably
            self._refuse(fail_open(request.msg_id, EIO))
            raise
        self._perform(jobs, failed=True)
        self._loop.call_soon_threadsafe(self._tell_opening)

    def _refuse(self, command: bytes | None) -> None:
        if command is not None:
            with suppress(OSError):  # nobody waits for it any more
                self._device.write_command(command)

    def _size(self, cookie: bytes) -> int | None:
        try:
            return self._filler.size(cookie.decode("ascii"))
        except UnicodeDecodeError:
            return None
        except Exception:  # its duty is not to; but somebody waits for an answer, unkillably
            _log.exception("the size of %r is not known", cookie)
            return None

    # Actions: in the thread and in the event loop.

    def _resolve(self, actions: list[Action]) -> list[_Job]:
        """Find each action's file, under the lock: its number may mean another object later."""
        jobs: list[_Job] = []
        for action in actions:
            if isinstance(action, Fill):
                jobs.append((action, self._files[action.read.object.fd]))
            elif isinstance(action, Complete):
                jobs.append((action, self._files[action.fd]))
            elif isinstance(action, CloseFd):
                jobs.append((action, self._files.pop(action.fd)))
            else:
                jobs.append((action, None))
        return jobs

    def _perform(self, jobs: list[_Job], *, failed: bool) -> None:
        for action, file in jobs:
            if file is None:
                self._answer(action)
            elif isinstance(action, Fill):
                self._fill(action.read, file)
            elif isinstance(action, Complete):
                self._complete(file, action.msg_id, failed=failed)
            else:
                file.close()

    def _answer(self, action: Action) -> None:
        """Do what needs no object."""
        if isinstance(action, Reply):
            self._reply(action)
        elif isinstance(action, Orphan):
            _log.error("READ of object %d, which is not open", action.request.object_id)

    def _complete(self, file: ObjectFile, msg_id: int, *, failed: bool) -> None:
        try:
            known = file.complete(msg_id)
        except OSError as error:
            _log.error("READ %d cannot be completed: %s", msg_id, error)
            known = False
        with self._lock:
            if not known:
                self.counters.reads_lost += 1
            elif failed:
                self.counters.reads_failed += 1
            else:
                self.counters.reads += 1

    def _reply(self, reply: Reply) -> None:
        try:
            self._device.write_command(reply.command)
        except OSError as error:
            _log.warning("the kernel takes no answer to an OPEN: %s", error)
            with self._lock:
                jobs = self._resolve(self._protocol.abandon(reply.object_id))
            self._perform(jobs, failed=True)

    def _finish(self, read: PendingRead, *, failed: bool) -> None:
        with self._lock:
            jobs = self._resolve(self._protocol.finish(read))
        self._perform(jobs, failed=failed)

    def _fill(self, read: PendingRead, file: ObjectFile) -> None:
        """Write what is local; leave the rest to a task in the event loop."""
        try:
            local = self._fill_locally(read, file)
        except Exception:
            self._finish(read, failed=True)
            raise
        if local:
            self._finish(read, failed=False)
            self._hand_over()  # this took a while
        else:
            self._absent.append((read, file))

    def _hand_over(self) -> None:
        """Let the event loop fill what was found to be absent: waking it costs more than a read."""
        absent, self._absent = self._absent, []
        if not absent:
            return
        try:
            self._loop.call_soon_threadsafe(self._start_filling, absent)
        except RuntimeError:  # it is closed
            for read, _ in absent:
                self._finish(read, failed=True)

    def _fill_locally(self, read: PendingRead, file: ObjectFile) -> bool:
        """Write the whole range from memory, piece by piece; gives whether that could be done."""
        offset, stop = read.offset, read.offset + read.length
        if read.length > LOCAL_LIMIT:
            return False
        while offset < stop:
            length = min(stop - offset, len(self._buffer))
            buffer = self._buffer[: max(length, min(read.object.size - offset, LOCAL_WINDOW))]
            size = self._filler.read_local(read.object.cookie, offset, length, buffer)
            if size is None:
                return False
            whole = max(length, -(-size // BLOCK_SIZE) * BLOCK_SIZE)
            self._buffer[size:whole] = ZEROS[: whole - size]
            try:
                file.write_aligned(offset, self._buffer[:whole])
            except OSError:  # not ready yet, no space, no file any more: a task waits, or says why
                return False
            offset += whole
        return True

    # The event loop.

    def _start_filling(self, reads: list[tuple[PendingRead, ObjectFile]]) -> None:
        if self._stopping:  # they were on their way here when `stop` failed all that was pending
            return
        for read, file in reads:
            task = self._loop.create_task(self._fill_in_task(read, file))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _fill_in_task(self, read: PendingRead, file: ObjectFile) -> None:
        failed = True
        try:
            sink = self.sink(read.object, file)
            await self._filler.fill(read.object.cookie, read.offset, read.length, sink)
            failed = False
        except LazyimgError as error:
            self.counters.failure = str(error)
            more = self._failures.due((read.object.cookie, error.kind))
            if more is not None:
                _log.warning(
                    "read of %d bytes at %d failed: %s%s", read.length, read.offset, error, more
                )
        except Exception:
            _log.exception("read of %s failed", read.object.cookie)
        finally:
            self._finish(read, failed=failed)

    # Culling.

    def _start_culling(self) -> None:
        self._cull_after = time.monotonic() + CULL_PAUSE
        culling = Thread(target=self._cull, name="cachefiles-cull", daemon=True)
        self._culled = False
        try:
            culling.start()
        except RuntimeError as error:  # no more threads; this one must go on
            _log.error("cannot cull the cache: %s", error)
            self._culled = True
        else:
            self._culling = culling

    def _cull(self) -> None:
        try:
            culled = run_culling(self._space, self._device.write_command)
            with self._lock:
                self.counters.culled += culled.files if culled is not None else 0
        finally:
            self._culled = True
            self._device.wake()
