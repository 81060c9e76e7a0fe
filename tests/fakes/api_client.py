"""The local API as a program in an event loop asks it: any HTTP client may."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import aiohttp
import msgspec

from lazyimg.api.client import rebuild_error
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
from lazyimg.errors import DaemonUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

ReplyT = TypeVar("ReplyT", bound=msgspec.Struct)

LINE = 1 << 20


class ApiClient:
    """The daemon behind a socket; methods raise what it raised, or DaemonUnavailableError."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def mount(self, request: MountRequest) -> MountReply:
        return await self._ask("POST", "mount", request, MountReply)

    async def unmount(self, request: UnmountRequest) -> UnmountReply:
        return await self._ask("POST", "unmount", request, UnmountReply)

    async def fsid(self, request: ImageRequest) -> FsidReply:
        return await self._ask("POST", "fsid", request, FsidReply)

    async def inspect(self, request: InspectRequest) -> InspectReply:
        return await self._ask("POST", "inspect", request, InspectReply)

    async def create_index(self, request: ImageRequest) -> IndexReply:
        return await self._ask("POST", "index", request, IndexReply)

    async def find_indexes(self, request: ImageRequest) -> IndexReply:
        return await self._ask("POST", "index/find", request, IndexReply)

    async def push_index(self, request: PushIndexRequest) -> PushIndexReply:
        return await self._ask("POST", "index/push", request, PushIndexReply)

    async def unpush_index(self, request: ImageRequest) -> UnpushIndexReply:
        return await self._ask("POST", "index/unpush", request, UnpushIndexReply)

    async def remove_index(self, request: ImageRequest) -> IndexReply:
        return await self._ask("POST", "index/remove", request, IndexReply)

    async def indexes(self) -> IndexReply:
        return await self._ask("GET", "index", None, IndexReply)

    async def cache(self) -> CacheReply:
        return await self._ask("GET", "cache", None, CacheReply)

    async def check_cache(self, request: CacheCheckRequest) -> CacheCheckReply:
        return await self._ask("POST", "cache/check", request, CacheCheckReply)

    async def status(self) -> StatusReply:
        return await self._ask("GET", "status", None, StatusReply)

    async def prefetch(self, request: PrefetchRequest) -> AsyncIterator[PrefetchEvent]:
        missing = len(request.references)
        async for line in self._lines("POST", "prefetch", request):
            event = msgspec.json.decode(line, type=PrefetchEvent)
            missing -= event.done or event.error is not None
            yield event
        if missing > 0:
            raise self._cut_off()

    async def validate(
        self, request: ImageRequest, progress: Callable[[int, int], None]
    ) -> ValidateReply:
        async for line in self._lines("POST", "validate", request):
            event = msgspec.json.decode(line, type=ValidateEvent)
            if event.error is not None:
                raise rebuild_error(event.error)
            if event.reply is not None:
                return event.reply
            progress(event.read, event.total)
        raise self._cut_off()

    async def _ask(
        self, method: str, call: str, request: msgspec.Struct | None, kind: type[ReplyT]
    ) -> ReplyT:
        body = b"".join([line async for line in self._lines(method, call, request)])
        return msgspec.json.decode(body, type=kind)

    async def _lines(
        self, method: str, call: str, request: msgspec.Struct | None
    ) -> AsyncIterator[bytes]:
        data = None if request is None else msgspec.json.encode(request)
        connector = aiohttp.UnixConnector(self.address)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, read_bufsize=LINE) as session,
                session.request(method, f"http://lazyimg/v1/{call}", data=data) as response,
            ):
                if response.status >= 400:
                    failure = msgspec.json.decode(await response.read(), type=ErrorReply)
                    raise rebuild_error(failure)
                async for line in response.content:
                    yield line
        except aiohttp.ClientConnectorError as error:
            raise DaemonUnavailableError(self.address, "no daemon answers there") from error
        except aiohttp.ClientError as error:
            raise self._cut_off() from error

    def _cut_off(self) -> DaemonUnavailableError:
        return DaemonUnavailableError(
            self.address, "the daemon ended in the middle of its answer", "see its log"
        )
