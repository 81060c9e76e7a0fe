"""`lazyimg login`."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

import click
import msgspec

from lazyimg.cli.options import (
    access_options,
    check_credential,
    common_options,
    pass_invocation,
)
from lazyimg.cli.output import print_line
from lazyimg.cli.reference import registry_access
from lazyimg.errors import UsageError
from lazyimg_formats.oci.reference import Reference

if TYPE_CHECKING:
    from lazyimg.api.messages import Access
    from lazyimg.cli.invocation import Invocation
    from lazyimg.config import RegistrySettings

MAX_PASSWORD = 1 << 16
"""Bytes of a password; tokens can be long."""


@click.command("login")
@click.argument("registry", metavar="[REGISTRY]", default="docker.io")
@click.option("-u", "--username", metavar="USER", help="User name; asked for if it is missing.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@access_options
@common_options
@pass_invocation
def command(
    invocation: Invocation,
    *,
    registry: str,
    username: str | None,
    password_stdin: bool,
    access: Access,
) -> None:
    """Keep a registry's credentials.

    They are shown to REGISTRY (docker.io by default) first, and kept where docker keeps them:
    --authfile, the configuration's registry.authfile, REGISTRY_AUTH_FILE, or
    ~/.docker/config.json with its credential helper.
    """
    settings = invocation.config().registry
    if not access.username:
        user = username or _ask("user name", "--username", hidden=False)
        password = _read_password() if password_stdin else _ask("password", "--password-stdin")
        check_credential("login", user, password)
        access = msgspec.structs.replace(access, username=user, password=password)
    print_line(f"kept in {asyncio.run(_login(registry, access, settings))}")


async def _login(registry: str, access: Access, settings: RegistrySettings) -> str:
    from lazyimg.registry.auth import Credential  # noqa: PLC0415  --help does without
    from lazyimg.registry.credentials import store_credential  # noqa: PLC0415
    from lazyimg.registry.login import check_credential, parse_registry  # noqa: PLC0415
    from lazyimg.registry.settings import complete_access, make_transport  # noqa: PLC0415

    name = parse_registry(registry)
    chosen = complete_access(registry_access(access), Reference(name, "login"), settings)
    await check_credential(name, chosen, make_transport(settings, os.environ))
    credential = Credential(access.username, access.password)
    return await store_credential(name, credential, chosen, os.environ)


def _read_password() -> str:
    password = sys.stdin.read(MAX_PASSWORD).removesuffix("\n").removesuffix("\r")
    if not password:
        raise UsageError("--password-stdin", "nothing came from standard input")
    return password


def _ask(what: str, flag: str, *, hidden: bool = True) -> str:
    if not sys.stdin.isatty():
        raise UsageError("login", f"no {what}", f"give it with {flag}")
    answer: str = click.prompt(what, hide_input=hidden, err=True)
    return answer
