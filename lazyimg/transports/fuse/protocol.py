"""What to do about each request of the kernel. Pure: requests in, frozen actions out.

The tree is one directory of leaves, each a device under its name. The transport is SERVING,
STOPPING or STOPPED:

| phase    | request                 | actions                                                 |
|----------|-------------------------|---------------------------------------------------------|
| any      | INIT                    | Reply: the settings                                     |
| any      | LOOKUP, GETATTR         | Reply: attributes, or ENOENT, ESTALE                    |
| any      | OPEN of a backed leaf   | OpenBacking, or Reply: PASSTHROUGH if that was done     |
| any      | OPEN of another leaf    | Reply: DIRECT_IO                                        |
| any      | OPENDIR, READDIR, STATFS| Reply                                                   |
| any      | RELEASE                 | Reply; CloseBacking after the last one of a backed leaf |
| SERVING  | READ of a leaf          | a PendingRead, to be answered with data                 |
| SERVING  | READ of anything else   | Reply: EIO                                              |
| STOPPING | READ                    | Reply: EIO                                              |
| any      | INTERRUPT of a READ that waits | Reply: EINTR, to the READ                        |
| any      | FORGET, DESTROY         | nothing: nothing is kept of what the kernel looked up   |
| any      | anything else           | Reply: ENOSYS, and the kernel does not ask again        |
| STOPPED  | any                     | raises IllegalStepError, changes nothing                |

Rules on top of the table:
  1. A READ is answered with all of the bytes that it wants of the leaf, or with an error. Nothing
     is ever shorter: some kernels take what is missing for zeros.
  2. A READ that has to wait is registered by `wait`, and belongs to whom `finish` says so: it gives
     False when it was interrupted, failed by stopping, or asked again with the same number.
  3. Numbers are taken as they come: one that was asked again after a takeover has bit 63 set.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from enum import Enum, auto
from errno import EINTR, EIO, ENOENT, ENOSYS, ENOTDIR, EPROTO, ESTALE
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from lazyimg_formats.fuse.layout import (
    KERNEL_MINOR_VERSION,
    KERNEL_VERSION,
    ROOT_ID,
    InitFlag,
    OpenFlag,
)
from lazyimg_formats.fuse.messages import (
    Attributes,
    GetattrRequest,
    InitRequest,
    InterruptRequest,
    LookupRequest,
    OpenRequest,
    ReaddirRequest,
    ReadRequest,
    ReleaseRequest,
    Request,
    Settings,
    StatfsRequest,
    UnknownRequest,
    reply,
    reply_attributes,
    reply_entries,
    reply_entry,
    reply_error,
    reply_init,
    reply_open,
    reply_statfs,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    _Answered = InitRequest | LookupRequest | GetattrRequest | OpenRequest | UnknownRequest

MAX_PAGES: Final = 256
"""Pages of one READ; what `fs.fuse.max_pages_limit` allows by default."""

MAX_BACKGROUND: Final = 512
"""READs at a time. All reads of EROFS count; the kernel's own default, 12, stops many readers."""

_FLAGS: Final = (
    InitFlag.ASYNC_READ
    | InitFlag.ASYNC_DIO
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.MAX_PAGES
    | InitFlag.INIT_EXT
    | InitFlag.HAS_RESEND
)
_BLOCK: Final = 4096
_PLAIN, _BACKED = 0, 1  # handles of open leaves


class IllegalStepError(RuntimeError):
    """A call that the state does not allow; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A device in the tree.

    Attributes:
        name: its name.
        node: the kernel's number of it.
        size: bytes.
        backed: the kernel shall read it by itself when it is opened from now on.
    """

    name: str
    node: int
    size: int
    backed: bool = False

    @property
    def attributes(self) -> Attributes:
        """Give what stat(2) shows; two leaves of one number, one after the other, differ in it."""
        generation = zlib.crc32(self.name.encode())
        return Attributes(self.node, self.size, generation=generation)


class PendingRead(NamedTuple):
    """A READ to be answered. Told from another by identity: its number may come again.

    Attributes:
        offset: first byte.
        length: bytes to answer it with; at least one.
    """

    unique: int
    node: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Reply:
    """Write `message`."""

    message: bytes


@dataclass(frozen=True, slots=True)
class OpenBacking:
    """Give the kernel the file of a leaf, then call `opened`."""

    request: OpenRequest


@dataclass(frozen=True, slots=True)
class CloseBacking:
    """Take a file back from the kernel."""

    backing: int


Action = Reply | OpenBacking | CloseBacking


class Phase(Enum):
    """Whether reads are answered."""

    SERVING = auto()
    STOPPING = auto()
    STOPPED = auto()


@dataclass(slots=True)
class _Backing:
    number: int
    opens: int


class Protocol:
    """The state of one connection. Not thread-safe: the caller locks.

    `receive_read` changes nothing, and may be called without the lock.

    Args:
        passthrough: ask for being able to give the kernel a leaf's file.
        max_stack_depth: see `Settings`.
        request_timeout: see `Settings`.
    """

    def __init__(
        self, *, passthrough: bool = False, max_stack_depth: int = 1, request_timeout: int = 0
    ) -> None:
        self.phase = Phase.SERVING
        self._flags = _FLAGS
        self._stack_depth = 0
        if passthrough:
            self._flags |= InitFlag.PASSTHROUGH
            self._stack_depth = max_stack_depth
        if request_timeout:
            self._flags |= InitFlag.REQUEST_TIMEOUT
        self._request_timeout = request_timeout
        self._leaves: dict[int, Leaf] = {}
        self._names: dict[bytes, Leaf] = {}
        self._backings: dict[int, _Backing] = {}
        self._pending: dict[int, PendingRead] = {}
        self._handlers: dict[type[Request], Callable[[Any], Sequence[Action]]] = {
            InitRequest: self._init,
            LookupRequest: self._lookup,
            GetattrRequest: self._getattr,
            OpenRequest: self._open,
            ReleaseRequest: self._release,
            ReaddirRequest: self._readdir,
            StatfsRequest: self._statfs,
            InterruptRequest: self._interrupt,
            UnknownRequest: self._refuse,
        }

    # The tree.

    def add(self, leaf: Leaf) -> None:
        """Have a leaf in the tree, in the place of one with its name."""
        self.remove(leaf.name)
        self._leaves[leaf.node] = leaf
        self._names[leaf.name.encode()] = leaf

    def remove(self, name: str) -> None:
        """Have a leaf in the tree no longer."""
        leaf = self._names.pop(name.encode(), None)
        if leaf is not None and self._leaves.get(leaf.node) is leaf:
            del self._leaves[leaf.node]

    def knows(self, node: int) -> bool:
        """Tell whether a node is in the tree."""
        return node == ROOT_ID or node in self._leaves

    # Requests.

    def receive(self, request: Request) -> Sequence[Action]:
        """Take a request that is no READ."""
        if self.phase is Phase.STOPPED:
            raise IllegalStepError(f"{type(request).__name__} while stopped")
        handle = self._handlers.get(type(request))
        return handle(request) if handle is not None else []

    def receive_read(self, request: ReadRequest) -> PendingRead | Reply:
        """Take a READ."""
        if self.phase is Phase.STOPPED:
            raise IllegalStepError("ReadRequest while stopped")
        leaf = self._leaves.get(request.node)
        if leaf is None or self.phase is Phase.STOPPING:
            return Reply(reply_error(request.unique, EIO))
        length = min(request.size, leaf.size - request.offset)
        if length <= 0:
            return Reply(reply(request.unique))
        return PendingRead(request.unique, request.node, request.offset, length)

    def opened(self, request: OpenRequest, backing: int | None) -> Sequence[Action]:
        """Answer an OPEN with the id of the leaf's file in the kernel, if there is one."""
        if backing is None:
            return [Reply(reply_open(request.unique, OpenFlag.DIRECT_IO, handle=_PLAIN))]
        known = self._backings.get(request.node)
        if known is None:
            known = self._backings[request.node] = _Backing(backing, 0)
            unwanted: list[Action] = []
        else:  # of two opens at a time; an inode has one backing file
            unwanted = [CloseBacking(backing)]
        return [_open_backed(request, known), *unwanted]

    # READs that wait.

    def wait(self, read: PendingRead) -> Sequence[Action]:
        """Register a READ whose answer takes a while."""
        if self.phase is not Phase.SERVING:
            return [Reply(reply_error(read.unique, EIO))]
        self._pending[read.unique] = read
        return []

    def waits(self, unique: int) -> bool:
        """Tell whether a request is a READ that waits."""
        return unique in self._pending

    def finish(self, read: PendingRead) -> bool:
        """Tell whether a READ is still to be answered, which the caller does then."""
        if self._pending.get(read.unique) is not read:
            return False
        del self._pending[read.unique]
        return True

    # The end.

    def begin_stop(self) -> Sequence[Action]:
        """Fail all that waits; from now on nothing is read.

        Raises:
            IllegalStepError: it is stopping or stopped already.
        """
        self._move(Phase.SERVING, Phase.STOPPING)
        actions = [Reply(reply_error(unique, EIO)) for unique in self._pending]
        self._pending.clear()
        return actions

    def end_stop(self) -> None:
        """Take no more requests.

        Raises:
            IllegalStepError: `begin_stop` was not called, or this was.
        """
        self._move(Phase.STOPPING, Phase.STOPPED)

    def _move(self, expected: Phase, phase: Phase) -> None:
        if self.phase is not expected:
            raise IllegalStepError(
                f"{phase.name} must follow {expected.name}, not {self.phase.name}"
            )
        self.phase = phase

    # Each request.

    def _init(self, request: InitRequest) -> Sequence[Action]:
        if request.major != KERNEL_VERSION:
            return _error(request, EPROTO)
        flags = self._flags & request.flags
        settings = Settings(
            minor=min(request.minor, KERNEL_MINOR_VERSION),
            max_readahead=request.max_readahead,
            flags=flags,
            max_background=MAX_BACKGROUND,
            max_pages=MAX_PAGES,
            max_stack_depth=self._stack_depth if flags & InitFlag.PASSTHROUGH else 0,
            request_timeout=self._request_timeout if flags & InitFlag.REQUEST_TIMEOUT else 0,
        )
        return [Reply(reply_init(request.unique, settings))]

    def _lookup(self, request: LookupRequest) -> Sequence[Action]:
        if request.node != ROOT_ID:
            return _error(request, ENOTDIR)
        leaf = self._names.get(request.name)
        if leaf is None:
            return _error(request, ENOENT)
        return [Reply(reply_entry(request.unique, leaf.attributes))]

    def _getattr(self, request: GetattrRequest) -> Sequence[Action]:
        if request.node == ROOT_ID:
            return [Reply(reply_attributes(request.unique, _ROOT))]
        leaf = self._leaves.get(request.node)
        if leaf is None:
            return _error(request, ESTALE)
        return [Reply(reply_attributes(request.unique, leaf.attributes))]

    def _open(self, request: OpenRequest) -> Sequence[Action]:
        if request.directory:
            if request.node != ROOT_ID:
                return _error(request, ENOTDIR)
            return [Reply(reply_open(request.unique, OpenFlag(0)))]
        leaf = self._leaves.get(request.node)
        if leaf is None:
            return _error(request, ESTALE)
        backing = self._backings.get(request.node)
        if backing is not None:
            return [_open_backed(request, backing)]
        if leaf.backed:
            return [OpenBacking(request)]
        return self.opened(request, None)

    def _release(self, request: ReleaseRequest) -> Sequence[Action]:
        actions: list[Action] = [Reply(reply(request.unique))]
        backing = self._backings.get(request.node)
        if request.handle == _BACKED and backing is not None:
            backing.opens -= 1
            if not backing.opens:
                del self._backings[request.node]
                actions.append(CloseBacking(backing.number))
        return actions

    def _readdir(self, request: ReaddirRequest) -> Sequence[Action]:
        entries = [(b".", _ROOT), (b"..", _ROOT)]
        entries += [(name, self._names[name].attributes) for name in sorted(self._names)]
        numbered = enumerate(entries[request.offset :], request.offset + 1)
        left = ((cookie, name, attributes) for cookie, (name, attributes) in numbered)
        return [Reply(reply_entries(request, left))]

    def _statfs(self, request: StatfsRequest) -> Sequence[Action]:
        blocks = sum(-(-leaf.size // _BLOCK) for leaf in self._leaves.values())
        answer = reply_statfs(
            request.unique, block_size=_BLOCK, blocks=blocks, free=0, files=len(self._leaves)
        )
        return [Reply(answer)]

    def _interrupt(self, request: InterruptRequest) -> Sequence[Action]:
        if self._pending.pop(request.target, None) is None:
            return []
        return [Reply(reply_error(request.target, EINTR))]

    @staticmethod
    def _refuse(request: UnknownRequest) -> Sequence[Action]:
        return _error(request, ENOSYS)


def _error(request: _Answered, errno: int) -> Sequence[Action]:
    return [Reply(reply_error(request.unique, errno))]


def _open_backed(request: OpenRequest, backing: _Backing) -> Reply:
    backing.opens += 1
    return Reply(
        reply_open(request.unique, OpenFlag.PASSTHROUGH, handle=_BACKED, backing=backing.number)
    )


_ROOT: Final = Attributes(ROOT_ID, 0, directory=True)
