"""Which files of credentials are looked at, and which one login and logout change.

In this order, the first that has an answer counts:
  1. the access's authfile, or else $REGISTRY_AUTH_FILE: then nothing but that file;
  2. $XDG_RUNTIME_DIR/containers/auth.json;
  3. $DOCKER_CONFIG/config.json, or else ~/.docker/config.json.

Sources: Docker's config.json, containers-auth.json(5).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lazyimg.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lazyimg.registry.ports import Access


def login_file(access: Access, environ: Mapping[str, str]) -> Path:
    """Give the file that login and logout change."""
    if access.authfile is not None:
        return access.authfile
    if environ.get("REGISTRY_AUTH_FILE"):
        return Path(environ["REGISTRY_AUTH_FILE"])
    path = _docker_config(environ)
    if path is None:
        raise ConfigurationError(
            "credentials", "no place to keep them", "set HOME or DOCKER_CONFIG, or give --authfile"
        )
    return path


def list_authfiles(access: Access, environ: Mapping[str, str]) -> Iterator[tuple[Path, bool]]:
    """Give the files to look at, and whether each must exist."""
    if access.authfile is not None:
        yield access.authfile, True
    elif environ.get("REGISTRY_AUTH_FILE"):
        yield Path(environ["REGISTRY_AUTH_FILE"]), False
    else:
        runtime = environ.get("XDG_RUNTIME_DIR")
        podman = Path(runtime, "containers", "auth.json") if runtime else None
        for path in (podman, _docker_config(environ)):
            if path is not None and os.access(path, os.F_OK):  # not in another user's home
                yield path, False


def _docker_config(environ: Mapping[str, str]) -> Path | None:
    if environ.get("DOCKER_CONFIG"):
        return Path(environ["DOCKER_CONFIG"], "config.json")
    return Path(environ["HOME"], ".docker", "config.json") if environ.get("HOME") else None
