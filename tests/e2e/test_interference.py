"""Other processes of the machine interfere with a daemon's workers, as far as they may."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from tests.e2e import foreign, wasm
from tests.e2e.callers import ENGINE
from tests.e2e.daemon import Daemon, is_ready, state_with
from tests.e2e.processes import eventually, workers_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become others")

FLAGS = ("--workers", "2", "--redis-url", "none")


def test_services_that_run_as_nobody_change_nothing(tmp_path: Path) -> None:
    with Daemon(state_with(tmp_path / "state", ENGINE), FLAGS) as daemon, daemon.client() as client:
        eventually(lambda: daemon.metric("workers", engine=ENGINE) == 2, "a worker is missing")
        workers = workers_of(daemon.pid)
        assert len({foreign.user_of(worker) for worker in workers}) == len(workers) == 2
        for worker in workers:
            assert not foreign.may_limit(foreign.NOBODY, worker, resource.RLIMIT_AS, 2**20)
            assert not foreign.may_signal(foreign.NOBODY, worker)
        assert client.compile(wasm.adder(1)).bytes
        assert workers_of(daemon.pid) == workers


def test_whoever_gets_hold_of_the_user_costs_no_call(tmp_path: Path) -> None:
    """Another process lowers the limits of all idle workers: jobs go to new workers."""
    with (
        Daemon(state_with(tmp_path / "state", ENGINE), FLAGS) as daemon,
        daemon.client(max_attempts=1) as client,
    ):
        eventually(lambda: daemon.metric("workers", engine=ENGINE) == 2, "a worker is missing")
        spoiled = workers_of(daemon.pid)
        for worker in spoiled:
            foreign.spoil(worker)
        for tag in range(5):
            assert client.compile(wasm.adder(tag)).bytes
        assert not set(spoiled) <= set(workers_of(daemon.pid))
        daemon.wait_for_log("worker cannot set up a job and is replaced")
        assert is_ready(daemon)
