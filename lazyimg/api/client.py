"""The local API's client: a request to the daemon's unix socket, and its reply.

It speaks HTTP/1.0 itself, one connection for each request: a reply ends where the connection does.
Loading a whole HTTP client takes five times as long as everything else that `lazyimg status` does,
and an event loop a quarter of what `lazyimg mount` does: so calls block, for as long as they take.
Who interrupts one closes its connection, which the daemon sees.
"""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Final, TypeVar

import msgspec

from lazyimg.api.messages import (
    CacheCheckReply,
    CacheCheckRequest,
    CacheReply,
    ErrorReply,
    FsidReply,
    ImageRequest,
    IndexReply,
    InspectReply,
    InspectRequest,
    MountReply,
    MountRequest,
    PrefetchEvent,
    PrefetchRequest,
    PushIndexReply,
    PushIndexRequest,
    StatusReply,
    UnmountReply,
    UnmountRequest,
    UnpushIndexReply,
    ValidateEvent,
    ValidateReply,
)
from lazyimg.errors import DaemonUnavailableError, LazyimgError, NotRootError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

MAX_LINE: Final = 1 << 20
"""Bytes of one line of a reply."""

MAX_REPLY: Final = 64 << 20
"""Bytes of a whole reply."""

MAX_HEADERS: Final = 100

ReplyT = TypeVar("ReplyT", bound=msgspec.Struct)


class Client:
    """The daemon behind the socket at `address`.

    Every method raises what the daemon raised (see `rebuild_error`), and
        DaemonUnavailableError: nobody answers, or not to the end.
        NotRootError: the socket is not for this user.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    def mount(self, request: MountRequest) -> MountReply:
        """Mount an image."""
        return self._ask("POST /v1/mount", request, MountReply)

    def unmount(self, request: UnmountRequest) -> UnmountReply:
        """Unmount what `mount` mounted."""
        return self._ask("POST /v1/unmount", request, UnmountReply)

    def fsid(self, request: ImageRequest) -> FsidReply:
        """Make an image ready to be mounted by mount(8)."""
        return self._ask("POST /v1/fsid", request, FsidReply)

    def inspect(self, request: InspectRequest) -> InspectReply:
        """Describe an image and how much of it is local."""
        return self._ask("POST /v1/inspect", request, InspectReply)

    def create_index(self, request: ImageRequest) -> IndexReply:
        """Make an index of each layer that has none; takes as long as downloading the image."""
        return self._ask("POST /v1/index", request, IndexReply)

    def remove_index(self, request: ImageRequest) -> IndexReply:
        """Remove what `create_index` made."""
        return self._ask("POST /v1/index/remove", request, IndexReply)

    def find_indexes(self, request: ImageRequest) -> IndexReply:
        """Say where there are indexes of an image's layers."""
        return self._ask("POST /v1/index/find", request, IndexReply)

    def push_index(self, request: PushIndexRequest) -> PushIndexReply:
        """Push what `create_index` made."""
        return self._ask("POST /v1/index/push", request, PushIndexReply)

    def unpush_index(self, request: ImageRequest) -> UnpushIndexReply:
        """Remove what `push_index` pushed."""
        return self._ask("POST /v1/index/unpush", request, UnpushIndexReply)

    def indexes(self) -> IndexReply:
        """List what `create_index` made."""
        return self._ask("GET /v1/index", None, IndexReply)

    def cache(self) -> CacheReply:
        """Describe the cache."""
        return self._ask("GET /v1/cache", None, CacheReply)

    def check_cache(self, request: CacheCheckRequest) -> CacheCheckReply:
        """Check a device in the cache."""
        return self._ask("POST /v1/cache/check", request, CacheCheckReply)

    def status(self) -> StatusReply:
        """Describe the daemon and its mounts."""
        return self._ask("GET /v1/status", None, StatusReply)

    def prefetch(self, request: PrefetchRequest) -> Generator[PrefetchEvent]:
        """Make images local; gives the events as they come.

        The daemon stops when the iterator is closed. A failure of one image is an event with
        `error`; the others go on.
        """
        missing = len(request.references)
        with self._open("POST /v1/prefetch", request) as reply:
            while line := self._read_line(reply):
                event = self._decode(line, PrefetchEvent)
                missing -= event.done or event.error is not None
                yield event
        if missing > 0:
            raise self._cut_off()

    def validate(
        self, request: ImageRequest, progress: Callable[[int, int], None]
    ) -> ValidateReply:
        """Read an image whole, and check it.

        Args:
            request: which.
            progress: called with the bytes of blobs that were read, and those of all.
        """
        with self._open("POST /v1/validate", request) as reply:
            while line := self._read_line(reply):
                event = self._decode(line, ValidateEvent)
                if event.error is not None:
                    raise rebuild_error(event.error)
                if event.reply is not None:
                    return event.reply
                progress(event.read, event.total)
        raise self._cut_off()

    def _ask(self, method: str, request: msgspec.Struct | None, kind: type[ReplyT]) -> ReplyT:
        with self._open(method, request) as reply:
            return self._decode(self._read_all(reply), kind)

    @contextmanager
    def _open(self, method: str, request: msgspec.Struct | None) -> Iterator[BinaryIO]:
        """Send a request and give its reply's body; raise what a failed one says."""
        body = b"" if request is None else _encode(request)
        head = (
            f"{method} HTTP/1.0\r\nHost: lazyimg\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        with self._connect() as connection, connection.makefile("rb") as reply:
            try:
                connection.sendall(head.encode() + body)
                if self._read_status(reply) >= 400:
                    raise rebuild_error(self._decode(self._read_all(reply), ErrorReply))
                yield reply
            except OSError as error:
                raise self._cut_off() from error

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(self._address)
        except PermissionError as error:
            connection.close()
            raise NotRootError(
                self._address, "the daemon's socket is for root only", "run this as root"
            ) from error
        except (OSError, ValueError) as error:  # ValueError: a path with a NUL
            connection.close()
            raise DaemonUnavailableError(
                self._address, "no daemon answers there", "start it with: lazyimg serve"
            ) from error
        return connection

    def _read_status(self, reply: BinaryIO) -> int:
        """Read the head of a reply; gives its status."""
        words = self._read_line(reply).split(maxsplit=2)
        for _ in range(MAX_HEADERS):
            if self._read_line(reply) in {b"\r\n", b"\n"}:
                break
        else:
            raise self._cut_off()
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
            raise self._not_understood()
        return int(words[1])

    def _read_line(self, reply: BinaryIO) -> bytes:
        """Give the next line; b"" at the end."""
        line = reply.readline(MAX_LINE + 1)
        if len(line) > MAX_LINE:
            raise self._not_understood()
        return line

    def _read_all(self, reply: BinaryIO) -> bytes:
        data = reply.read(MAX_REPLY + 1)
        if len(data) > MAX_REPLY:
            raise self._not_understood()
        return data

    def _decode(self, data: bytes, kind: type[ReplyT]) -> ReplyT:
        try:
            return msgspec.json.decode(data, type=kind)
        except msgspec.ValidationError as error:
            raise self._not_understood() from error
        except msgspec.DecodeError as error:  # cut off in the middle
            raise self._cut_off() from error
        except (ValueError, RecursionError) as error:  # no UTF-8, or too deep
            raise self._not_understood() from error

    def _cut_off(self) -> DaemonUnavailableError:
        return DaemonUnavailableError(
            self._address, "the daemon ended in the middle of its answer", "see its log"
        )

    def _not_understood(self) -> DaemonUnavailableError:
        return DaemonUnavailableError(
            self._address,
            "the answer is not one of this version of lazyimg",
            "restart the daemon after an upgrade",
        )


def _encode(request: msgspec.Struct) -> bytes:
    try:
        return msgspec.json.encode(request)
    except UnicodeEncodeError as error:
        raise UsageError(
            error.object, "is not UTF-8, and the daemon's API has no other names", "rename it"
        ) from error


def rebuild_error(reply: ErrorReply) -> LazyimgError:
    """Give the error that the daemon raised: the class of its kind, with its facts.

    A kind that this version does not know becomes a LazyimgError with the reply's exit code.
    """
    kinds = {kind.kind: kind for kind in _families(LazyimgError)}
    known = kinds.get(reply.kind)
    if known is None:
        facts = {"kind": reply.kind, "exit_code": reply.exit_code}
        known = type("RemoteError", (LazyimgError,), facts)
    return known(reply.what, reply.problem, reply.remedy)


def _families(base: type[LazyimgError]) -> list[type[LazyimgError]]:
    """Give `base` and every subclass that has a kind of its own."""
    found = [base]
    for kind in base.__subclasses__():
        found += [each for each in _families(kind) if "kind" in vars(each)]
    return found
