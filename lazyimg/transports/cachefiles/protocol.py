"""What to do about each request of the kernel. Pure: requests in, frozen actions out.

An object is ABSENT or OPEN, the transport SERVING, STOPPING or STOPPED:

| phase    | object | event        | step     | actions                                        |
|----------|--------|--------------|----------|------------------------------------------------|
| SERVING  | ABSENT | known OPEN   | accept   | Reply(copen size); the object is OPEN          |
| SERVING  | any    | unknown OPEN | refuse   | Reply(copen -ENOENT), CloseFd                  |
| SERVING  | OPEN   | READ         | fill     | Fill; the READ is pending                      |
| SERVING  | OPEN   | CLOSE        | withdraw | Complete its pending READs, CloseFd; ABSENT    |
| STOPPING | any    | any OPEN     | refuse   | Reply(copen -EIO), CloseFd                     |
| STOPPING | OPEN   | READ         | fail     | Complete, nothing written: EIO                 |
| STOPPING | OPEN   | CLOSE        | withdraw | as above                                       |
| any      | OPEN   | known OPEN   | refuse   | an id in use cannot be opened: Reply, CloseFd  |
| any      | ABSENT | READ         | orphan   | Orphan: no fd of this object, no answer exists |
| any      | ABSENT | CLOSE        | ignore   | nothing                                        |
| STOPPED  | any    | any          | -        | raises IllegalStepError, changes nothing       |

Rules on top of the table:
  1. An object is named by its id. One cookie may have several ids at a time: after `restore`, and
     after an fd was closed early, the kernel sends OPEN again with a new id. The latest counts for
     `find`; each READ is completed on the fd of its own id, the only one the kernel accepts.
  2. A READ whose msg_id is pending already replaces the older one, which is never completed: the
     kernel uses a number again only after that reader was killed (or sends the READ again, with
     the new id, after `restore`).
  3. CLOSE with READs pending: their readers were killed. They are completed all the same, before
     the fd goes, since nothing could complete them afterwards; the kernel may answer EINVAL.
  4. `finish` is for every Fill exactly once, filled or not; it gives nothing when the READ was
     replaced, withdrawn or failed by stopping meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from errno import EIO, ENOENT
from typing import Final

from lazyimg_formats.cachefiles.messages import (
    CloseRequest,
    OpenRequest,
    ReadRequest,
    Request,
    complete_open,
    fail_open,
)


class IllegalStepError(RuntimeError):
    """A call that the state does not allow; nothing was changed."""


@dataclass(frozen=True, slots=True)
class OpenObject:
    """An object that the kernel has open: its id, our fd of it, its names, its size in bytes."""

    object_id: int
    fd: int
    volume: str
    cookie: str
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class PendingRead:
    """A READ that is not completed yet. Compared by identity: its msg_id may be used again."""

    msg_id: int
    object: OpenObject
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Reply:
    """Write `command` to the control fd; it answers the OPEN of `object_id`."""

    command: bytes
    object_id: int


@dataclass(frozen=True, slots=True)
class Fill:
    """Make the range present, then call `finish`."""

    read: PendingRead


@dataclass(frozen=True, slots=True)
class Complete:
    """READ_COMPLETE of `msg_id` on `fd`. EINVAL means that the reader was killed: normal."""

    fd: int
    msg_id: int


@dataclass(frozen=True, slots=True)
class CloseFd:
    """Close an object's fd, as soon as nothing uses it."""

    fd: int


@dataclass(frozen=True, slots=True)
class Orphan:
    """A READ that cannot be answered: worth a line in the log."""

    request: ReadRequest


Action = Reply | Fill | Complete | CloseFd | Orphan


class Phase(Enum):
    """Whether new work is taken."""

    SERVING = auto()
    STOPPING = auto()
    STOPPED = auto()


class _Step(Enum):
    ACCEPT = auto()
    REFUSE = auto()
    FILL = auto()
    FAIL = auto()
    WITHDRAW = auto()
    ORPHAN = auto()
    IGNORE = auto()


class _Event(Enum):
    KNOWN_OPEN = auto()
    UNKNOWN_OPEN = auto()
    READ = auto()
    CLOSE = auto()


_ABSENT: Final = False
_OPEN: Final = True

_TABLE: Final = {
    (Phase.SERVING, _ABSENT, _Event.KNOWN_OPEN): _Step.ACCEPT,
    (Phase.SERVING, _ABSENT, _Event.UNKNOWN_OPEN): _Step.REFUSE,
    (Phase.SERVING, _ABSENT, _Event.READ): _Step.ORPHAN,
    (Phase.SERVING, _ABSENT, _Event.CLOSE): _Step.IGNORE,
    (Phase.SERVING, _OPEN, _Event.KNOWN_OPEN): _Step.REFUSE,
    (Phase.SERVING, _OPEN, _Event.UNKNOWN_OPEN): _Step.REFUSE,
    (Phase.SERVING, _OPEN, _Event.READ): _Step.FILL,
    (Phase.SERVING, _OPEN, _Event.CLOSE): _Step.WITHDRAW,
    (Phase.STOPPING, _ABSENT, _Event.KNOWN_OPEN): _Step.REFUSE,
    (Phase.STOPPING, _ABSENT, _Event.UNKNOWN_OPEN): _Step.REFUSE,
    (Phase.STOPPING, _ABSENT, _Event.READ): _Step.ORPHAN,
    (Phase.STOPPING, _ABSENT, _Event.CLOSE): _Step.IGNORE,
    (Phase.STOPPING, _OPEN, _Event.KNOWN_OPEN): _Step.REFUSE,
    (Phase.STOPPING, _OPEN, _Event.UNKNOWN_OPEN): _Step.REFUSE,
    (Phase.STOPPING, _OPEN, _Event.READ): _Step.FAIL,
    (Phase.STOPPING, _OPEN, _Event.CLOSE): _Step.WITHDRAW,
}


class Protocol:
    """The state of one binding to /dev/cachefiles. Not thread-safe: the caller locks."""

    def __init__(self) -> None:
        self.phase = Phase.SERVING
        self._objects: dict[int, OpenObject] = {}
        self._pending: dict[int, PendingRead] = {}

    def receive_open(self, request: OpenRequest, size: int | None) -> list[Action]:
        """Answer an OPEN; `size` is the object's bytes, or None if there is no such object."""
        step = self._step(request, _Event.UNKNOWN_OPEN if size is None else _Event.KNOWN_OPEN)
        if step is _Step.ACCEPT and size is not None:
            self._objects[request.object_id] = OpenObject(
                request.object_id,
                request.fd,
                request.volume.decode("ascii", "backslashreplace"),
                request.cookie.decode("ascii", "backslashreplace"),
                size,
            )
            return [Reply(complete_open(request.msg_id, size), request.object_id)]
        unknown = size is None and self.phase is Phase.SERVING
        reply = fail_open(request.msg_id, ENOENT if unknown else EIO)
        return [Reply(reply, request.object_id), CloseFd(request.fd)]

    def receive_read(self, request: ReadRequest) -> list[Action]:
        """Take a READ."""
        step = self._step(request, _Event.READ)
        if step is _Step.ORPHAN:
            return [Orphan(request)]
        opened = self._objects[request.object_id]
        if step is _Step.FAIL:
            return [Complete(opened.fd, request.msg_id)]
        read = PendingRead(request.msg_id, opened, request.offset, request.length)
        self._pending[request.msg_id] = read  # rule 2
        return [Fill(read)]

    def receive_close(self, request: CloseRequest) -> list[Action]:
        """Take a CLOSE, which has no answer."""
        if self._step(request, _Event.CLOSE) is _Step.IGNORE:
            return []
        return self._withdraw(request.object_id)

    def finish(self, read: PendingRead) -> list[Action]:
        """Complete a READ that was filled, or could not be: see rule 4."""
        if self._pending.get(read.msg_id) is not read:
            return []
        del self._pending[read.msg_id]
        return [Complete(read.object.fd, read.msg_id)]

    def abandon(self, object_id: int) -> list[Action]:
        """Forget an object whose OPEN the kernel did not let us answer."""
        return self._withdraw(object_id) if object_id in self._objects else []

    def begin_stop(self) -> list[Action]:
        """Fail all that is pending; from now on nothing is opened or filled.

        Raises:
            IllegalStepError: it is stopping or stopped already.
        """
        self._move(Phase.SERVING, Phase.STOPPING)
        actions: list[Action] = [
            Complete(read.object.fd, read.msg_id) for read in self._pending.values()
        ]
        self._pending.clear()
        return actions

    def end_stop(self) -> list[Action]:
        """Give all fds back; afterwards no request may come.

        Raises:
            IllegalStepError: `begin_stop` was not called, or this was.
        """
        self._move(Phase.STOPPING, Phase.STOPPED)
        actions: list[Action] = [CloseFd(opened.fd) for opened in self._objects.values()]
        self._objects.clear()
        return actions

    def find(self, volume: str, cookie: str) -> OpenObject | None:
        """Give the latest open object of a cookie."""
        for opened in reversed(self._objects.values()):
            if opened.cookie == cookie and opened.volume == volume:
                return opened
        return None

    def _step(self, request: Request, event: _Event) -> _Step:
        step = _TABLE.get((self.phase, request.object_id in self._objects, event))
        if step is None:
            raise IllegalStepError(f"{event.name} of object {request.object_id} while stopped")
        return step

    def _move(self, expected: Phase, phase: Phase) -> None:
        if self.phase is not expected:
            raise IllegalStepError(
                f"{phase.name} must follow {expected.name}, not {self.phase.name}"
            )
        self.phase = phase

    def _withdraw(self, object_id: int) -> list[Action]:
        opened = self._objects.pop(object_id)
        lost = [read for read in self._pending.values() if read.object is opened]
        for read in lost:
            del self._pending[read.msg_id]
        return [*(Complete(opened.fd, read.msg_id) for read in lost), CloseFd(opened.fd)]
