"""Rules for every test of the project."""

from __future__ import annotations

import gc
import os
import signal
from typing import TYPE_CHECKING, TypeVar

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Generator

# A loaded machine is no failure of what is tested.
settings.register_profile(
    "lazyimg", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("lazyimg")

# Signals are part of what is tested, and may be ignored where the tests were started (nohup, &).
for number, handler in (
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGINT, signal.default_int_handler),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# Tests of fork run beside tests of gRPC, in one process; see lazyimg.app for the daemon.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# Garbage that is collected in a child may wait for ever for threads that only its parent has, as
# channels of gRPC do.
os.register_at_fork(before=gc.disable, after_in_parent=gc.enable)

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skipped test into a failed one where CI is set: there, everything must run."""
    return refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Do the same with a module that is skipped as a whole."""
    return refuse_skip((yield))


def refuse_skip(report: Report) -> Report:
    """Return the report, as one of a failure when it was one of a skip and CI is set."""
    if os.environ.get("CI") and report.outcome == "skipped":
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"
    return report
