"""A command line in this process, with a daemon behind it and no configuration around it."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from lazyimg.cli.command import main
from tests.fakes.daemon import FakeDaemon, serve_in_thread
from tests.fakes.registry import run_registry

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    from tests.fakes.registry import FakeRegistry


class Result(NamedTuple):
    """How a command line ended."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep this machine's settings and credentials out."""
    for name in os.environ:
        if name.startswith(("LAZYIMG_", "REGISTRY_", "DOCKER_", "XDG_")):
            monkeypatch.delenv(name)
    path = tmp_path / "home"
    path.mkdir()
    monkeypatch.setenv("HOME", str(path))
    monkeypatch.setenv("LAZYIMG_ADDRESS", str(tmp_path / "lazyimg.sock"))
    monkeypatch.setenv("COLUMNS", "80")
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run one command line."""

    def run_once(*arguments: str) -> Result:
        code = main(arguments)
        return Result(code, *capsys.readouterr())

    return run_once


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    """Run a registry, in a thread of its own."""
    with registry_in_thread() as running:
        yield running


@contextmanager
def registry_in_thread(tls: ssl.SSLContext | None = None) -> Iterator[FakeRegistry]:
    """Run a registry, with TLS if a context is given, until the end of the block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    context = run_registry(tls)

    def wait_for(step: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(step, loop).result(10)

    try:
        yield wait_for(context.__aenter__())
        wait_for(context.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    """Run a daemon."""
    with serve_in_thread(FakeDaemon(), tmp_path / "lazyimg.sock") as served:
        yield served
