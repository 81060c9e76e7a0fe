"""Authorization for one repository: challenges, tokens and their renewal.

A registry answers 401 with challenges. For ``Basic`` the credential itself is sent; for
``Bearer`` a token is fetched from the realm that the challenge names, with the credential or
anonymously, and kept until shortly before it expires. Renewal is single flight: whoever was
refused while another was renewing takes the other's token. An `Authenticator` belongs to one
repository and one access, so no token is ever used for somebody else.

Sources: RFC 9110 (11.6.1), RFC 6750, the distribution project's token and OAuth 2 specifications.
"""

from __future__ import annotations

import asyncio
import base64
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from lazyimg.errors import AccessDeniedError, LazyimgError, RegistryError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

MAX_TOKEN_REPLY: Final = 1 << 20
"""Bytes of an authorization service's answer."""

DEFAULT_TOKEN_LIFETIME: Final = 60.0
"""Seconds for a token that does not say, as the specification has it."""

TOKEN_MARGIN: Final = 10.0
"""Seconds before its end at which a token is used no more."""

CLIENT_ID: Final = "lazyimg"

_SPACE: Final = re.compile(r"[ \t,]*", re.ASCII)
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_VALUE: Final = re.compile(r'[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^ \t,"]+))', re.ASCII)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in that a registry offers: a scheme in lower case, and parameters."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Credential:
    """A user's name and password, or a token that stands for both.

    Attributes:
        username: with `password`.
        password: see `username`.
        identity_token: an authorization service gives tokens for it.
        registry_token: is shown to the registry as it is.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an Authorization header."""
        raw = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(raw).decode()}"


class TokenService(Protocol):
    """How tokens are asked for, over HTTP."""

    async def fetch_token(
        self, realm: str, query: Sequence[tuple[str, str]], authorization: str
    ) -> bytes:
        """GET the realm; gives the body of a 200, raises LazyimgError for anything else."""
        ...

    async def post_token(self, realm: str, form: Sequence[tuple[str, str]]) -> bytes:
        """POST a form to the realm; as above."""
        ...


class _TokenReply(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None
    expires_in: float | None = None


def parse_challenges(headers: Sequence[str]) -> list[Challenge]:
    """Give the challenges in all WWW-Authenticate headers of one answer; nonsense is left out."""
    challenges: list[Challenge] = []
    for header in headers:
        position = 0
        parameters: dict[str, str] | None = None
        while True:
            position = _skip(header, position)
            name = _TOKEN.match(header, position)
            if name is None:
                break
            position = name.end()
            value = _VALUE.match(header, position)
            if value is None:
                parameters = {}
                challenges.append(Challenge(name.group().lower(), parameters))
                continue
            position = value.end()
            if parameters is not None:
                quoted, plain = value.groups()
                text = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
                parameters[name.group().lower()] = text
    return challenges


def _skip(header: str, position: int) -> int:
    match = _SPACE.match(header, position)
    return position if match is None else match.end()


def pull_scope(repository: str) -> str:
    """Name the right to read `repository`."""
    return f"repository:{repository}:pull"


def push_scope(repository: str) -> str:
    """Name the right to read and write `repository`."""
    return f"repository:{repository}:pull,push"


def delete_scope(repository: str) -> str:
    """Name the right to read `repository` and to remove from it."""
    return f"repository:{repository}:delete,pull"


class Authenticator:
    """Gives Authorization headers for one repository with one access."""

    def __init__(
        self,
        what: str,
        find_credential: Callable[[], Awaitable[Credential | None]],
        service: TokenService,
        clock: Callable[[], float],
    ) -> None:
        """Start without any knowledge.

        Args:
            what: what messages call the repository.
            find_credential: looks the credential up; asked again for each renewal, because
                credentials expire too.
            service: fetches tokens.
            clock: seconds that only ever grow.
        """
        self._what = what
        self._find_credential = find_credential
        self._service = service
        self._clock = clock
        self._challenge: Challenge | None = None
        self._headers: dict[tuple[str, ...], tuple[str, float]] = {}  # scopes -> header, end
        self._renewing = asyncio.Lock()

    async def header(self, scopes: tuple[str, ...]) -> str:
        """Give the header for these scopes; "" as long as the registry has not asked for one.

        Raises:
            LazyimgError: a token was needed and could not be had.
        """
        challenge = self._challenge
        if challenge is None:
            return ""
        return self._valid(scopes) or await self._obtain(challenge, scopes, "")

    async def renew(
        self, scopes: tuple[str, ...], challenges: Sequence[Challenge], rejected: str
    ) -> str:
        """Give another header after the registry has refused `rejected` ("" for none).

        Raises:
            AccessDeniedError: there is none to be had.
            LazyimgError: the authorization service cannot be reached.
        """
        for offered in sorted(challenges, key=lambda offered: offered.scheme != "bearer"):
            if offered.scheme in {"bearer", "basic"}:
                self._challenge = offered
                break
        challenge = self._challenge
        if challenge is None:
            raise AccessDeniedError(self._what, "the registry refuses access without a challenge")
        return await self._obtain(challenge, scopes, rejected)

    def _valid(self, scopes: tuple[str, ...]) -> str:
        header, end = self._headers.get(scopes, ("", 0.0))
        return header if self._clock() < end else ""

    async def _obtain(self, challenge: Challenge, scopes: tuple[str, ...], rejected: str) -> str:
        async with self._renewing:
            header = self._valid(scopes)
            if header and header != rejected:
                return header  # somebody else has renewed it meanwhile
            self._headers.pop(scopes, None)
            try:
                header, lifetime = await self._fetch(challenge, scopes)
            except LazyimgError:
                self._challenge = None  # it may have been a mistake: ask the registry next time
                raise
            self._headers[scopes] = (header, self._clock() + lifetime)
            return header

    async def _fetch(self, challenge: Challenge, scopes: tuple[str, ...]) -> tuple[str, float]:
        credential = await self._find_credential()
        if credential is not None and credential.registry_token:
            return f"Bearer {credential.registry_token}", float("inf")
        if challenge.scheme == "bearer":
            return await self._fetch_token(challenge, scopes, credential)
        if credential is None or not credential.username:
            registry = self._what.partition("/")[0]
            raise AccessDeniedError(
                self._what,
                "the registry wants a user name and password",
                f"log in with 'lazyimg login {registry}' or give --authfile",
            )
        return credential.basic, float("inf")

    async def _fetch_token(
        self, challenge: Challenge, scopes: tuple[str, ...], credential: Credential | None
    ) -> tuple[str, float]:
        realm = challenge.parameters.get("realm", "")
        service = challenge.parameters.get("service", "")
        if credential is not None and credential.identity_token:
            form = [
                ("grant_type", "refresh_token"),
                ("refresh_token", credential.identity_token),
                ("client_id", CLIENT_ID),
                ("service", service),
                ("scope", " ".join(scopes)),
            ]
            body = await self._service.post_token(realm, form)
        else:
            query = [("service", service)] if service else []
            query += [("scope", scope) for scope in scopes]
            if credential is not None:
                query.append(("account", credential.username))
            basic = "" if credential is None else credential.basic
            body = await self._service.fetch_token(realm, query, basic)
        return self._parse_token(body)

    def _parse_token(self, body: bytes) -> tuple[str, float]:
        try:
            reply = msgspec.json.decode(body, type=_TokenReply)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise RegistryError(
                self._what, "the authorization service's answer holds no token"
            ) from error
        token = reply.token or reply.access_token
        if not token or not token.isascii() or not token.isprintable():
            raise RegistryError(self._what, "the authorization service's answer holds no token")
        lifetime = max(reply.expires_in or 0.0, DEFAULT_TOKEN_LIFETIME) - TOKEN_MARGIN
        return f"Bearer {token}", lifetime
