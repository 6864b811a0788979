"""Settings for all tests."""

from __future__ import annotations

import signal
from collections.abc import Generator

import pytest
import structlog
from hypothesis import settings

# No test says anything about speed, so no example of one has a deadline.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")

# A shell has its background jobs ignore SIGINT, and commands that tests interrupt inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_uncollected: list[str] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Keep what one test sets up for a log from all tests that come after."""
    before = structlog.get_config()
    try:
        return (yield)
    finally:
        structlog.configure(**before)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Note what cannot be collected."""
    if report.failed:
        _uncollected.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End with a code that no second run mends: one of the failed tests alone leaves these out."""
    if _uncollected:
        session.exitstatus = pytest.ExitCode.INTERRUPTED
