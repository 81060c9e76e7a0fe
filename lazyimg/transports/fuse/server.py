"""The loop: requests from the kernel to the protocol, its actions to the kernel.

See the package's docstring for threads and rules.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import suppress
from errno import EIO
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Final

from lazyimg.errors import LazyimgError
from lazyimg.host.mutex import Mutex
from lazyimg.host.workers import Workers
from lazyimg.logs import Repeats
from lazyimg.transports.filling import Filling, Wish
from lazyimg.transports.following import NEAR, Following
from lazyimg.transports.fuse.desk import Desk
from lazyimg.transports.fuse.protocol import (
    MAX_PAGES,
    Action,
    CloseBacking,
    Leaf,
    OpenBacking,
    PendingRead,
    Protocol,
    Reply,
)
from lazyimg_formats.device_table import BLOCK_SIZE
from lazyimg_formats.errors import FormatError
from lazyimg_formats.fuse.messages import (
    InitRequest,
    ReadRequest,
    Request,
    parse_request,
    refuse_unreadable,
    reply_error,
    reply_header,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lazyimg.cache.device_file import DeviceFile
    from lazyimg.transports.counters import Counters
    from lazyimg.transports.fuse.device import Device
    from lazyimg.transports.fuse.taken import Taken
    from lazyimg.transports.ports import Filler

ANSWERS: Final = 2
"""Threads that read from the disk what a fill wrote, where it is in memory no more."""

LOCAL_WINDOW: Final = 1 << 18
"""Bytes of local data to store at least for one READ."""

SPLICED: Final = 1 << 15
"""Bytes from which on an answer goes through a pipe: where that begins to cost less than a copy."""

JOIN_TIMEOUT: Final = 5.0
"""Seconds that a thread may take to notice that the connection has ended."""

_BUFFER: Final = MAX_PAGES * 4096  # bytes: the longest READ

_log = logging.getLogger(__name__)


class Server:
    """Serves one connection, from `start` to `end_stop`.

    Args:
        device: closed by `end_stop`.
        protocol: of this connection.
        find_node: gives the device with a node's number, also one that was not added: the kernel
            may know it from the process before this one. May block; raises LazyimgError.
        filler: knows the devices.
        counters: of what is done.
        taken: where requests are taken to, by a thread for each of its buffers; closed by
            `end_stop`.
        ahead: see `Following`.
        lost: called in the event loop when the kernel ends the connection by itself.
    """

    def __init__(
        self,
        device: Device,
        protocol: Protocol,
        find_node: Callable[[int], DeviceFile | None],
        *,
        filler: Filler,
        counters: Counters,
        taken: Taken,
        ahead: int = NEAR,
        lost: Callable[[], None] | None = None,
    ) -> None:
        self._device = device
        self._protocol = protocol
        self._find_node = find_node
        self._filler = filler
        self._counters = counters
        self._lock = Mutex()  # protocol, files, counters
        self._files: dict[int, DeviceFile] = {}
        self._filling = Filling(filler, counters)
        self._answers = Workers(ANSWERS, "fuse-answer")
        self._desks: SimpleQueue[Desk] = SimpleQueue()
        self._loop_desk = Desk(_BUFFER, pipe=False)
        self._following = Following(filler, ahead)
        self._lost = lost
        self._failures = Repeats()
        self._leaving = False  # the kernel may end the connection, or that was said
        self._taken = taken
        self._again: SimpleQueue[Request] = SimpleQueue()
        self._threads = [
            Thread(target=self._run, args=(buffer,), name="fuse", daemon=True)
            for buffer in taken.buffers
        ]
        self._loop: asyncio.AbstractEventLoop
        self.started: asyncio.Future[bool]
        """Whether the kernel has asked for the settings, before the connection ended."""

    def start(self, *, again: bool = False) -> None:
        """Begin to answer; call it in the event loop that shall run the fills.

        Args:
            again: answer first what a process that died had taken.
        """
        self._loop = asyncio.get_running_loop()
        self.started = self._loop.create_future()
        self._filling.start()
        self._following.start()
        for _ in range(ANSWERS):
            self._desks.put(Desk(_BUFFER))
        if again:
            in_hand, reads = self._taken.left()
            _log.info("%d requests were left to be answered", len(in_hand) + len(reads))
            for request in in_hand:  # needs no disk, and must be done before a buffer is used
                self._answer_again(request, self._loop_desk)
            for read in reads:
                self._again.put(read)
        for thread in self._threads:
            thread.start()

    def add(self, file: DeviceFile, *, backed: bool = False) -> None:
        """Have a device in the tree; see `Leaf`."""
        with self._lock:
            self._protocol.add(Leaf(file.name, file.node, file.size, backed))
            self._files[file.node] = file

    def remove(self, file: DeviceFile) -> None:
        """Have a device in the tree no longer."""
        with self._lock:
            self._protocol.remove(file.name)
            if self._files.get(file.node) is file:
                del self._files[file.node]
        self._following.forget(file.name)

    def begin_stop(self) -> None:
        """Fail all that is pending and all that comes; the connection may end from now on."""
        with self._lock:
            actions = self._protocol.begin_stop()
            self._counters.reads_failed += len(actions)
            self._leaving = True
        self._perform(actions)

    async def end_stop(self) -> None:
        """End the threads, after the connection has ended, and close the device."""
        await self._following.stop()
        await self._filling.stop()
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        self._answers.close()
        for thread in self._threads:
            thread.join(JOIN_TIMEOUT)
        with self._lock:
            self._protocol.end_stop()
        self._device.close()
        self._taken.close()

    # The threads.

    def _run(self, message: memoryview) -> None:
        desk = Desk(_BUFFER)
        with suppress(Empty):
            while True:
                self._answer_again(self._again.get_nowait(), desk)
        while True:
            try:
                length = self._device.read(message)
            except OSError as error:
                _log.error("cannot take a request of the kernel: %s", error)
                break
            if not length:
                break
            self._take(message[:length], desk)
        self._note_end()
        self._tell(started=False)

    def _note_end(self) -> None:
        with self._lock:
            expected, self._leaving = self._leaving, True
        if expected:
            return
        _log.error("the kernel has ended the connection of FUSE: all reads fail from now on")
        if self._lost is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._lost)

    def _tell(self, *, started: bool) -> None:
        def note() -> None:
            if not self.started.done():
                self.started.set_result(started)

        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(note)

    def _take(self, message: memoryview, desk: Desk) -> None:
        try:
            self._handle(parse_request(message), desk)
        except FormatError as error:
            _log.error("a request of the kernel is not understood: %s", error)
            self._refuse(message)
        except Exception:
            _log.exception("a request of the kernel could not be handled")
            self._refuse(message)

    def _handle(self, request: Request, desk: Desk) -> None:
        if type(request) is ReadRequest:
            self._read(request, desk)
        else:
            self._receive(request)

    def _answer_again(self, request: Request, desk: Desk) -> None:
        """Answer what a process that died had taken, and may have answered."""
        unique: int = getattr(request, "unique", 0)
        try:
            self._handle(request, desk)
        except Exception:
            _log.exception("a request of before could not be handled")
            if unique:
                with suppress(OSError):
                    self._device.write(reply_error(unique, EIO))
        with self._lock:
            waits = self._protocol.waits(unique)
        if not waits:
            self._taken.forget(unique)

    def _refuse(self, message: memoryview) -> None:
        answer = refuse_unreadable(message, EIO)
        if answer is not None:
            with suppress(OSError):  # it was answered before
                self._device.write(answer)

    def _receive(self, request: Request) -> None:
        node = getattr(request, "node", None)
        if node is not None:
            self._learn(node)
        with self._lock:
            actions = self._protocol.receive(request)
        self._perform(actions)
        if isinstance(request, InitRequest):
            self._tell(started=True)

    def _learn(self, node: int) -> None:
        """Have a device in the tree that the kernel knows from the process before this one."""
        with self._lock:
            known = self._protocol.knows(node)
        if known:
            return
        try:
            file = self._find_node(node)
        except LazyimgError as error:
            _log.warning("node %d is not known: %s", node, error)
            return
        if file is not None:
            self.add(file)

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Reply):
                self._device.write(action.message)
            elif isinstance(action, OpenBacking):
                self._open_backing(action)
            else:
                self._close_backing(action)

    def _open_backing(self, action: OpenBacking) -> None:
        file = self._files.get(action.request.node)
        backing = None
        if file is not None:
            try:
                backing = self._device.open_backing(file.fd)
            except OSError as error:
                _log.warning("%s is not read by the kernel itself: %s", file.name, error)
        with self._lock:
            actions = self._protocol.opened(action.request, backing)
        self._perform(actions)

    def _close_backing(self, action: CloseBacking) -> None:
        try:
            self._device.close_backing(action.backing)
        except OSError as error:
            _log.warning("backing file %d cannot be closed: %s", action.backing, error)

    # READs, in the threads.

    def _read(self, request: ReadRequest, desk: Desk) -> None:
        file = self._files.get(request.node)
        if file is None:
            self._learn(request.node)
            file = self._files.get(request.node)
        read = self._protocol.receive_read(request)
        if isinstance(read, Reply):
            self._device.write(read.message)
        elif file is None:  # it was removed this moment
            self._fail(read)
        else:
            self._find(read, file, desk)

    def _find(self, read: PendingRead, file: DeviceFile, desk: Desk) -> None:
        """Answer with what is present or at hand, or have it filled."""
        if not file.absent(read.offset, read.length):
            self._answer(read, file, desk)
        elif not self._answer_locally(read, file, desk.buffer):
            self._fill(read, file)
        self._following.note(file, read.offset, read.length)

    def _fill(self, read: PendingRead, file: DeviceFile) -> None:
        if not self._taken.note(read.unique, read.node, read.offset, read.length):
            _log.error("%s: more reads wait than can be kept", file.name)
            self._fail(read)
            return
        with self._lock:
            actions = self._protocol.wait(read)
        if actions:
            self._perform(actions)
            self._taken.forget(read.unique)
        else:
            wish = Wish(file, read.offset, read.length, partial(self._filled, read, file))
            self._filling.submit(wish)

    def _answer(self, read: PendingRead, file: DeviceFile, desk: Desk) -> None:
        """Answer with what is in the cache."""
        if SPLICED <= read.length <= desk.pipe_room and self._splice(read, file, desk):
            return
        view = desk.room(read.length)
        try:
            size = file.read_into(read.offset, view)
        except LazyimgError as error:
            self._note(file, error)
            self._fail(read)
            return
        if size == read.length:
            self._reply(read, view)
        else:
            _log.error("%s: the cache gave %d of %d bytes", file.name, size, read.length)
            self._fail(read)

    def _splice(self, read: PendingRead, file: DeviceFile, desk: Desk) -> bool:
        """Answer through the pipe; gives False if the data did not get into it."""
        size = os.write(desk.entry, reply_header(read.unique, read.length)) + read.length
        if not file.splice_into(desk.entry, read.offset, read.length):
            desk.empty_pipe()
            return False
        if not self._send(read, partial(self._device.splice, desk.exit, size)):
            desk.empty_pipe()
        return True

    def _answer_locally(self, read: PendingRead, file: DeviceFile, buffer: memoryview) -> bool:
        """Answer with what needs no fetching, and store it; gives whether that could be done."""
        start = read.offset - read.offset % BLOCK_SIZE
        length = -(-(read.offset + read.length - start) // BLOCK_SIZE) * BLOCK_SIZE
        if length > len(buffer):
            return False
        window = buffer[: max(length, min(file.size - start, LOCAL_WINDOW))]
        size = self._filler.read_local(file.name, start, length, window)
        if size is None:
            return False
        whole = max(length, -(-size // BLOCK_SIZE) * BLOCK_SIZE)
        buffer[size:whole] = bytes(whole - size)
        self._reply(read, buffer[read.offset - start :][: read.length])
        try:
            file.write_now(start, [buffer[:whole]])
        except LazyimgError as error:  # the reader has it all the same
            self._note(file, error)
        return True

    # Answers, in any thread.

    def _reply(self, read: PendingRead, data: memoryview) -> None:
        self._send(read, partial(self._device.write, reply_header(read.unique, len(data)), data))

    def _send(self, read: PendingRead, send: Callable[[], bool]) -> bool:
        """Give the kernel an answer; gives whether it took it."""
        try:
            taken = send()
        except OSError as error:
            _log.error("the kernel does not take %d bytes: %s", read.length, error)
            self._fail(read)
            return False
        if taken:
            self._counters.reads += 1  # threads may lose one: it is only shown
        else:
            self._counters.reads_lost += 1
        return taken

    def _fail(self, read: PendingRead) -> None:
        self._counters.reads_failed += 1
        with suppress(OSError):
            self._device.write(reply_error(read.unique, EIO))

    def _note(self, file: DeviceFile, error: LazyimgError) -> None:
        self._counters.failure = str(error)
        more = self._failures.due((file.name, error.kind))
        if more is not None:
            _log.warning("%s%s", error, more)

    # After a fill, in the event loop (or, when that has ended, in a thread).

    def _filled(self, read: PendingRead, file: DeviceFile, present: bool) -> None:  # noqa: FBT001
        with self._lock:
            ours = self._protocol.finish(read)
        if not ours:  # it was answered
            pass
        elif not present:
            self._fail(read)
        elif file.read_cached(read.offset, view := self._loop_desk.room(read.length)):
            self._reply(read, view)
        else:
            self._answers.submit(self._answer_from_disk, read, file)
            return
        self._taken.forget(read.unique)

    def _answer_from_disk(self, read: PendingRead, file: DeviceFile) -> None:
        desk = self._desks.get()
        try:
            self._answer(read, file, desk)
        except Exception:
            _log.exception("a read of %s could not be answered", file.name)
        finally:
            self._desks.put(desk)
            self._taken.forget(read.unique)
