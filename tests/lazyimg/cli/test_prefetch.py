"""`lazyimg prefetch`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lazyimg.api.messages import PrefetchRequest
from tests.fakes.daemon import IMAGE, MIB, FakeDaemon

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.lazyimg.cli.conftest import Result


def test_prefetch_prints_what_is_local(run: Callable[..., Result], daemon: FakeDaemon) -> None:
    result = run("prefetch", IMAGE, "--path", "/usr/**", "--path", "/etc/*", "-q")
    assert result.code == 0
    assert result.out.splitlines() == [
        "IMAGE                   LOCAL  FETCHED",
        f"{IMAGE}  104.9 MB  41.9 MB",
    ]
    assert result.err == ""
    assert daemon.requests == [PrefetchRequest(references=[IMAGE], paths=["/usr/**", "/etc/*"])]


@pytest.mark.usefixtures("daemon")
def test_progress_goes_to_standard_error(run: Callable[..., Result]) -> None:
    result = run("prefetch", IMAGE, "--json")
    assert json.loads(result.out) == [
        {"reference": IMAGE, "present": 100 * MIB, "total": 100 * MIB, "fetched": 40 * MIB}
    ]
    assert result.err.startswith(f"{IMAGE}: 104.9 MB of 104.9 MB (100 %)")
    assert result.err.endswith("done\n")


@pytest.mark.usefixtures("daemon")
def test_one_failure_does_not_stop_the_others(run: Callable[..., Result]) -> None:
    result = run("prefetch", "one", IMAGE, "two", "-q")
    assert result.code == 2
    assert IMAGE in result.out
    assert result.err == (
        "lazyimg: two: the registry has no such image\n"
        "lazyimg: one: the registry has no such image\n"
    )


@pytest.mark.usefixtures("daemon")
def test_failure_alone(run: Callable[..., Result]) -> None:
    result = run("prefetch", "one", "--progress", "plain")
    assert result == (2, "", "lazyimg: one: the registry has no such image\n")


@pytest.mark.usefixtures("daemon")
def test_failure_is_told_while_the_others_go_on(run: Callable[..., Result]) -> None:
    lines = run("prefetch", "one", IMAGE, "--progress", "plain").err.splitlines()
    assert lines[0] == "one: failed"
    assert lines[-1] == "lazyimg: one: the registry has no such image"


def test_images_with_different_credentials(
    run: Callable[..., Result], daemon: FakeDaemon, home: Path
) -> None:
    docker = home / ".docker"
    docker.mkdir()
    config = docker / "config.json"
    config.write_text(json.dumps({"auths": {"registry.test": {"auth": "dTpw"}}}))
    run("prefetch", IMAGE, "other.test/a", "other.test/b", "-q")
    first, second = daemon.requests
    assert isinstance(first, PrefetchRequest)
    assert isinstance(second, PrefetchRequest)
    assert (first.references, first.access.authfile) == ([IMAGE], str(config))
    assert second.references == ["other.test/a", "other.test/b"]
    assert second.access.authfile == ""
