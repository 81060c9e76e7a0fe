"""A registry that misbehaves: a proxy in front of a real one, that does what it is told to.

    with running_fault_proxy(origin, seed=1) as proxy:
        reference = f"{proxy.address}/name:tag"
        proxy.rules = [Rule(repository="name")]          # every kind of fault, half of the time
        ...
        proxy.heal()                                     # well again; what hangs is let go
        proxy.done[Fault.RESET]                          # how often it did what
        proxy.token_uses = 50                            # nothing without a token, of its own

Which requests fail, and how, comes from the seed, in the order in which they arrive. The first
rule that fits a request decides; without rules everything is passed on.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from tests.real.counting_proxy import Counts, is_end_to_end, pass_on, running_proxy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

GONE_SECONDS: Final = 0.3
"""For how long the requests that the rule fits are reset after `Fault.GONE`."""

TOKEN_PATH: Final = "/token"

_ABORT: Final = struct.pack("ii", 1, 0)  # struct linger: close(2) sends RST


class Fault(Enum):
    """What can go wrong."""

    SERVER_ERROR = "500"
    UNAUTHORIZED = "401"
    FORBIDDEN = "403"
    NOT_FOUND = "404"
    NOT_SATISFIABLE = "416"
    BUSY = "429"
    BUSY_FOR = "429 with Retry-After"
    BUSY_LONG = "429 with a Retry-After of hours"
    WRONG_RANGE = "206 with a Content-Range that was not asked for"
    OTHER_BYTES = "the right headers, bytes of elsewhere in the blob"
    WHOLE = "200 with everything instead of 206"
    WRONG_BYTES = "bytes that are not the blob's"
    HALF = "half of the body, then the end"
    HANG = "no answer"
    STALL = "half of the body, then nothing"
    RESET = "a reset connection"
    LOOP = "a redirect to the same place"
    GONE = "nobody listens, for a moment"


_NO_HEADERS: Final[dict[str, str]] = {}
_REFUSALS: Final = {
    Fault.SERVER_ERROR: (500, _NO_HEADERS),
    Fault.UNAUTHORIZED: (401, {"WWW-Authenticate": 'Basic realm="tests"'}),
    Fault.FORBIDDEN: (403, _NO_HEADERS),
    Fault.NOT_FOUND: (404, _NO_HEADERS),
    Fault.NOT_SATISFIABLE: (416, _NO_HEADERS),
    Fault.BUSY: (429, _NO_HEADERS),
    Fault.BUSY_FOR: (429, {"Retry-After": "1"}),
    Fault.BUSY_LONG: (429, {"Retry-After": "7200"}),
}


@dataclass(frozen=True)
class Rule:
    """Which requests fail, and how.

    Attributes:
        faults: one of them is chosen.
        share: of the requests that fail.
        repository: its name; "" for all.
        part: what the path must contain, such as "/blobs/", "/manifests/", a digest, `TOKEN_PATH`.
    """

    faults: Sequence[Fault] = tuple(Fault)
    share: float = 0.5
    repository: str = ""
    part: str = "/blobs/"

    def fits(self, path: str) -> bool:
        """Tell whether a request's path is meant; a token's has the repository in its scope."""
        names = (f"/v2/{self.repository}", f"repository:{self.repository}")
        return self.part in path and any(name in unquote(path) for name in names)


@dataclass
class FaultProxy:
    """A running proxy.

    Attributes:
        address: host:port.
        counts: of everything that was passed on.
        rules: how it misbehaves now.
        token_uses: requests that a token is good for; 0: none is asked for.
        done: how often it did what.
        passed: requests that were answered as the registry did.
    """

    chance: random.Random
    address: str = ""
    counts: Counts = field(default_factory=Counts)
    rules: Sequence[Rule] = ()
    done: Counter[Fault] = field(default_factory=Counter)
    passed: int = 0
    token_uses: int = 0
    _tokens: Counter[str] = field(default_factory=Counter)  # uses that are left
    _well: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None
    _gone_until: float = 0.0

    def heal(self) -> None:
        """Be well from now on, also to those who wait."""
        self.rules = ()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._let_go)

    def _let_go(self) -> None:
        self._well.set()
        self._well = asyncio.Event()  # for what hangs later

    async def answer(
        self,
        session: aiohttp.ClientSession,
        origin: str,
        request: web.BaseRequest,
        counts: Counts,
    ) -> web.StreamResponse:
        """Answer one request, in the proxy's thread."""
        self._loop = asyncio.get_running_loop()
        rule = next((rule for rule in self.rules if rule.fits(request.raw_path)), None)
        if rule is not None and self._loop.time() < self._gone_until:
            return abort(request)
        try:
            if rule is None or self.chance.random() >= rule.share:
                self.passed += 1
                fault = None
            else:
                fault = self.chance.choice(list(rule.faults))
                self.done[fault] += 1
            if fault is not None and fault is not Fault.WHOLE:
                return await self._fail(fault, session, origin, request)
            return self._own_answer(request) or await pass_on(
                session, origin, request, counts, without="Range" if fault else ""
            )
        except aiohttp.ClientConnectionResetError:  # who asked has gone
            return abort(request)

    def _own_answer(self, request: web.BaseRequest) -> web.Response | None:
        """Give a token, or ask for one; None when that is right, or not wanted."""
        if not self.token_uses:
            return None
        if request.path == TOKEN_PATH:
            token = f"token-{len(self._tokens)}"
            self._tokens[token] = self.token_uses
            return web.Response(text=json.dumps({"token": token}))
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        self._tokens[token] -= 1
        if self._tokens[token] >= 0:
            return None
        name = request.path.removeprefix("/v2/").rpartition("/")[0].rpartition("/")[0]
        challenge = f'realm="http://{self.address}{TOKEN_PATH}",scope="repository:{name}:pull"'
        return web.Response(status=401, headers={"WWW-Authenticate": f"Bearer {challenge}"})

    async def _fail(
        self, fault: Fault, session: aiohttp.ClientSession, origin: str, request: web.BaseRequest
    ) -> web.StreamResponse:
        if fault in _REFUSALS:
            status, headers = _REFUSALS[fault]
            return web.Response(status=status, headers=headers)
        if fault is Fault.LOOP:
            return web.Response(status=307, headers={"Location": request.raw_path})
        if fault in {Fault.RESET, Fault.GONE, Fault.HANG}:
            if fault is Fault.GONE:
                self._gone_until = asyncio.get_running_loop().time() + GONE_SECONDS
            if fault is Fault.HANG:
                await self._well.wait()
            return abort(request)
        return await self._distort(fault, session, origin, request)

    async def _distort(
        self, fault: Fault, session: aiohttp.ClientSession, origin: str, request: web.BaseRequest
    ) -> web.StreamResponse:
        """Give the registry's own answer, but not as it is."""
        sent = CIMultiDict(
            (name, text) for name, text in request.headers.items() if is_end_to_end(name)
        )
        if fault is Fault.OTHER_BYTES:
            sent["Range"] = move_range(sent.get("Range", ""))
        own = self._own_answer(request)
        if own is not None:
            status, headers, body = (
                own.status,
                CIMultiDict(own.headers),
                bytes(own.text or "", "ascii"),
            )
            headers["Content-Length"] = str(len(body))
        else:
            status, headers, body = await ask(session, origin, request, sent)
        asked = request.headers.get("Range", "").removeprefix("bytes=")
        if fault is Fault.WRONG_RANGE:
            headers["Content-Range"] = f"bytes 1-{len(body)}/{len(body) + 1}"
        elif fault is Fault.OTHER_BYTES and "Content-Range" in headers:
            total = headers["Content-Range"].rpartition("/")[2]
            headers["Content-Range"] = f"bytes {asked}/{total}"
        elif fault is Fault.WRONG_BYTES:
            body = bytes(byte ^ 0x5A for byte in body[:64]) + body[64:]
        response = web.StreamResponse(status=status, headers=headers)
        await response.prepare(request)
        if fault in {Fault.HALF, Fault.STALL}:
            await response.write(body[: len(body) // 2])
            if fault is Fault.STALL:
                await self._well.wait()
            if request.transport is not None:
                request.transport.close()
            return response
        await response.write(body)
        await response.write_eof()
        return response


async def ask(
    session: aiohttp.ClientSession,
    origin: str,
    request: web.BaseRequest,
    headers: CIMultiDict[str],
) -> tuple[int, CIMultiDict[str], bytes]:
    """Ask the registry itself, with other headers; give status, headers and body."""
    async with session.request(
        request.method,
        URL(f"http://{origin}{request.raw_path}", encoded=True),
        headers=headers,
        allow_redirects=False,
    ) as answer:
        body = await answer.read()
        kept = [(name, text) for name, text in answer.headers.items() if is_end_to_end(name)]
        return answer.status, CIMultiDict(kept), body


def move_range(text: str) -> str:
    """Give a range of the same length, elsewhere in the blob."""
    first, _, last = text.removeprefix("bytes=").partition("-")
    if not first.isdigit() or not last.isdigit():
        return text
    shift = -1 if int(first) else 1
    return f"bytes={int(first) + shift}-{int(last) + shift}"


def abort(request: web.BaseRequest) -> web.StreamResponse:
    """Reset the connection."""
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        request.transport.abort()
    return web.StreamResponse()


@contextmanager
def running_fault_proxy(origin: str, *, seed: int) -> Iterator[FaultProxy]:
    """Run a proxy in front of `origin` (host:port) until the block ends."""
    proxy = FaultProxy(random.Random(seed))  # noqa: S311 - faults that can be repeated
    with running_proxy(origin, proxy.answer) as running:
        proxy.address, proxy.counts = running.address, running.counts
        try:
            yield proxy
        finally:
            proxy.heal()
