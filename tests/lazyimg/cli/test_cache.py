"""`lazyimg cache check`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lazyimg.api.messages import CacheCheckReply, CacheCheckRequest
from tests.fakes.daemon import MIB, FakeDaemon

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.lazyimg.cli.conftest import Result

ONE, TWO = "1" * 64, "2" * 64


def verdict(device: str, *, wrong: int = 0, **more: int | str) -> CacheCheckReply:
    fields = {"checked": 10 * MIB, "unchecked": 0, "repaired": 0, "problem": ""} | more
    return CacheCheckReply(device=device, wrong=wrong, **fields)  # type: ignore[arg-type]


def test_right_cache(run: Callable[..., Result], daemon: FakeDaemon) -> None:
    daemon.verdicts = {ONE: verdict(ONE), TWO: verdict(TWO, unchecked=4096)}
    result = run("cache", "check", "--quiet")
    assert result == (
        0, "2 devices: 21.0 MB are right, 4.1 kB cannot be checked alone\n", ""
    )  # fmt: skip
    asked = [CacheCheckRequest(device=name, repair=False) for name in (ONE, TWO, "gone")]
    assert daemon.requests == asked


def test_wrong_cache(run: Callable[..., Result], daemon: FakeDaemon) -> None:
    daemon.verdicts = {ONE: verdict(ONE), TWO: verdict(TWO, wrong=8192)}
    result = run("cache", "check", "--quiet")
    assert result.code == 68
    assert result.err == (
        "lazyimg: cache: 8.2 kB are wrong, in 1 of 2 devices;"
        " `lazyimg cache check --repair` has them fetched again\n"
    )
    lines = result.out.splitlines()
    assert [line.split() for line in lines[:2]] == [
        ["DEVICE", "WRONG", "REPAIRED", "PROBLEM"],
        ["222222222222", "8.2", "kB", "0", "B"],
    ]
    assert lines[2:] == ["2 devices: 21.0 MB are right"]


def test_repaired_cache(run: Callable[..., Result], daemon: FakeDaemon) -> None:
    daemon.verdicts = {TWO: verdict(TWO, wrong=8192, repaired=8192)}
    result = run("cache", "check", "--repair", "--progress=plain")
    assert result.code == 0
    assert "8.2 kB" in result.out
    assert "cache: 2.1 MB of 2.1 MB (100 %)" in result.err
    assert daemon.requests[0] == CacheCheckRequest(device=TWO, repair=True)


def test_cache_that_could_not_be_repaired(run: Callable[..., Result], daemon: FakeDaemon) -> None:
    daemon.verdicts = {
        ONE: verdict(ONE, wrong=8192, repaired=4096, problem="it is mounted"),
        TWO: verdict(TWO, problem="no image that is known here has it"),
    }
    result = run("cache", "check", "--repair", "--quiet")
    assert (result.code, result.err) == (
        68,
        "lazyimg: cache: 4.1 kB are wrong, in 1 of 2 devices; see above\n",
    )
    assert "it is mounted" in result.out
    assert "no image that is known here has it" in result.out


def test_check_as_json(run: Callable[..., Result], daemon: FakeDaemon) -> None:
    daemon.verdicts = {ONE: verdict(ONE, wrong=1)}
    result = run("cache", "check", "--json", "--quiet")
    assert result.code == 68
    assert json.loads(result.out) == [
        {
            "device": ONE,
            "checked": 10 * MIB,
            "unchecked": 0,
            "wrong": 1,
            "repaired": 0,
            "problem": "",
        }
    ]
