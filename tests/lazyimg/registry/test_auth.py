"""Challenges and tokens: what is asked for, kept, renewed, and never shown."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg.errors import AccessDeniedError, RegistryError
from lazyimg.registry.auth import (
    Authenticator,
    Challenge,
    Credential,
    parse_challenges,
    pull_scope,
    push_scope,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

BEARER = Challenge("bearer", {"realm": "https://auth.example/token", "service": "registry"})
BASIC = Challenge("basic", {"realm": "here"})
PULL = (pull_scope("a/b"),)
PUSH = (push_scope("a/b"),)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (
            ['Bearer realm="https://auth.docker.io/token",service="registry.docker.io"'],
            [
                Challenge(
                    "bearer",
                    {"realm": "https://auth.docker.io/token", "service": "registry.docker.io"},
                )
            ],
        ),
        (
            ['Basic realm="a \\"b\\", c", BEARER realm=plain , Scope = "x y,z"'],
            [
                Challenge("basic", {"realm": 'a "b", c'}),
                Challenge("bearer", {"realm": "plain", "scope": "x y,z"}),
            ],
        ),
        (["Basic", "Bearer realm=x"], [Challenge("basic"), Challenge("bearer", {"realm": "x"})]),
        (["Negotiate abc=="], [Challenge("negotiate", {"abc": "="})]),
        (['realm="nobody asked"'], []),
        (['Bearer realm="open'], [Challenge("bearer"), Challenge("realm")]),
        ([""], []),
        ([], []),
    ],
)
def test_challenges(headers: list[str], expected: list[Challenge]) -> None:
    assert parse_challenges(headers) == expected


@given(st.lists(st.text(max_size=60)))
def test_any_header_gives_challenges(headers: list[str]) -> None:
    for challenge in parse_challenges(headers):
        assert challenge.scheme


def test_secrets_are_not_shown() -> None:
    shown = repr(Credential("me", "password!", "identity!"))
    assert shown == "Credential(username='me')"


def test_basic_header() -> None:
    assert Credential("Aladdin", "open sesame").basic == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="


class Service:
    """Gives tokens t1, t2, ...; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.reply: dict[str, object] | bytes | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def fetch_token(
        self, realm: str, query: Sequence[tuple[str, str]], authorization: str
    ) -> bytes:
        return await self._answer((realm, list(query), authorization))

    async def post_token(self, realm: str, form: Sequence[tuple[str, str]]) -> bytes:
        return await self._answer((realm, dict(form)))

    async def _answer(self, asked: object) -> bytes:
        self.asked.append(asked)
        await self.gate.wait()
        reply = self.reply or {"token": f"t{len(self.asked)}", "expires_in": 300}
        return reply if isinstance(reply, bytes) else msgspec.json.encode(reply)


class Setup:
    def __init__(self, credential: Credential | None = None) -> None:
        self.now = 1000.0
        self.credential = credential
        self.service = Service()
        self.authenticator = Authenticator(
            "example.com/a/b", self.find, self.service, lambda: self.now
        )

    async def find(self) -> Credential | None:
        return self.credential

    async def renew(self, *challenges: Challenge, rejected: str = "") -> str:
        return await self.authenticator.renew(PULL, challenges, rejected)


async def test_nothing_is_sent_before_it_is_asked_for() -> None:
    setup = Setup(Credential("me", "secret"))
    assert await setup.authenticator.header(PULL) == ""
    assert setup.service.asked == []


async def test_anonymous_token() -> None:
    setup = Setup()
    assert await setup.renew(BEARER) == "Bearer t1"
    assert setup.service.asked == [
        (
            "https://auth.example/token",
            [("service", "registry"), ("scope", "repository:a/b:pull")],
            "",
        )
    ]
    assert await setup.authenticator.header(PULL) == "Bearer t1"


async def test_service_is_left_out_when_there_is_none() -> None:
    setup = Setup()
    await setup.renew(Challenge("bearer", {"realm": "https://x"}))
    assert setup.service.asked == [("https://x", [("scope", "repository:a/b:pull")], "")]


async def test_token_for_a_user() -> None:
    credential = Credential("me", "secret")
    setup = Setup(credential)
    await setup.renew(BASIC, BEARER)  # the better one counts, wherever it stands
    asked = [("service", "registry"), ("scope", "repository:a/b:pull"), ("account", "me")]
    assert setup.service.asked == [("https://auth.example/token", asked, credential.basic)]


@pytest.mark.parametrize("challenge", [BASIC, BEARER])
async def test_registry_token_is_shown_as_it_is(challenge: Challenge) -> None:
    credential = Credential("me", "secret", "identity", "registry")
    setup = Setup(credential)
    assert await setup.renew(challenge) == "Bearer registry"
    assert await setup.authenticator.header(PULL) == "Bearer registry"
    assert setup.service.asked == []
    assert "registry" not in repr(credential)


async def test_identity_token_is_posted() -> None:
    setup = Setup(Credential(identity_token="identity"))
    setup.service.reply = {"access_token": "a1"}
    assert await setup.renew(BEARER) == "Bearer a1"
    assert setup.service.asked == [
        (
            "https://auth.example/token",
            {
                "grant_type": "refresh_token",
                "refresh_token": "identity",
                "client_id": "lazyimg",
                "service": "registry",
                "scope": "repository:a/b:pull",
            },
        )
    ]


async def test_scopes_have_tokens_of_their_own() -> None:
    setup = Setup()
    await setup.renew(BEARER)
    assert await setup.authenticator.header(PUSH) == "Bearer t2"
    assert await setup.authenticator.header(PULL) == "Bearer t1"


@pytest.mark.parametrize(
    ("reply", "lifetime"),
    [
        ({"token": "t", "expires_in": 300}, 290),
        ({"token": "t", "expires_in": 5}, 50),
        ({"token": "t"}, 50),
        ({"token": "t", "expires_in": None}, 50),
    ],
)
async def test_token_is_renewed_before_it_expires(
    reply: dict[str, object], lifetime: float
) -> None:
    setup = Setup()
    setup.service.reply = reply
    await setup.renew(BEARER)
    setup.now += lifetime - 0.1
    await setup.authenticator.header(PULL)
    assert len(setup.service.asked) == 1
    setup.now += 0.2
    await setup.authenticator.header(PULL)
    assert len(setup.service.asked) == 2


async def test_one_renewal_however_many_were_refused() -> None:
    setup = Setup()
    first = await setup.renew(BEARER)
    setup.service.gate.clear()
    renewals = [asyncio.create_task(setup.renew(BEARER, rejected=first)) for _ in range(10)]
    await asyncio.sleep(0)
    setup.service.gate.set()
    assert await asyncio.gather(*renewals) == ["Bearer t2"] * 10
    assert len(setup.service.asked) == 2


async def test_renewal_that_was_cancelled_leaves_the_way_free() -> None:
    setup = Setup()
    setup.service.gate.clear()
    task = asyncio.create_task(setup.renew(BEARER))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    setup.service.gate.set()
    assert await setup.renew(BEARER) == "Bearer t2"


async def test_credential_is_looked_up_anew() -> None:
    setup = Setup(Credential("me", "old"))
    rejected = await setup.renew(BASIC)
    setup.credential = Credential("me", "new")
    assert await setup.authenticator.header(PULL) == rejected
    assert await setup.renew(BASIC, rejected=rejected) == setup.credential.basic


async def test_refused_without_challenge() -> None:
    with pytest.raises(
        AccessDeniedError, match=r"^example.com/a/b: the registry refuses access wi"
    ):
        await Setup().renew(Challenge("negotiate"))


async def test_refused_later_without_challenge() -> None:
    setup = Setup()
    rejected = await setup.renew(BEARER)
    assert await setup.renew(rejected=rejected) == "Bearer t2"


@pytest.mark.parametrize("credential", [None, Credential(identity_token="x")])
async def test_basic_without_a_password(credential: Credential | None) -> None:
    with pytest.raises(
        AccessDeniedError,
        match=r"^example.com/a/b: the registry wants a user name and password; log in with"
        r" 'lazyimg login example.com' or give --authfile$",
    ):
        await Setup(credential).renew(BASIC)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"[]",
        b"{}",
        b'{"token": 7}',
        b'{"token": ""}',
        b'{"token": "a\\r\\nb"}',
        b'{"token": "\xff"}',
        '{"token": "ü"}'.encode(),
        b'{"a":' * 100_000,
    ],
)
async def test_answers_without_a_token(reply: bytes) -> None:
    setup = Setup()
    setup.service.reply = reply or b" "
    with pytest.raises(RegistryError, match=r"^example.com/a/b: .* holds no token$"):
        await setup.renew(BEARER)


async def test_challenge_that_cannot_be_met_is_not_held_against_the_registry() -> None:
    setup = Setup()
    with pytest.raises(AccessDeniedError):
        await setup.authenticator.renew(PULL, [BASIC], "")
    assert await setup.authenticator.header(PULL) == ""
    setup.service.reply = b"no token"
    with pytest.raises(RegistryError):
        await setup.authenticator.renew(PULL, [BEARER], "")
    setup.service.reply = None
    assert await setup.authenticator.header(PULL) == ""
    assert await setup.authenticator.renew(PULL, [BEARER], "") == "Bearer t2"
    assert await setup.authenticator.header(PULL) == "Bearer t2"
