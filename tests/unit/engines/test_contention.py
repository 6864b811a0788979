"""A job is alone if no other ran beside it, and the daemon was not busy with calls."""

from __future__ import annotations

import time

import pytest
from wasmkilnd.engines.workers.contention import Neighbours


class Clocks:
    """Stand for the clock on the wall and for the daemon's CPU time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s, self.used_s = 100.0, 7.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(time, "process_time", lambda: self.used_s)

    def pass_by(self, seconds: float, used_s: float = 0.0) -> None:
        self.now_s += seconds
        self.used_s += used_s


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(monkeypatch)


def test_one_after_the_other_are_alone(clocks: Clocks) -> None:
    jobs = Neighbours()
    for _ in range(2):
        with jobs.job() as one:
            clocks.pass_by(10, used_s=0.5)
        assert one.alone


def test_all_that_overlap_are_not_alone_to_their_end(clocks: Clocks) -> None:
    jobs = Neighbours()
    with jobs.job() as first:
        with jobs.job() as second:
            clocks.pass_by(1)
        with jobs.job() as third:
            clocks.pass_by(1)
        clocks.pass_by(100)
    assert [first.alone, second.alone, third.alone] == [False] * 3
    with jobs.job() as later:
        clocks.pass_by(1)
    assert later.alone


def test_beside_a_daemon_that_is_busy_with_calls_none_is_alone(clocks: Clocks) -> None:
    with Neighbours().job() as one:
        clocks.pass_by(10, used_s=1.5)
    assert not one.alone
