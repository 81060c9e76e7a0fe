"""What a PullImage says: each kind of credential, and whatever else a request may hold."""

from __future__ import annotations

import base64
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg.imageservice.proto import images_pb2 as pb
from lazyimg.imageservice.pull import MAX_AUTH, Pull, parse_pull
from lazyimg.registry.auth import Credential
from lazyimg_formats.errors import FormatError

SECRET = "sesame"
ALICE = Credential("alice", SECRET)


def request(image: str = "reg.example/team/app:1", **auth: str) -> bytes:
    message = pb.PullImageRequest(image=pb.ImageSpec(image=image), auth=pb.AuthConfig(**auth))
    return message.SerializeToString()


def basic(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("auth", "credential"),
    [
        ({"username": "alice", "password": SECRET}, ALICE),
        ({"username": "alice"}, Credential("alice", "")),
        ({"auth": basic(f"alice:{SECRET}")}, ALICE),
        ({"auth": basic(f"alice:{SECRET}\0\0")}, ALICE),
        ({"auth": basic("alice:open:sesame")}, Credential("alice", "open:sesame")),
        ({"identity_token": SECRET}, Credential(identity_token=SECRET)),
        ({"registry_token": SECRET}, Credential(registry_token=SECRET)),
        ({"username": "alice", "password": SECRET, "identity_token": "x", "auth": "?"}, ALICE),
        ({"identity_token": SECRET, "auth": "?"}, Credential(identity_token=SECRET)),
        ({"auth": basic(f"alice:{SECRET}"), "registry_token": "x"}, ALICE),
    ],
)
def test_kinds_of_credentials(auth: dict[str, str], credential: Credential) -> None:
    assert parse_pull(request(**auth)) == Pull("reg.example/team/app", credential)


@pytest.mark.parametrize(
    ("image", "repository"),
    [
        ("debian", "docker.io/library/debian"),
        ("me/app:1", "docker.io/me/app"),
        ("localhost:5000/app", "localhost:5000/app"),
        (f"reg.example/app:1@sha256:{'0' * 64}", "reg.example/app"),
    ],
)
def test_repository_of_an_image(image: str, repository: str) -> None:
    found = parse_pull(request(image, username="alice", password=SECRET))
    assert found == Pull(repository, ALICE)


@pytest.mark.parametrize("auth", [{}, {"password": SECRET}, {"server_address": "reg.example"}])
def test_no_credential(auth: dict[str, str]) -> None:
    assert parse_pull(request(**auth)) is None


def test_pull_without_auth_may_name_anything() -> None:
    assert (
        parse_pull(pb.PullImageRequest(image=pb.ImageSpec(image="?")).SerializeToString()) is None
    )
    assert parse_pull(b"") is None


@pytest.mark.parametrize(
    "server",
    [
        "reg.example",
        "https://reg.example",
        "http://reg.example/v2/",
        "reg.example/v1",
    ],
)
def test_server_that_is_the_registry(server: str) -> None:
    pulled = request(server_address=server, username="alice", password=SECRET)
    assert parse_pull(pulled) == Pull("reg.example/team/app", ALICE)


@pytest.mark.parametrize(
    "server", ["https://index.docker.io/v1/", "docker.io", "registry-1.docker.io"]
)
def test_names_of_docker_hub(server: str) -> None:
    hub = request("debian", server_address=server, username="alice", password=SECRET)
    assert parse_pull(hub) == Pull("docker.io/library/debian", ALICE)
    with pytest.raises(FormatError):
        parse_pull(request(server_address=server, username="alice", password=SECRET))


@pytest.mark.parametrize(
    "server",
    ["other.example", "reg.example:5000", "https://other", "ftp://reg.example", "https://"],
)
def test_server_that_is_another(server: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_pull(request(server_address=server, username="alice", password=SECRET))
    assert str(caught.value) == "PullImage: its credential is for another registry"


@pytest.mark.parametrize(
    ("auth", "problem"),
    [
        ({"auth": SECRET}, "its auth is not base64 of user:password"),
        ({"auth": basic(SECRET)}, "its auth is not base64 of user:password"),
        ({"auth": basic(f":{SECRET}")}, "its auth is not base64 of user:password"),
        ({"auth": "\u00e9"}, "its auth is not base64 of user:password"),
        ({"registry_token": f"{SECRET}\r\nX: y"}, "its registry token has characters that none"),
        ({"registry_token": f"{SECRET}\u00e9"}, "its registry token has characters that none has"),
        ({"username": "a", "password": SECRET * MAX_AUTH}, "its credential has "),
    ],
)
def test_credential_that_is_none(auth: dict[str, str], problem: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_pull(request(**auth))
    assert str(caught.value).startswith(f"PullImage: {problem}")
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_image_that_cannot_be() -> None:
    with pytest.raises(FormatError):
        parse_pull(request("UPPER?", username="alice", password=SECRET))


def test_fields_that_are_not_known_are_passed_over() -> None:
    more = b"\x1a\x02\x08\x01" + b"\xca\x3e\x03abc"  # a sandbox's configuration, and field 1001
    whole = request(username="alice", password=SECRET) + more
    assert parse_pull(whole) == Pull("reg.example/team/app", ALICE)


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        parse_pull(data)


def test_request_cut_at_every_byte() -> None:
    whole = request(username="alice", password=SECRET)
    for size in range(1, len(whole)):
        with contextlib.suppress(FormatError):
            found = parse_pull(whole[:size])
            assert found is None or SECRET not in repr(found)
