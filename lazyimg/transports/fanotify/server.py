"""The loop: events from the kernel to the protocol, its actions to the kernel.

See the package's docstring for threads and rules.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from contextlib import suppress
from errno import EAGAIN, EIO
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Final

from lazyimg.errors import LazyimgError
from lazyimg.host.mutex import Mutex
from lazyimg.transports.counters import Counters
from lazyimg.transports.fanotify.device import READ_SIZE
from lazyimg.transports.fanotify.journal import Journal, Place
from lazyimg.transports.fanotify.protocol import (
    Action,
    Allow,
    Deny,
    Fill,
    Lose,
    PendingRead,
    Protocol,
)
from lazyimg.transports.filling import Filling, Wish
from lazyimg.transports.following import NEAR, Following
from lazyimg_formats.device_table import BLOCK_SIZE
from lazyimg_formats.errors import FormatError
from lazyimg_formats.fanotify.messages import (
    AccessEvent,
    Event,
    OverflowEvent,
    allow,
    deny,
    parse_events,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from lazyimg.transports.fanotify.ports import CachedDevice, KernelGroup
    from lazyimg.transports.ports import Filler

LOCAL_WINDOW: Final = 1 << 20
"""Bytes of local data to write at most for one event: more than it asks for, where that is free."""

BATCH: Final = READ_SIZE // 2
"""Bytes of events in one read(2), up to which no more were waiting."""

_log = logging.getLogger(__name__)


class Server:
    """Serves one group, from `start` to `stop`.

    Args:
        group: closed by `stop`.
        filler: knows the devices.
        journal: closed by `stop`.
        find: gives the device whose file has an inode number, for files that were marked by a
            process before this one. Blocks, and may raise LazyimgError.
        lose: called in the event loop when the kernel let reads pass, with the reason.
        ahead: see `Following`.
    """

    def __init__(
        self,
        group: KernelGroup,
        filler: Filler,
        journal: Journal,
        *,
        find: Callable[[int], CachedDevice | None],
        lose: Callable[[str], None],
        ahead: int = NEAR,
    ) -> None:
        self.counters = Counters()
        self._group = group
        self._filler = filler
        self._journal = journal
        self._find = find
        self._lose = lose
        self._process = os.getpid()
        self._buffer = memoryview(bytearray(LOCAL_WINDOW))  # of the thread
        self._protocol = Protocol()
        self._lock = Mutex()  # protocol
        self._devices: dict[int, CachedDevice] = {}
        self._owning: dict[int, int] = {}
        self._looking: dict[int, Place] = {}
        self._finding: dict[int, asyncio.Task[CachedDevice | None]] = {}
        self._unknown: list[Place] = []  # of the thread
        self._inherited: list[Place] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._filling = Filling(filler, self.counters)
        self._following = Following(filler, ahead)
        self._loop: asyncio.AbstractEventLoop
        self._thread = Thread(target=self._run, name="fanotify", daemon=True)
        self._stopping = False
        self._ending = False

    def take_over(self) -> None:
        """Take over what a process before this one has read and not answered; before `start`.

        Events with a place in the journal keep their numbers here, and are filled. Any other is
        denied so that the kernel asks again.
        """
        for place in self._journal.taken():
            if _reserve(place.fd):
                self._inherited.append(place)
            else:
                self._journal.clear(place.fd)
        self._group.deny_everything(EAGAIN, spare={place.fd for place in self._inherited})

    def start(self) -> None:
        """Begin to answer; call it in the event loop that shall run the fills."""
        self._loop = asyncio.get_running_loop()
        self._filling.start()
        self._following.start()
        self._thread.start()
        inherited, self._inherited = self._inherited, []
        self._start_finding(inherited)

    def begin_stop(self) -> None:
        """Fail what is pending, and whatever needs a fill from now on."""
        with self._lock:
            actions = self._protocol.begin_stop()
        self._act(actions, waited=True)

    async def end_stop(self) -> None:
        """End the thread, after `begin_stop`, and close the group."""
        self._stopping = True
        await asyncio.sleep(0)  # what the thread has handed over until now is begun
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._filling.stop()
        await self._following.stop()
        for place in self._looking.values():
            self._journal.clear(place.fd)
            self._refuse(place.fd)
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        self._ending = True
        self._group.wake()
        self._thread.join()
        with self._lock:
            self._protocol.end_stop()
        self._group.close()
        self._journal.close()

    def add(self, device: CachedDevice) -> None:
        """Know a device whose fd was opened before it was marked, or by `own`."""
        self._devices[device.node] = device

    def remove(self, device: CachedDevice) -> None:
        """Forget a device that nobody has open."""
        self._devices.pop(device.node, None)
        self._following.forget(device.name)

    async def own(self, device: CachedDevice) -> None:
        """Know a device that was marked before its fd was opened.

        What is written through such an fd would wait for this server. So an event is provoked, and
        the fd that comes with it takes its place: what is done through that one raises none.
        """
        self._owning[device.node] = device.fd
        try:
            await asyncio.to_thread(_provoke, device.fd)
        finally:
            self._owning.pop(device.node, None)  # two may do this at a time
        self.add(device)

    # The thread.

    def _run(self) -> None:
        while True:
            events = self._group.wait()
            if events or self._ending:
                self._drain()
            if self._ending:
                return

    def _drain(self) -> None:
        """Take the events that wait; what cannot be answered here goes to the loop together."""
        try:
            self._take_all()
        except Exception:
            _log.exception("events of the kernel could not be handled")
        finally:
            self._hand_over()

    def _take_all(self) -> None:
        while True:
            try:
                data = self._group.read_events()
            except OSError as error:  # out of fds: the kernel has denied that one itself
                _log.error("cannot take an event of the kernel: %s", error)
                return
            if not data:
                return
            try:
                events = parse_events(data)
            except FormatError as error:
                self._receive_loss(f"events are not understood: {error}")
                self._group.deny_everything(EIO)
                return
            for event in events:
                self._receive(event)
            if len(data) <= BATCH:  # those were all
                return
            self._hand_over()

    def _receive(self, event: Event) -> None:
        if isinstance(event, OverflowEvent):
            self._receive_loss("the queue of events was full")
            return
        if event.fd is None:
            _log.error("an event of the kernel is not understood: %s", event.problem)
            return
        try:
            if isinstance(event, AccessEvent):
                self._receive_access(event)
                return
            _log.error("an event of the kernel is not understood: %s", event.problem)
        except Exception:  # whatever it is: somebody waits for an answer
            _log.exception("an event of the kernel could not be handled")
        self._refuse(event.fd)

    def _receive_loss(self, problem: str) -> None:
        with self._lock:
            actions = self._protocol.receive_loss(problem)
        self._act(actions, waited=True)

    def _receive_access(self, event: AccessEvent) -> None:
        node = self._group.node_of(event.fd)
        if event.pid == self._process:
            self._receive_own(event, node)
            return
        device = self._devices.get(node)
        if device is None and self._stopping:
            self._refuse(event.fd)
        elif device is None:
            self._unknown.append(Place(event.fd, node, event.offset, event.count))
        else:
            self._receive_read(event.fd, event.offset, event.count, device, local=True)

    def _receive_own(self, event: AccessEvent, node: int) -> None:
        """Take an event of this process: it waits for this thread, and must not wait for a fill."""
        if event.count == 0:  # it shortens the file: see `seal`
            self._answer(event.fd, allow(event.fd))
            return
        if (fd := self._owning.get(node)) is not None:
            os.dup2(event.fd, fd, inheritable=False)
        self._refuse(event.fd)

    def _receive_read(
        self, fd: int, offset: int, count: int, device: CachedDevice, *, local: bool = False
    ) -> None:
        """Answer a read of what is present, or have it filled. In any thread.

        Args:
            fd: of the event.
            offset: first byte.
            count: bytes.
            device: what is read.
            local: in the server's thread, which may write what needs no fetching.
        """
        start = offset - offset % BLOCK_SIZE
        stop = min(-(-(offset + count) // BLOCK_SIZE) * BLOCK_SIZE, device.size)
        length = max(0, stop - start)
        self._following.note(device, start, length)  # nothing may fail behind the answer
        read = PendingRead(fd, device.name, start, length)
        present = not device.absent(start, length)
        if not present and local:
            present = self._fill_locally(device, start, length)
        if not present:
            self._journal.put(Place(fd, device.node, start, length))
        with self._lock:
            actions = self._protocol.receive_read(read, present=present)
        if isinstance(actions[0], Fill):
            self._filling.submit(Wish(device, start, length, partial(self._finish, read)))
        else:
            self._act(actions, waited=not present)

    def _fill_locally(self, device: CachedDevice, offset: int, length: int) -> bool:
        """Write a range that needs no fetching; gives whether that could be done."""
        if length > len(self._buffer):
            return False
        buffer = self._buffer[: max(length, min(device.size - offset, len(self._buffer)))]
        size = self._filler.read_local(device.name, offset, length, buffer)
        if size is None:
            return False
        whole = max(length, -(-size // BLOCK_SIZE) * BLOCK_SIZE)
        buffer[size:whole] = bytes(whole - size)
        try:
            device.write_now(offset, [buffer[:whole]])
        except LazyimgError:  # no space, a disk that fails: a task says so
            return False
        return not device.absent(offset, length)

    def _hand_over(self) -> None:
        """Let the event loop look for files that are not known."""
        unknown, self._unknown = self._unknown, []
        if not unknown:
            return
        try:
            self._loop.call_soon_threadsafe(self._start_finding, unknown)
        except RuntimeError:  # it is closed
            for place in unknown:
                self._refuse(place.fd)

    # Answers: in the thread and in the event loop.

    def _act(self, actions: list[Action], *, waited: bool = False) -> None:
        """Do what is to be done; `waited`: there are places in the journal."""
        for action in actions:
            if isinstance(action, Lose):
                self._loop.call_soon_threadsafe(self._lose, action.problem)
                continue
            if isinstance(action, Fill):
                continue
            if waited:
                self._journal.clear(action.fd)  # before it is answered: see `journal`
            if isinstance(action, Allow):
                known = self._answer(action.fd, allow(action.fd))
            else:
                known = self._answer(action.fd, deny(action.fd, action.errno))
            if not known:  # threads may lose one: it is only shown
                self.counters.reads_lost += 1
            elif isinstance(action, Allow):
                self.counters.reads += 1
            else:
                self.counters.reads_failed += 1

    def _refuse(self, fd: int) -> None:
        with self._lock:
            actions = self._protocol.receive_foreign(fd)
        for action in actions:
            if isinstance(action, Deny):
                self._answer(fd, deny(fd, action.errno))

    def _answer(self, fd: int, response: bytes) -> bool:
        try:
            return self._group.answer(fd, response)
        except OSError as error:
            _log.error("an event of the kernel cannot be answered: %s", error)
            return False

    def _finish(self, read: PendingRead, present: bool) -> None:  # noqa: FBT001 - see `Wish`
        with self._lock:
            actions = self._protocol.finish(read, present=present)
        self._act(actions, waited=True)

    # The event loop.

    def _start_finding(self, unknown: list[Place]) -> None:
        for place in unknown:
            self._looking[place.fd] = place
            task = self._loop.create_task(self._find_and_fill(place))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _find_and_fill(self, place: Place) -> None:
        """Serve a read of a file that was marked by a process before this one."""
        try:
            device = await self._find_device(place.node)
        except LazyimgError as error:
            _log.warning("a file that is read is not found: %s", error)
            device = None
        except Exception:
            _log.exception("a file that is read is not found")
            device = None
        del self._looking[place.fd]
        if device is None:
            self._journal.clear(place.fd)
            self._refuse(place.fd)
        else:
            self._receive_read(place.fd, place.offset, place.length, device)

    async def _find_device(self, node: int) -> CachedDevice | None:
        """Give a device by the inode number of its file, ready to be written; None: it is none."""
        if node in self._devices:
            return self._devices[node]
        task = self._finding.get(node)
        if task is None:
            task = self._finding[node] = self._loop.create_task(self._find_in_cache(node))
            task.add_done_callback(lambda _: self._finding.pop(node))
        return await asyncio.shield(task)

    async def _find_in_cache(self, node: int) -> CachedDevice | None:
        device = await asyncio.to_thread(self._find, node)
        if device is not None:
            await self.own(device)
        return device


def _provoke(fd: int) -> None:
    with suppress(OSError):  # it is denied
        os.pread(fd, 1, 0)


def _reserve(number: int) -> bool:
    """Open something with this number, so that no event gets it; gives whether it was free."""
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if null == number:
            null = os.dup(null)
            return True
        taken = fcntl.fcntl(null, fcntl.F_DUPFD_CLOEXEC, number)
        if taken != number:
            os.close(taken)
        return taken == number
    finally:
        os.close(null)
