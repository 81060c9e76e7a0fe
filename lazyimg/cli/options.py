"""Flags that several verbs have, as decorators for click commands."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lazyimg.cli.invocation import Invocation
from lazyimg.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lazyimg.api.messages import Access

Function = TypeVar("Function", bound="Callable[..., Any]")

pass_invocation = click.make_pass_decorator(Invocation, ensure=True)


def _remember(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value is not None and parameter.name is not None:
        setattr(ctx.ensure_object(Invocation), parameter.name, value)


def common_options(function: Function) -> Function:
    """Add --address, --config and --debug, kept in the run's `Invocation`."""
    function = click.option(
        "--debug",
        is_flag=True,
        default=None,
        expose_value=False,
        callback=_remember,
        help="Show where an error comes from.",
    )(function)
    function = click.option(
        "--config",
        "config_file",
        metavar="FILE",
        type=click.Path(path_type=Path),
        expose_value=False,
        callback=_remember,
        help="The configuration file.",
    )(function)
    return click.option(
        "--address",
        metavar="SOCKET",
        expose_value=False,
        callback=lambda ctx, option, value: _remember(
            ctx,
            option,
            None if value is None else os.path.abspath(value),  # noqa: PTH100
        ),
        help="The daemon's socket.",
    )(function)


def output_option(function: Function) -> Function:
    """Add --format and --json; the function gets `output`, "table" or "json"."""

    @functools.wraps(function)
    def wrapped(*args: Any, as_json: bool, output: str, **kwargs: Any) -> Any:
        return function(*args, output="json" if as_json else output, **kwargs)

    decorated: Any = click.option("--json", "as_json", is_flag=True, help="As --format json.")(
        wrapped
    )
    result: Function = click.option(
        "--format",
        "output",
        type=click.Choice(["table", "json"]),
        default="table",
        help="How to print the result.  [table]",
    )(decorated)
    return result


def progress_option(function: Function) -> Function:
    """Add --progress and --quiet; the function gets `progress`, "auto", "plain" or "quiet"."""

    @functools.wraps(function)
    def wrapped(*args: Any, quiet: bool, progress: str, **kwargs: Any) -> Any:
        return function(*args, progress="quiet" if quiet else progress, **kwargs)

    decorated: Any = click.option("-q", "--quiet", is_flag=True, help="As --progress quiet.")(
        wrapped
    )
    result: Function = click.option(
        "--progress",
        type=click.Choice(["auto", "plain", "quiet"]),
        default="auto",
        help="Bars on a terminal, lines elsewhere; lines; nothing.  [auto]",
    )(decorated)
    return result


def platform_option(function: Function) -> Function:
    """Add --platform; the function gets `platform`, checked, "" for this machine's."""

    @functools.wraps(function)
    def wrapped(*args: Any, platform: str, **kwargs: Any) -> Any:
        return function(*args, platform=check_platform(platform), **kwargs)

    decorated: Any = wrapped
    result: Function = click.option(
        "--platform",
        metavar="OS/ARCH",
        default="",
        help="Which of an image's platforms, such as linux/arm64/v8.  [local]",
    )(decorated)
    return result


def check_platform(text: str) -> str:
    """Give a platform in its normal form; "" for ``local`` and "".

    Raises:
        UsageError: no platform.
    """
    if text in {"", "local"}:
        return ""
    from lazyimg.registry.resolve import local_platform  # noqa: PLC0415  seldom needed
    from lazyimg_formats.errors import FormatError  # noqa: PLC0415
    from lazyimg_formats.oci.platform import parse_platform  # noqa: PLC0415

    try:
        return str(parse_platform(text, local_platform()))
    except FormatError as error:
        raise UsageError("--platform", error.problem) from error


ACCESS_FLAGS = (
    "authfile",
    "creds",
    "plain_http",
    "insecure",
    "tls_verify",
    "ca_file",
    "hosts_dir",
)


def access_options(function: Function) -> Function:
    """Add the flags for registries; the function gets `access`."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        flags = {name: kwargs.pop(name) for name in ACCESS_FLAGS}
        return function(*args, access=read_access(flags), **kwargs)

    result: Function = add_access_flags(wrapped, "", hidden=False)
    return result


def add_access_flags(function: Any, prefix: str, *, hidden: bool) -> Any:
    """Add the flags for registries with `prefix` (such as ``src-``) in their names."""
    for option in (
        click.option(
            f"--{prefix}hosts-dir",
            metavar="DIR",
            type=click.Path(exists=True, file_okay=False),
            help="Mirrors and certificates: hosts.toml files, as containerd has them.",
            hidden=hidden,
        ),
        click.option(
            f"--{prefix}ca-file",
            metavar="FILE",
            type=click.Path(exists=True, dir_okay=False),
            help="Further root certificates (PEM).",
            hidden=hidden,
        ),
        click.option(
            f"--{prefix}tls-verify",
            type=click.BOOL,
            callback=lambda _ctx, _option, value: value is False,
            metavar="BOOL",
            help="false: as --insecure.",
            hidden=hidden,
        ),
        click.option(
            f"--{prefix}insecure",
            f"--{prefix}skip-verify",
            is_flag=True,
            help="Do not verify the registry's certificate.",
            hidden=hidden,
        ),
        click.option(
            f"--{prefix}plain-http",
            is_flag=True,
            help="Speak to the registry without TLS.",
            hidden=hidden,
        ),
        click.option(
            f"--{prefix}creds",
            metavar="USER:PASS",
            help="Credentials; others can see them in the list of processes.",
            hidden=hidden,
        ),
        click.option(
            f"--{prefix}authfile",
            metavar="FILE",
            type=click.Path(),
            help="A file of credentials, like Docker's config.json.",
            hidden=hidden,
        ),
    ):
        function = option(function)
    return function


def check_credential(what: str, username: str, password: str) -> None:
    """Refuse what registries and credentials files cannot be told: raises UsageError."""
    try:
        (username + password).encode()
    except UnicodeEncodeError as error:
        raise UsageError(what, "a user name or password that is not UTF-8") from error


def read_access(flags: dict[str, Any]) -> Access:
    """Give what the flags for registries say.

    Raises:
        UsageError: --creds without a colon, or not UTF-8.
    """
    from lazyimg.api.messages import Access  # noqa: PLC0415  --help does without

    username, colon, password = (flags["creds"] or "").partition(":")
    if flags["creds"] and not (colon and username):
        raise UsageError("--creds", "expected USER:PASS")
    check_credential("--creds", username, password)
    return Access(
        authfile=os.path.abspath(flags["authfile"]) if flags["authfile"] else "",  # noqa: PTH100
        username=username,
        password=password,
        plain_http=flags["plain_http"],
        insecure=flags["insecure"] or flags["tls_verify"],
        ca_file=os.path.abspath(flags["ca_file"]) if flags["ca_file"] else "",  # noqa: PTH100
        hosts_dir=os.path.abspath(flags["hosts_dir"]) if flags["hosts_dir"] else "",  # noqa: PTH100
    )
