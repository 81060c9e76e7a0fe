"""Where credentials come from, and how login and logout change them.

The access's own user name and password count before any file; of the files that are looked at
(`authfiles`), the first that has an answer. In each file: the registry's own helper
(``credHelpers``), the file's helper (``credsStore``), then
``auths``, where a key may reach down to a repository (``quay.io/team/app``) and the longest that
fits counts; Docker's old keys (``https://index.docker.io/v1/``, ``https://host/v2/``) are
understood. A helper is a program ``docker-credential-NAME`` that talks JSON.

Sources: Docker's config.json and its credential helper protocol, containers-auth.json(5).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from lazyimg.errors import ConfigurationError, StorageError
from lazyimg.registry.auth import Credential
from lazyimg.registry.authfiles import list_authfiles, login_file
from lazyimg.registry.redact import printable
from lazyimg_formats.oci.reference import DOCKER_HUB

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lazyimg.registry.ports import Access

MAX_AUTHFILE: Final = 4 << 20
"""Bytes of a credentials file."""

MAX_HELPER_REPLY: Final = 1 << 20
"""Bytes of a helper's answer."""

HELPER_TIMEOUT: Final = 30.0
"""Seconds for a credential helper."""

_HELPER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_NOT_FOUND: Final = "credentials not found in native keychain"
_DOCKER_HUB_KEY: Final = "https://index.docker.io/v1/"


async def find_credential(
    name: str, access: Access, environ: Mapping[str, str]
) -> Credential | None:
    """Give the credential for a repository, or None.

    Args:
        name: registry and repository.
        access: of the request.
        environ: the environment's variables.

    Raises:
        ConfigurationError: a file cannot be read or understood, or a helper fails.
    """
    if access.username:
        return Credential(access.username, access.password)
    found = await _find_in_files(name, access, environ)
    return None if found is None else found[1]


async def find_authfile(name: str, access: Access, environ: Mapping[str, str]) -> Path | None:
    """Give the file that has the credential for a repository, or None.

    Arguments and errors as for `find_credential`; the access's own user name does not count.
    """
    found = await _find_in_files(name, access, environ)
    return None if found is None else found[0]


async def _find_in_files(
    name: str, access: Access, environ: Mapping[str, str]
) -> tuple[Path, Credential] | None:
    for path, required in list_authfiles(access, environ):
        config = await asyncio.to_thread(_read_config, path, required=required)
        credential = await _find_in_config(path, config, name, environ)
        if credential is not None:
            return path, credential
    return None


async def store_credential(
    registry: str, credential: Credential, access: Access, environ: Mapping[str, str]
) -> str:
    """Keep a credential for a registry; gives where, for a message.

    Raises:
        ConfigurationError: the file cannot be understood, or the helper fails.
        StorageError: the file cannot be written.
    """
    path = login_file(access, environ)
    config = await asyncio.to_thread(_read_config, path, required=False)
    key = _docker_key(registry)
    helper = _helper_for(path, config, registry)
    if helper:
        request = {
            "ServerURL": key,
            "Username": credential.username or "<token>",
            "Secret": credential.password or credential.identity_token,
        }
        await _run_helper(helper, "store", msgspec.json.encode(request), environ)
        return f"docker-credential-{helper}"
    raw = f"{credential.username}:{credential.password}".encode()
    entry = {"auth": base64.b64encode(raw).decode()}
    if credential.identity_token:
        entry["identitytoken"] = credential.identity_token
    auths = _section(path, config, "auths")
    await asyncio.to_thread(_write_config, path, config | {"auths": auths | {key: entry}})
    return str(path)


async def erase_credential(registry: str, access: Access, environ: Mapping[str, str]) -> bool:
    """Forget the credential for a registry; tells whether there was one.

    Raises:
        ConfigurationError: the file cannot be understood, or the helper fails.
        StorageError: the file cannot be written.
    """
    path = login_file(access, environ)
    config = await asyncio.to_thread(_read_config, path, required=False)
    helper = _helper_for(path, config, registry)
    if helper:
        key = _docker_key(registry).encode()
        if await _run_helper(helper, "get", key, environ) is None:
            return False
        await _run_helper(helper, "erase", key, environ)
        return True
    auths = _section(path, config, "auths")
    kept = {key: entry for key, entry in auths.items() if _plain_key(key) != registry}
    if len(kept) == len(auths):
        return False
    await asyncio.to_thread(_write_config, path, config | {"auths": kept})
    return True


def _read_config(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_AUTHFILE + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        if required:
            raise ConfigurationError(str(path), "there is no such credentials file") from error
        return {}
    except OSError as error:
        raise ConfigurationError(str(path), f"cannot be read: {error.strerror}") from error
    if len(data) > MAX_AUTHFILE:
        raise ConfigurationError(str(path), f"is over {MAX_AUTHFILE} bytes")
    if not data.strip():
        return {}
    try:
        config = msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError):
        config = None  # without the cause: a decoder's text may quote a secret
    if not isinstance(config, dict):
        raise ConfigurationError(str(path), "is no JSON object", "write it anew by logging in")
    return config


def _section(path: Path, config: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = config.get(name)
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise ConfigurationError(str(path), f"{name} is no JSON object")
    return section


async def _find_in_config(
    path: Path, config: Mapping[str, Any], name: str, environ: Mapping[str, str]
) -> Credential | None:
    registry = name.partition("/")[0]
    helper = _helper_for(path, config, registry)
    if helper:
        key = _docker_key(registry).encode()
        credential = await _run_helper(helper, "get", key, environ)
        if credential is not None:
            return credential
    auths = _section(path, config, "auths")
    by_name = {_plain_key(key): entry for key, entry in auths.items()}
    wanted = name
    while wanted:
        if wanted in by_name:
            credential = _parse_entry(path, wanted, by_name[wanted])
            if credential is not None:
                return credential
        wanted = wanted.rpartition("/")[0]
    return None


def _helper_for(path: Path, config: Mapping[str, Any], registry: str) -> str:
    by_registry = {_plain_key(k): v for k, v in _section(path, config, "credHelpers").items()}
    helper = by_registry.get(registry) or config.get("credsStore") or ""
    if helper and (not isinstance(helper, str) or _HELPER_NAME.fullmatch(helper) is None):
        raise ConfigurationError(str(path), "names a credential helper that cannot be one")
    return str(helper)


def _docker_key(registry: str) -> str:
    return _DOCKER_HUB_KEY if registry == DOCKER_HUB else registry


def _plain_key(key: str) -> str:
    """Give a key of ``auths`` as registry and perhaps repository."""
    name = key.removeprefix("https://").removeprefix("http://").rstrip("/")
    if name != key:
        name = name.removesuffix("/v1").removesuffix("/v2")
    host, slash, rest = name.partition("/")
    if host in {"index.docker.io", "registry-1.docker.io"}:
        host = DOCKER_HUB
    return f"{host}{slash}{rest}"


def _parse_entry(path: Path, key: str, entry: object) -> Credential | None:
    if not isinstance(entry, dict):
        raise ConfigurationError(str(path), f"the entry for {printable(key)} is no JSON object")
    fields = {name: entry.get(name) or "" for name in ("auth", "username", "password")}
    identity_token = entry.get("identitytoken") or ""
    if not all(isinstance(value, str) for value in (*fields.values(), identity_token)):
        raise ConfigurationError(str(path), f"the entry for {printable(key)} holds no text")
    username, password = fields["username"], fields["password"]
    if fields["auth"]:
        try:
            decoded = base64.b64decode(fields["auth"], validate=True).decode()
        except (binascii.Error, ValueError):
            decoded = ""
        username, colon, password = decoded.rstrip("\0").partition(":")
        if not colon:
            raise ConfigurationError(
                str(path),
                f"the entry for {printable(key)} is not base64 of user:password",
                "log in again",
            )
    if not username and not identity_token:
        return None
    return Credential(username, password, identity_token)


async def _run_helper(
    name: str, verb: str, data: bytes, environ: Mapping[str, str]
) -> Credential | None:
    """Run a helper; gives what ``get`` found, None for nothing and for the other verbs."""
    program = f"docker-credential-{name}"
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            verb,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=dict(environ),
        )
    except OSError as error:
        raise ConfigurationError(
            program, f"cannot be run: {error.strerror}", "install it, or take it out of the file"
        ) from error
    try:
        async with asyncio.timeout(HELPER_TIMEOUT):
            output, _ = await process.communicate(data)
    except TimeoutError as error:
        raise ConfigurationError(program, f"no answer in {HELPER_TIMEOUT:.0f} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        text = output[:4096].decode(errors="replace")
        if _NOT_FOUND in text:
            return None
        raise ConfigurationError(program, f"{verb} failed: {printable(text) or 'without a word'}")
    return parse_helper_reply(program, output) if verb == "get" else None


def parse_helper_reply(program: str, output: bytes) -> Credential | None:
    """Give what a credential helper's ``get`` wrote; None for no user.

    Raises:
        ConfigurationError: it wrote something else.
    """
    try:
        reply = msgspec.json.decode(output[:MAX_HELPER_REPLY], type=dict[str, str])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        reply = None  # without the cause: a decoder's text may quote a secret
    if reply is None:
        raise ConfigurationError(program, "its answer is not that of a credential helper")
    username, secret = reply.get("Username", ""), reply.get("Secret", "")
    if username == "<token>":
        return Credential(identity_token=secret)
    return Credential(username, secret) if username else None


def _write_config(path: Path, config: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        target = path.resolve()  # a link stays a link
        descriptor, name = tempfile.mkstemp(prefix=".lazyimg-", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:  # mkstemp makes it 0600
                file.write(msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                Path(name).unlink()
            raise
    except OSError as error:
        raise StorageError(str(path), f"cannot be written: {error.strerror}") from error
