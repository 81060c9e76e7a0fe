"""Where credentials come from, with real files and real helper programs."""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from lazyimg.errors import ConfigurationError, StorageError
from lazyimg.registry import credentials
from lazyimg.registry.auth import Credential
from lazyimg.registry.credentials import (
    erase_credential,
    find_authfile,
    find_credential,
    store_credential,
)
from lazyimg.registry.ports import Access

if TYPE_CHECKING:
    from pathlib import Path

ME = Credential("me", "secret")
NAME = "quay.io/team/app"
HELPER = """#!/bin/sh
read -r server
case "$1 $server" in
"get https://index.docker.io/v1/") echo '{"ServerURL":"x","Username":"hub","Secret":"s"}' ;;
"get token.io") echo '{"ServerURL":"x","Username":"<token>","Secret":"identity"}' ;;
"get nobody.io") echo '{"Username":""}' ;;
"get odd.io") echo 'surprise' ;;
"get slow.io") exec sleep 60 ;;
"get mute.io") exit 3 ;;
store*) echo "$server" >> "$STORE" ;;
erase*) echo "erase $server" >> "$STORE" ;;
*) echo "credentials not found in native keychain"; exit 1 ;;
esac
"""


class Home:
    """A user's home directory with files in the usual places."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environ = {"HOME": str(path / "home"), "PATH": os.environ["PATH"]}
        self.docker = path / "home/.docker/config.json"

    def write(self, path: Path, config: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(config if isinstance(config, bytes) else msgspec.json.encode(config))
        return path

    def add_helper(self) -> None:
        program = self.path / "bin/docker-credential-mine"
        program.parent.mkdir()
        program.write_text(HELPER)
        program.chmod(0o755)
        self.environ["PATH"] = f"{program.parent}:{self.environ['PATH']}"
        self.environ["STORE"] = str(self.path / "store")

    async def find(self, name: str = NAME, access: Access | None = None) -> Credential | None:
        return await find_credential(name, access or Access(), self.environ)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def entry(user: str = ME.username, password: str = ME.password) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def auths(*, user: str) -> dict[str, Any]:
    return {"auths": {"quay.io": entry(user)}}


class TestOrder:
    async def test_places_in_their_order(self, home: Home) -> None:
        assert await home.find() is None
        home.write(home.docker, auths(user="docker"))
        assert await home.find() == Credential("docker", "secret")
        home.environ["XDG_RUNTIME_DIR"] = str(home.path / "run")
        home.write(home.path / "run/containers/auth.json", auths(user="podman"))
        assert await home.find() == Credential("podman", "secret")
        home.environ["REGISTRY_AUTH_FILE"] = str(home.path / "own.json")
        home.write(home.path / "own.json", auths(user="own"))
        assert await home.find() == Credential("own", "secret")
        authfile = home.write(home.path / "flag.json", auths(user="flag"))
        access = Access(authfile=authfile)
        assert await home.find(access=access) == Credential("flag", "secret")
        access = Access(authfile=authfile, username="me", password="secret")
        assert await home.find(access=access) == ME

    async def test_next_file_when_the_first_knows_nothing(self, home: Home) -> None:
        home.environ["XDG_RUNTIME_DIR"] = str(home.path / "run")
        home.write(home.path / "run/containers/auth.json", {"auths": {"other.io": entry()}})
        home.write(home.docker, auths(user="docker"))
        assert await home.find() == Credential("docker", "secret")

    async def test_docker_config_directory(self, home: Home) -> None:
        home.write(home.docker, auths(user="home"))
        home.environ["DOCKER_CONFIG"] = str(home.path / "d")
        assert await home.find() is None
        home.write(home.path / "d/config.json", auths(user="d"))
        assert await home.find() == Credential("d", "secret")

    async def test_file_that_has_the_answer(self, home: Home) -> None:
        home.write(home.docker, auths(user="docker"))
        assert await find_authfile(NAME, Access(), home.environ) == home.docker
        assert await find_authfile("other.io/x", Access(), home.environ) is None
        access = Access(username="me", password="secret")
        assert await find_authfile(NAME, access, home.environ) == home.docker

    async def test_no_home(self, home: Home) -> None:
        home.environ = {}
        assert await home.find() is None

    async def test_authfile_must_exist(self, home: Home) -> None:
        with pytest.raises(ConfigurationError, match="nope: there is no such credentials file"):
            await home.find(access=Access(authfile=home.path / "nope"))

    async def test_file_in_the_variable_need_not_exist(self, home: Home) -> None:
        home.environ["REGISTRY_AUTH_FILE"] = str(home.path / "nope")
        assert await home.find() is None


class TestKeys:
    @pytest.mark.parametrize(
        "key",
        [
            "quay.io",
            "https://quay.io",
            "https://quay.io/",
            "https://quay.io/v1/",
            "http://quay.io/v2/",
            "quay.io/team",
            "quay.io/team/app",
        ],
    )
    async def test_keys_that_fit(self, home: Home, key: str) -> None:
        home.write(home.docker, {"auths": {key: entry()}})
        assert await home.find() == ME

    @pytest.mark.parametrize("key", ["quay.io/tea", "quay.io/team/app/x", "uay.io", "quay.io:443"])
    async def test_keys_that_do_not(self, home: Home, key: str) -> None:
        home.write(home.docker, {"auths": {key: entry()}})
        assert await home.find() is None

    @pytest.mark.parametrize(
        "key",
        ["https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io"],
    )
    async def test_docker_hub(self, home: Home, key: str) -> None:
        home.write(home.docker, {"auths": {key: entry()}})
        assert await home.find("docker.io/library/debian") == ME

    async def test_longest_key_counts(self, home: Home) -> None:
        keys = {"quay.io": entry("a"), "quay.io/team/app": entry("c"), "quay.io/team": entry("b")}
        home.write(home.docker, {"auths": keys})
        found = [await home.find(name) for name in (NAME, "quay.io/team/x", "quay.io/x")]
        assert [one and one.username for one in found] == ["c", "b", "a"]


class TestEntries:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ({"username": "me", "password": "secret"}, ME),
            ({"auth": "", "identitytoken": "t"}, Credential(identity_token="t")),
            (entry() | {"identitytoken": "t"}, Credential("me", "secret", "t")),
            (entry("me", "a:b"), Credential("me", "a:b")),
            ({"auth": base64.b64encode(b"me:secret\0\0").decode()}, ME),
            ({}, None),
            ({"email": "x"}, None),
        ],
    )
    async def test_forms(self, home: Home, value: object, expected: Credential | None) -> None:
        home.write(home.docker, {"auths": {"quay.io": value}})
        assert await home.find() == expected

    @pytest.mark.parametrize(
        ("value", "problem"),
        [
            ({"auth": "!!"}, "is not base64 of user:password; log in again"),
            ({"auth": "/w=="}, "is not base64 of user:password; log in again"),
            ({"auth": "bm9jb2xvbg=="}, "is not base64 of user:password; log in again"),
            ({"auth": 7}, "holds no text"),
            ("text", "is no JSON object"),
        ],
    )
    async def test_nonsense(self, home: Home, value: object, problem: str) -> None:
        home.write(home.docker, {"auths": {"quay.io": value}})
        with pytest.raises(ConfigurationError) as caught:
            await home.find()
        assert str(caught.value) == f"{home.docker}: the entry for quay.io {problem}"

    @pytest.mark.parametrize(
        ("config", "problem"),
        [
            (b"{", "is no JSON object; write it anew by logging in"),
            (b"[]", "is no JSON object; write it anew by logging in"),
            (b"[" * 100_000, "is no JSON object; write it anew by logging in"),
            (b'{"auths": []}', "auths is no JSON object"),
            (b'{"credsStore": 7}', "names a credential helper that cannot be one"),
            (b'{"credsStore": "../x"}', "names a credential helper that cannot be one"),
            (b" " * ((4 << 20) + 1), "is over 4194304 bytes"),
        ],
    )
    async def test_files_that_cannot_be_used(self, home: Home, config: bytes, problem: str) -> None:
        home.write(home.docker, config)
        with pytest.raises(ConfigurationError) as caught:
            await home.find()
        assert str(caught.value) == f"{home.docker}: {problem}"

    async def test_empty_file(self, home: Home) -> None:
        home.write(home.docker, b"\n")
        assert await home.find() is None

    async def test_file_that_cannot_be_read(self, home: Home) -> None:
        home.docker.mkdir(parents=True)
        with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
            await home.find()

    async def test_place_that_cannot_be_looked_at(self, home: Home) -> None:
        home.environ["XDG_RUNTIME_DIR"] = "/" + "x" * 300
        home.write(home.docker, {"auths": {"quay.io": entry("docker")}})
        found = await home.find()
        assert found is not None
        assert found.username == "docker"


class TestHelpers:
    @pytest.fixture(autouse=True)
    def helper(self, home: Home) -> None:
        home.add_helper()
        home.write(home.docker, {"credsStore": "mine", "auths": {"quay.io": entry("file")}})

    async def test_docker_hub_under_its_old_key(self, home: Home) -> None:
        assert await home.find("docker.io/library/debian") == Credential("hub", "s")

    async def test_identity_token(self, home: Home) -> None:
        assert await home.find("token.io/x") == Credential(identity_token="identity")

    async def test_helper_that_knows_nothing(self, home: Home) -> None:
        assert await home.find() == Credential("file", "secret")
        assert await home.find("nobody.io/x") is None

    async def test_helper_of_one_registry(self, home: Home) -> None:
        home.write(home.docker, {"credHelpers": {"docker.io": "mine"}})
        assert await home.find("docker.io/library/debian") == Credential("hub", "s")
        assert await home.find("token.io/x") is None

    async def test_answer_of_another_kind(self, home: Home) -> None:
        with pytest.raises(ConfigurationError) as caught:
            await home.find("odd.io/x")
        assert str(caught.value) == (
            "docker-credential-mine: its answer is not that of a credential helper"
        )

    async def test_failure_without_a_word(self, home: Home) -> None:
        with pytest.raises(ConfigurationError, match="mine: get failed: without a word"):
            await home.find("mute.io/x")

    async def test_no_answer(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(credentials, "HELPER_TIMEOUT", 0.05)
        with pytest.raises(ConfigurationError, match="docker-credential-mine: no answer in 0 s"):
            await home.find("slow.io/x")

    async def test_missing_program(self, home: Home) -> None:
        home.write(home.docker, {"credsStore": "absent"})
        with pytest.raises(ConfigurationError) as caught:
            await home.find()
        assert str(caught.value) == (
            "docker-credential-absent: cannot be run: No such file or directory;"
            " install it, or take it out of the file"
        )

    async def test_login_and_logout(self, home: Home) -> None:
        for credential in (ME, Credential(identity_token="t")):
            where = await store_credential("quay.io", credential, Access(), home.environ)
            assert where == "docker-credential-mine"
        stored = (home.path / "store").read_text().splitlines()
        assert [msgspec.json.decode(line) for line in stored] == [
            {"ServerURL": "quay.io", "Username": "me", "Secret": "secret"},
            {"ServerURL": "quay.io", "Username": "<token>", "Secret": "t"},
        ]
        assert not await erase_credential("quay.io", Access(), home.environ)
        assert await erase_credential("token.io", Access(), home.environ)
        assert (home.path / "store").read_text().endswith("erase token.io\n")


class TestLogin:
    async def test_what_was_stored_is_found(self, home: Home) -> None:
        where = await store_credential("quay.io", ME, Access(), home.environ)
        assert where == str(home.docker)
        assert home.docker.stat().st_mode & 0o777 == 0o600
        assert home.docker.parent.stat().st_mode & 0o777 == 0o700
        assert await home.find() == ME
        await store_credential("docker.io", Credential("hub", "p", "t"), Access(), home.environ)
        assert await home.find("docker.io/library/x") == Credential("hub", "p", "t")
        assert "https://index.docker.io/v1/" in home.docker.read_text()
        assert [path.name for path in home.docker.parent.iterdir()] == ["config.json"]

    async def test_everything_else_is_kept(self, home: Home) -> None:
        home.write(home.docker, {"psFormat": "x", "auths": {"other.io": {"a": 1}}})
        await store_credential("quay.io", ME, Access(), home.environ)
        assert msgspec.json.decode(home.docker.read_bytes()) == {
            "psFormat": "x",
            "auths": {"other.io": {"a": 1}, "quay.io": entry()},
        }

    async def test_link_stays_a_link(self, home: Home) -> None:
        real = home.write(home.path / "real.json", {})
        home.docker.parent.mkdir(parents=True)
        home.docker.symlink_to(real)
        await store_credential("quay.io", ME, Access(), home.environ)
        assert home.docker.is_symlink()
        assert b"quay.io" in real.read_bytes()

    async def test_logout(self, home: Home) -> None:
        keys = {"https://quay.io/v1/": entry(), "quay.io/team": entry(), "quay.io": entry()}
        home.write(home.docker, {"auths": keys})
        assert await erase_credential("quay.io", Access(), home.environ)
        assert not await erase_credential("quay.io", Access(), home.environ)
        assert list(msgspec.json.decode(home.docker.read_bytes())["auths"]) == ["quay.io/team"]

    async def test_place_that_cannot_be_written(self, home: Home) -> None:
        home.write(home.path / "home", b"a file")
        with pytest.raises(StorageError, match=r"cannot be written: (File exists|Not a directory)"):
            await store_credential("quay.io", ME, Access(), home.environ)

    async def test_failed_write_leaves_nothing(
        self, home: Home, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        home.write(home.docker, {})

        def fail(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(StorageError, match="cannot be written: No space left on device"):
            await store_credential("quay.io", ME, Access(), home.environ)
        assert [path.name for path in home.docker.parent.iterdir()] == ["config.json"]
        assert home.docker.read_bytes() == b"{}"
