"""The misbehaving registry misbehaves as it is told to."""

from __future__ import annotations

import hashlib
import json
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import pytest

from tests.real.docker_registry import running_registry
from tests.real.fault_proxy import TOKEN_PATH, Fault, FaultProxy, Rule, running_fault_proxy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

DATA = bytes(range(256)) * 64
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
PATH = f"/v2/a/b/blobs/{DIGEST}"
RIGHT = f"bytes 100-299/{len(DATA)}"


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


def ask(
    address: str, method: str, path: str, data: bytes = b"", span: str = "", token: str = ""
) -> Answer:
    connection = HTTPConnection(address, timeout=2)
    headers = {"Range": span, "Authorization": token and f"Bearer {token}"}
    try:
        connection.request(
            method, path, data, {name: text for name, text in headers.items() if text}
        )
        answer = connection.getresponse()
        return Answer(answer.status, dict(answer.headers), answer.read())
    finally:
        connection.close()


def fetch(proxy: FaultProxy) -> Answer:
    return ask(proxy.address, "GET", PATH, span="bytes=100-299")


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[FaultProxy]:
    with (
        running_registry(tmp_path) as registry,
        running_fault_proxy(registry.origin, seed=1) as running,
    ):
        begun = ask(running.address, "POST", "/v2/a/b/blobs/uploads/")
        place = urlsplit(begun.headers["Location"])
        ended = ask(
            running.address, "PUT", f"{place.path}?{place.query}&digest={DIGEST}", data=DATA
        )
        assert ended.status == 201
        yield running


def test_without_rules(proxy: FaultProxy) -> None:
    answer = fetch(proxy)
    assert (answer.status, answer.body) == (206, DATA[100:300])
    assert answer.headers["Content-Range"] == RIGHT
    assert not proxy.done


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault.SERVER_ERROR, 500),
        (Fault.UNAUTHORIZED, 401),
        (Fault.FORBIDDEN, 403),
        (Fault.NOT_FOUND, 404),
        (Fault.NOT_SATISFIABLE, 416),
        (Fault.BUSY, 429),
        (Fault.BUSY_FOR, 429),
        (Fault.BUSY_LONG, 429),
    ],
)
def test_refusals(fault: Fault, status: int, proxy: FaultProxy) -> None:
    proxy.rules = [Rule([fault], share=1)]
    answer = fetch(proxy)
    assert answer.status == status
    assert ("Retry-After" in answer.headers) == fault.name.startswith("BUSY_")
    assert proxy.done == {fault: 1}


def test_wrong_content(proxy: FaultProxy) -> None:
    proxy.rules = [Rule([Fault.WRONG_RANGE], share=1)]
    answer = fetch(proxy)
    assert (answer.status, answer.body) == (206, DATA[100:300])
    assert answer.headers["Content-Range"] == "bytes 1-200/201"
    proxy.rules = [Rule([Fault.OTHER_BYTES], share=1)]
    answer = fetch(proxy)
    assert (answer.status, answer.body) == (206, DATA[99:299])
    assert answer.headers["Content-Range"] == RIGHT
    proxy.rules = [Rule([Fault.WHOLE], share=1)]
    answer = fetch(proxy)
    assert (answer.status, answer.body) == (200, DATA)
    proxy.rules = [Rule([Fault.WRONG_BYTES], share=1)]
    answer = fetch(proxy)
    assert len(answer.body) == 200
    assert answer.body != DATA[100:300]


@pytest.mark.parametrize("fault", [Fault.HALF, Fault.RESET, Fault.GONE, Fault.HANG, Fault.STALL])
def test_broken_connections(fault: Fault, proxy: FaultProxy) -> None:
    proxy.rules = [Rule([fault], share=1)]
    with pytest.raises((OSError, HTTPException)):
        fetch(proxy)
    if fault is Fault.GONE:
        proxy.rules = [Rule([fault], share=0)]
        with pytest.raises(ConnectionResetError):
            fetch(proxy)
    proxy.heal()
    assert fetch(proxy).status == 206
    assert proxy.done == {fault: 1}


def test_redirects_in_a_loop(proxy: FaultProxy) -> None:
    proxy.rules = [Rule([Fault.LOOP], share=1)]
    answer = fetch(proxy)
    assert (answer.status, answer.headers["Location"]) == (307, PATH)


def test_rules_of_repositories_and_paths(proxy: FaultProxy) -> None:
    proxy.rules = [Rule([Fault.SERVER_ERROR], share=1, repository="other")]
    assert fetch(proxy).status == 206
    proxy.rules = [Rule([Fault.SERVER_ERROR], share=1, part="/manifests/")]
    assert fetch(proxy).status == 206
    proxy.rules = [Rule([Fault.SERVER_ERROR], share=0.5, repository="a/b")]
    answers = [fetch(proxy).status for _ in range(50)]
    assert 10 < answers.count(500) < 40
    assert proxy.done == {Fault.SERVER_ERROR: answers.count(500)}


def test_tokens(proxy: FaultProxy) -> None:
    def fetch_with(token: str) -> int:
        return ask(proxy.address, "GET", PATH, token=token).status

    proxy.token_uses = 2
    challenge = ask(proxy.address, "GET", PATH).headers["WWW-Authenticate"]
    realm = f"http://{proxy.address}/token"
    assert challenge == f'Bearer realm="{realm}",scope="repository:a/b:pull"'
    asked = "/token?scope=repository%3Aa%2Fb%3Apull"
    one, other = (json.loads(ask(proxy.address, "GET", asked).body)["token"] for _ in range(2))
    assert [fetch_with(one) for _ in range(3)] == [200, 200, 401]
    assert fetch_with("mine") == 401
    proxy.rules = [Rule([Fault.SERVER_ERROR], share=1, repository="a/b", part=TOKEN_PATH)]
    assert ask(proxy.address, "GET", asked).status == 500
    assert ask(proxy.address, "GET", asked.replace("Fb", "Fc")).status == 200
    assert fetch_with(other) == 200
    proxy.rules = [Rule([Fault.WRONG_BYTES], share=1, part="")]
    wrong = ask(proxy.address, "GET", asked)
    assert wrong.status == 200
    assert b"token" not in wrong.body
    assert fetch_with("mine") == 401
    proxy.rules = [Rule([Fault.HALF], share=1, part="")]
    with pytest.raises(HTTPException):
        ask(proxy.address, "GET", asked)
