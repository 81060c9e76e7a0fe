"""Files of credentials: which ones, in which order. What is in them is in test_credentials."""

from __future__ import annotations

from pathlib import Path

import pytest

from lazyimg.errors import ConfigurationError
from lazyimg.registry.authfiles import list_authfiles, login_file
from lazyimg.registry.ports import Access


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path / "home"), "XDG_RUNTIME_DIR": str(tmp_path / "run")}


def test_only_files_that_are_there(tmp_path: Path, environ: dict[str, str]) -> None:
    assert list(list_authfiles(Access(), environ)) == []
    podman, docker = tmp_path / "run/containers/auth.json", tmp_path / "home/.docker/config.json"
    for path in (podman, docker):
        path.parent.mkdir(parents=True)
        path.touch()
    assert list(list_authfiles(Access(), environ)) == [(podman, False), (docker, False)]
    environ["DOCKER_CONFIG"] = str(tmp_path)
    assert list(list_authfiles(Access(), environ)) == [(podman, False)]
    assert list(list_authfiles(Access(), {})) == []


def test_files_that_were_named_are_the_only_ones(environ: dict[str, str]) -> None:
    environ["REGISTRY_AUTH_FILE"] = "/named"
    assert list(list_authfiles(Access(), environ)) == [(Path("/named"), False)]
    given = Access(authfile=Path("/given"))
    assert list(list_authfiles(given, environ)) == [(Path("/given"), True)]


def test_file_that_is_changed(environ: dict[str, str]) -> None:
    assert login_file(Access(authfile=Path("/given")), environ) == Path("/given")
    assert login_file(Access(), {"REGISTRY_AUTH_FILE": "/named"}) == Path("/named")
    docker = Path(environ["HOME"], ".docker", "config.json")
    assert login_file(Access(), environ) == docker
    with pytest.raises(ConfigurationError, match="credentials: no place to keep them; set HO"):
        login_file(Access(), {})
