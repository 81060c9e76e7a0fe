"""Credentials that came with pulls: which one counts, how long, and in which process."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import StorageError
from lazyimg.host import memory_lines
from lazyimg.images import given as given_module
from lazyimg.images.given import GivenCredentials
from lazyimg.registry.auth import Credential

if TYPE_CHECKING:
    from collections.abc import Iterator

ALICE = Credential("alice", "open\nsesame")
BOB = Credential("bob", "b")
TOKENS = Credential(identity_token="identity", registry_token="registry")
LIFETIME = 100.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def given(clock: Clock) -> Iterator[GivenCredentials]:
    opened = GivenCredentials(LIFETIME, clock=clock)
    yield opened
    opened.close()


def follow(given: GivenCredentials, clock: Clock) -> GivenCredentials:
    """Give what the next process has."""
    return GivenCredentials(LIFETIME, os.dup(given.fd), clock)


def pull(given: GivenCredentials, repository: str, credential: Credential) -> None:
    given.end(given.begin(repository, credential), pulled=True)


def test_pull_that_succeeds(given: GivenCredentials) -> None:
    assert given.find("reg/app") is None
    offer = given.begin("reg/app", ALICE)
    assert given.find("reg/app") == ALICE
    assert given.find("reg/other") is None
    given.end(offer, pulled=True)
    assert given.find("reg/app") == ALICE
    pull(given, "reg/app", BOB)
    assert given.find("reg/app") == BOB


def test_pull_that_fails_changes_nothing(given: GivenCredentials) -> None:
    given.end(given.begin("reg/app", BOB), pulled=False)
    assert given.find("reg/app") is None
    pull(given, "reg/app", ALICE)
    offer = given.begin("reg/app", BOB)
    assert given.find("reg/app") == BOB
    given.end(offer, pulled=False)
    assert given.find("reg/app") == ALICE


def test_pulls_at_the_same_time(given: GivenCredentials) -> None:
    first = given.begin("reg/app", ALICE)
    second = given.begin("reg/app", BOB)
    given.begin("reg/other", TOKENS)
    assert given.find("reg/app") == BOB
    given.end(second, pulled=False)
    assert given.find("reg/app") == ALICE
    given.end(first, pulled=True)
    assert given.find("reg/app") == ALICE


def test_lifetime_begins_with_the_latest_pull(given: GivenCredentials, clock: Clock) -> None:
    pull(given, "reg/app", ALICE)
    clock.now += LIFETIME / 2
    pull(given, "reg/app", ALICE)
    clock.now += LIFETIME - 1
    assert given.find("reg/app") == ALICE
    clock.now += 1
    assert given.find("reg/app") is None


def test_pull_may_take_longer_than_the_lifetime(given: GivenCredentials, clock: Clock) -> None:
    offer = given.begin("reg/app", ALICE)
    clock.now += 2 * LIFETIME
    assert given.find("reg/app") == ALICE
    given.end(offer, pulled=True)
    assert given.find("reg/app") == ALICE


def test_next_process_knows_what_is_kept(given: GivenCredentials, clock: Clock) -> None:
    for name, credential in (("a", BOB), ("a", ALICE), ("b", TOKENS)):
        pull(given, f"reg/{name}", credential)
    given.begin("reg/a", BOB)
    following = follow(given, clock)
    assert (following.find("reg/a"), following.find("reg/b")) == (ALICE, TOKENS)
    clock.now += LIFETIME
    assert (following.find("reg/a"), following.find("reg/b")) == (None, None)
    following.close()


@pytest.mark.parametrize("line", [b"", b"{}", b"\xff", b"[1]", b'{"repository":"reg/app"}'])
def test_line_that_is_none(given: GivenCredentials, clock: Clock, line: bytes) -> None:
    os.pwrite(given.fd, line + b"\n", 0)
    following = follow(given, clock)
    assert following.find("reg/app") is None
    pull(following, "reg/app", BOB)
    last = follow(following, clock)
    assert last.find("reg/app") == BOB
    for one in (following, last):
        one.close()


def test_oldest_ones_are_left_out(given: GivenCredentials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given_module, "MAX_REPOSITORIES", 2)
    for name in ("a", "b", "a", "c"):
        pull(given, f"reg/{name}", ALICE)
    assert [given.find(f"reg/{name}") for name in "abc"] == [ALICE, None, ALICE]


def test_file_has_a_limit(
    given: GivenCredentials, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_lines, "MAX_SIZE", 2000)
    pull(given, "reg/old", ALICE)
    clock.now += LIFETIME
    pull(given, "reg/first", ALICE)
    for number in range(100):
        pull(given, "reg/app", replace(ALICE, password=str(number)))
        assert os.fstat(given.fd).st_size <= 2000
    following = follow(given, clock)
    assert following.find("reg/old") is None
    assert following.find("reg/first") == ALICE
    assert following.find("reg/app") == Credential("alice", "99")
    following.close()
    assert b"reg/old" not in os.pread(given.fd, 2000, 0)


def test_no_memory() -> None:
    given = GivenCredentials(LIFETIME, os.open("/dev/zero", os.O_RDONLY))
    offer = given.begin("reg/app", ALICE)
    with pytest.raises(StorageError, match="cannot be kept in memory"):
        given.end(offer, pulled=True)
    assert given.find("reg/app") == ALICE
    given.close()


def test_nothing_shows_a_secret(given: GivenCredentials) -> None:
    shown = repr(given.begin("reg/app", Credential("alice", "secret", "secret", "secret")))
    assert "secret" not in shown
