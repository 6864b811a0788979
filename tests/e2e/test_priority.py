"""Compilations leave the CPU to what is more urgent."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.e2e.callers import ENGINE, Caller, header_of, stopped_job
from tests.e2e.daemon import Daemon, state_with
from tests.e2e.programs import Installed


def test_a_job_has_less_than_the_daemon(engines: Installed, tmp_path: Path) -> None:
    flags = ["--workers", "1", "--redis-url", "none"]
    with Daemon(state_with(tmp_path / "state", ENGINE), flags) as daemon, Caller(daemon) as caller:
        job, call = stopped_job(daemon, caller.compile)
        for _ in range(100):
            classes = [
                (os.sched_getscheduler(pid), os.getpriority(os.PRIO_PROCESS, pid))
                for pid in (daemon.pid, job)
            ]
            if classes[0] != classes[1]:
                break
            # It was stopped before it could give way: it goes on for a moment.
            os.kill(job, signal.SIGCONT)
            time.sleep(0.002)
            os.kill(job, signal.SIGSTOP)
        os.kill(job, signal.SIGCONT)
        header_of(call)
    assert classes == [(os.SCHED_OTHER, 0), (os.SCHED_BATCH, 10)]
